"""`effimini info FOLDER`: the content of shards, counted from manifests and indexes."""

import io
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from effimini.cli import app
from prep.core import files
from prep.core.errors import UserError
from shards.location import ShardLocation
from shards.manifest import FORMAT
from shards.summary import Summary, summarise, summary_table
from shards.tokens import TokenizationConfig
from tests.shards import damage
from tests.shards.made import HOW, SIDE, make_shards, sample

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_shards(tmp_path / "shards", {"test": [3], "train": [5, 4]}, "One")
    return make_shards(tmp_path / "shards", {"train": [2]}, "Two")


def printed(folder: Path) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(summary_table(summarise(ShardLocation(folder, 0, 1))))
    return console.export_text()


def test_the_counts_match_the_samples(made: Path) -> None:
    tar = made / "One/train-001.tar"
    damage.set_facts(tar, 0, has_image=False)
    damage.index(tar)
    damage.reseal(made / "One")
    found = summarise(ShardLocation(made, 0, 1))
    numbers = {("One", "test"): range(3), ("One", "train"): range(3, 12), ("Two", "train"): range(2)}
    assert [(row.category, row.split) for row in found.splits] == list(numbers)
    everything = [n for own in numbers.values() for n in own]
    for row, own in zip([*found.splits, found.total], [*numbers.values(), everything], strict=True):
        metadata = [sample(n, "", 6)[0] for n in own]
        assert row.samples == len(own)
        assert row.mean_label == pytest.approx(np.mean([f["average_rating"] for f in metadata]), abs=1e-6)
        assert row.median_rating_number == np.median(own)
    assert [row.shards for row in found.splits] == [1, 2, 1]
    assert [row.image_share for row in found.splits] == [1, 8 / 9, 1]
    tars = sorted(made.glob("*/*.tar"))
    assert found.total.bytes == sum(path.stat().st_size for path in tars)
    lengths = [len(row["tokens"]) for path in tars for row in damage.rows(path.with_suffix(".arrow"))]
    assert found.total.mean_tokens == pytest.approx(np.mean(lengths))


def test_parameters_are_shown_and_different_ones_separately(made: Path) -> None:
    (alike,) = summarise(ShardLocation(made, 0, 1)).made
    tokenizer = files.read_json(made / "One/manifest.json")["tokens"]["tokenizer"]
    assert msgspec.to_builtins(alike) == {
        "categories": ["One", "Two"],
        "format": FORMAT,
        "source": "demo",
        "revision": "",
        "fraction": 1.0,
        "image_size": SIDE,
        "tokenizer": tokenizer,
        "fields": ("title", "description"),
        "max_tokens": 32,
    }
    text = printed(made)
    assert tokenizer[:12] in text
    assert "categories" not in text
    make_shards(made, {"train": [2]}, "Three", TokenizationConfig(HOW.name, ("title",), 8))
    made_apart = [each.categories for each in summarise(ShardLocation(made, 0, 1)).made]
    assert made_apart == [["One", "Two"], ["Three"]]
    assert "title; at most 8 tokens" in printed(made)


def test_only_demo_data_is_labelled_as_demo(made: Path) -> None:
    assert "DEMO DATA: synthetic products" in printed(made)
    for category in ("One", "Two"):
        damage.reseal(made / category, lambda about: about.update(source={"kind": "hub", "revision": "a1b2[red]"}))
    text = printed(made)
    assert "DEMO" not in text
    assert "hub a1b2[red]" in text  # as it stands, not as a colour


def test_the_command_prints_json_of_the_given_categories(made: Path) -> None:
    params = ["--params", str(ROOT / "params.yaml")]
    done = CliRunner().invoke(app, ["info", str(made), "Two", "--json", *params])
    assert msgspec.json.decode(done.stdout, type=Summary) == summarise(ShardLocation(made, 0, 1), ["Two"])
    assert "One" in CliRunner().invoke(app, ["info", str(made), *params]).stdout


def test_a_missing_or_invalid_index_is_an_error(made: Path) -> None:
    index = made / "One/train-001.arrow"
    index.write_bytes(b"none")
    with pytest.raises(UserError, match=r"One/train-001.arrow cannot be read \(.*\); run `dvc checkout`"):
        summarise(ShardLocation(made, 0, 1))
    index.unlink()
    with pytest.raises(UserError, match=r"One/train-001.arrow does not exist; run `dvc checkout`"):
        summarise(ShardLocation(made, 0, 1))
    with pytest.raises(UserError, match="has no <category>/manifest.json"):
        summarise(ShardLocation(made / "nowhere", 0, 1))


def test_no_torch_is_imported() -> None:
    code = "import sys; import shards.summary; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
