"""A model on a hub: published, and used by its name and revision."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

from effimini.cli import app
from effimini.model import FILES, EffiMini, build
from effimini.model_card import NO_LICENCE
from prep.core.errors import UserError
from prep.core.params import Params
from tests.on_hub import hub_here
from tests.writable_hub import WritableHub

from .test_model import inputs
from .test_predict import row, write_csv

NAME = "team/rating"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    monkeypatch.chdir(tmp_path)
    with hub_here(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def saved(small: Params, tmp_path: Path) -> Path:
    """A model folder with a card, and files that are not a model's."""
    folder = tmp_path / "saved"
    torch.manual_seed(1)
    build(small).eval().save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlibrary_name: effimini\ntags: [a]\n---\n# Model\n\n{NO_LICENCE} More.\n")
    (folder / "training.json").write_text("{}\n")
    (folder / "validation.parquet").write_bytes(b"rows")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    return folder


def publish(*arguments: object) -> None:
    app(["publish", *map(str, arguments)], standalone_mode=False)


@torch.inference_mode()
def test_a_published_model_has_bit_equal_scores_by_name_and_revision(
    saved: Path, small: Params, hub: WritableHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(NAME, "--model", saved)
    first = hub.repositories["models", NAME].branches["main"]
    assert capsys.readouterr().out == f"Published: {hub.url}/{NAME}/tree/main (commit {first})\n"
    assert hub.files("models", NAME).keys() == {*FILES, "README.md", "training.json"}
    torch.manual_seed(2)
    build(small).eval().save_pretrained(tmp_path / "second")
    publish(NAME, "--model", tmp_path / "second")
    publish(NAME, "--model", saved, "--revision", "v1")

    given = inputs()
    ours, second = (EffiMini.from_pretrained(folder)(*given) for folder in (saved, tmp_path / "second"))
    assert not torch.equal(ours, second)
    assert torch.equal(EffiMini.from_pretrained(NAME)(*given), second)
    assert torch.equal(EffiMini.from_pretrained(NAME, revision="v1")(*given), ours)
    assert torch.equal(EffiMini.from_pretrained(NAME, revision=first)(*given), ours)


def test_only_the_files_of_a_model_are_downloaded(saved: Path, hub: WritableHub, tmp_path: Path) -> None:
    publish(NAME, "--model", saved)
    files = hub.files("models", NAME)
    more = {
        "pytorch_model.bin": files["README.md"],
        "model.py": files["README.md"],
        "code/model.py": files["README.md"],
    }
    hub.repositories["models", NAME].commit("main", files | more)
    EffiMini.from_pretrained(NAME)
    found = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/**/*") if not path.is_dir()}
    assert found == set(FILES)


def test_predict_takes_the_name_of_a_model(saved: Path, hub: WritableHub, tmp_path: Path) -> None:
    publish(NAME, "--model", saved)
    items = write_csv(tmp_path / "items.csv", [row(), row(parent_asin="A2", title="flimsy")])
    for model, output in ((saved, "local.csv"), (NAME, "named.csv")):
        app(["predict", "--model", str(model), "--input", str(items), "--output", output], standalone_mode=False)
    assert Path("named.csv").read_bytes() == Path("local.csv").read_bytes()


def test_a_licence_is_stated_in_the_card(saved: Path, hub: WritableHub) -> None:
    publish(NAME, "--model", saved, "--license", "mit")
    card = ModelCard(hub.content("models", NAME, "README.md").decode())
    assert card.data.to_dict() == {"library_name": "effimini", "tags": ["a"], "license": "mit"}
    assert "The weights are published under `mit`. More." in card.text
    assert NO_LICENCE in (saved / "README.md").read_text()
    (saved / "README.md").unlink()
    publish(NAME, "--model", saved, "--license", "mit")
    assert ModelCard(hub.content("models", NAME, "README.md").decode()).data.license == "mit"


def test_what_is_no_model_is_not_published(tmp_path: Path, hub: WritableHub) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty has no config.json, so it is not a saved model"):
        publish(NAME, "--model", tmp_path / "empty")
    with pytest.raises(UserError, match=r"models/best does not exist"):
        publish(NAME, "--model", "models/best")
    assert hub.server.asked == []


@pytest.mark.parametrize("name", ["nowhere", "models/best", "saved/bets", "/team/rating", "a/b/c"])
def test_a_mistyped_path_is_an_error_and_asks_no_hub(saved: Path, hub: WritableHub, name: str) -> None:
    with pytest.raises(UserError, match=r"does not exist; .*OWNER/NAME"):
        EffiMini.from_pretrained(name)
    with pytest.raises(UserError, match=r"does not exist; .*OWNER/NAME"):
        app(["predict", "--model", name, "--input", "i.csv", "--output", "o.csv"], standalone_mode=False)
    assert hub.server.asked == []


def test_what_the_hub_does_not_have_is_an_error(saved: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no folder team/none here, and the hub .* no access to team/none"):
        EffiMini.from_pretrained("team/none")
    publish(NAME, "--model", saved)
    with pytest.raises(UserError, match=r"team/rating has no such revision on the hub"):
        EffiMini.from_pretrained(NAME, revision="v9")
    with pytest.raises(UserError, match=r"revision is 'v1' but .*saved is a folder here"):
        EffiMini.from_pretrained(saved, revision="v1")
    repository = hub.repositories["models", NAME]
    repository.commit("main", {"README.md": hub.files("models", NAME)["README.md"]})
    with pytest.raises(UserError, match=r"team/rating on the hub has no config.json, so it is not a model"):
        EffiMini.from_pretrained(NAME)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"there is no folder other/rating here, and the hub .* does not respond"):
        EffiMini.from_pretrained("other/rating")


@torch.inference_mode()
def test_a_downloaded_model_is_used_without_the_hub(
    saved: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(NAME, "--model", saved)
    before = EffiMini.from_pretrained(NAME)(*inputs())
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert torch.equal(EffiMini.from_pretrained(NAME)(*inputs()), before)
