import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from prep.core import presets
from prep.core.errors import UserError
from prep.core.params import flatten, load_params, read_yaml

FOLDER = Path(__file__).parents[3] / "params"


@pytest.mark.parametrize("name", presets.names(FOLDER))
def test_a_preset_loads_and_has_only_values_that_differ(name: str) -> None:
    assert load_params(FOLDER / f"{name}.yaml").source.categories
    preset = YAML().load(FOLDER / f"{name}.yaml")
    extended = dict(flatten(read_yaml(FOLDER / f"{preset.pop('extends')}.yaml")))
    assert [key for key, value in flatten(preset) if extended.get(key) == value] == []


def test_the_written_file_loads_and_keeps_comments(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert presets.write_preset("paper", path, FOLDER) == load_params(FOLDER / "paper.yaml") == load_params(path)
    text = path.read_text()
    assert text.startswith("# Written by `effimini preset paper`")
    assert "  fraction: 0.2 # fraction of the training items" in text
    assert "  resolution: 224 # height and width of stored images" in text


def test_a_preset_may_extend_another(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "base.yaml", tmp_path)
    (tmp_path / "one.yaml").write_text("extends: base\ntrain: {seed: 1, epochs: 2}\n")
    (tmp_path / "two.yaml").write_text("extends: one\ntrain: {epochs: 3}\n")
    train = load_params(tmp_path / "two.yaml").train
    assert (train.seed, train.epochs) == (1, 3)
    (tmp_path / "two.yaml").write_text("extends: three\n")
    with pytest.raises(UserError, match=r"three.yaml does not exist"):
        load_params(tmp_path / "two.yaml")
    with pytest.raises(UserError, match=r"three.yaml does not exist; the presets are one, two$"):
        presets.write_preset("three", tmp_path / "params.yaml", tmp_path)
    with pytest.raises(UserError, match="none has no presets; run the command in the project's folder"):
        presets.write_preset("paper", tmp_path / "params.yaml", tmp_path / "none")


def test_values_that_match_no_preset_are_overwritten_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    presets.write_preset("demo", path, FOLDER)
    presets.write_preset("paper", path, FOLDER)
    path.write_text(own := path.read_text().replace("fraction: 0.2", "fraction: 0.4"))
    with pytest.raises(UserError, match="values that match no preset; commit or copy it, then add --force"):
        presets.write_preset("demo", path, FOLDER)
    assert path.read_text() == own
    presets.write_preset("demo", path, FOLDER, overwrite=True)
    assert load_params(path) == load_params(FOLDER / "demo.yaml")
