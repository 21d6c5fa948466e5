"""The dataset card: it loads the shards next to it, and its statements are correct."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from huggingface_hub import DatasetCard

from prep.core.errors import UserError
from prep.core.tables.shards import METADATA_FIELDS
from shards import card
from shards.location import ShardLocation
from shards.manifest import Manifest, Source

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def shards(made_data: Callable[..., Path]) -> Path:
    """A folder of shards of two categories, with all their cards."""
    folder = made_data("shard")
    location = located(folder / "shards")
    for category in location.categories():
        card.write_card(folder / "shards" / category, location.manifest(category))
    (folder / "shards" / card.CARD_FILE).write_text(card.of_location(location))
    return folder / "shards"


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def located(folder: Path) -> ShardLocation:
    return ShardLocation(folder, 1, 1)


def counts(*manifests: Manifest) -> dict[str, int]:
    return {s: sum(shard.samples for m in manifests for shard in m.shards if shard.split == s) for s in SPLITS}


def changed(manifest: Manifest, **parameters: Any) -> Manifest:
    """Return the manifest with dotted parameters changed."""
    raw = json.loads(msgspec.json.encode(manifest.parameters))
    for key, value in parameters.items():
        section, name = key.split(".")
        raw[section][name] = value
    return msgspec.structs.replace(manifest, parameters=raw)


def written(*manifests: Manifest) -> str:
    return card.dataset_card(manifests, {(m.category, split): 1 for m in manifests for split in SPLITS}, beside=False)


@pytest.mark.parametrize("place", [".", "Demo_Kitchen", "Demo_Toys"])
def test_datasets_loads_the_splits_of_a_folder_from_its_card(shards: Path, place: str) -> None:
    import datasets

    loaded = datasets.load_dataset(str(shards / place))
    manifests = [located(shards).manifest(c) for c in located(shards).categories() if place in {".", c}]
    assert {split: len(rows) for split, rows in loaded.items()} == counts(*manifests)
    assert {f["category"] for f in loaded["test"].remove_columns("jpg")["json"]} == {m.category for m in manifests}


@pytest.mark.parametrize("place", [".", "Demo_Toys"])
def test_the_code_in_a_card_runs(shards: Path, place: str, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (shards / place / card.CARD_FILE).read_text(), re.DOTALL)
    assert len(snippets) == 3
    for number, snippet in enumerate(snippets):
        script = tmp_path / f"{number}.py"
        script.write_text(snippet.replace("path/to/this/folder", str((shards / place).resolve())))
        runpy.run_path(str(script))


def test_the_header_is_valid_and_the_counts_match_the_manifests(shards: Path) -> None:
    loaded = DatasetCard.load(shards / "Demo_Toys" / card.CARD_FILE)
    data = loaded.data.to_dict()
    assert data["size_categories"] == ["n<1K"]
    assert [f["split"] for f in data["configs"][0]["data_files"]] == list(SPLITS)
    manifest = located(shards).manifest("Demo_Toys")
    with_image = pictured(shards / "Demo_Toys")
    for split, samples in counts(manifest).items():
        of_split = [shard for shard in manifest.shards if shard.split == split]
        megabytes = sum(shard.bytes for shard in of_split) / 1e6
        assert f"| {split} | {samples} | {with_image[split]} | {len(of_split)} | {megabytes:.2f} |" in loaded.text
    total = sum(counts(manifest).values())
    assert 0 < sum(with_image.values()) < total
    assert f"{total - sum(with_image.values())} of {total} samples have none" in loaded.text


def pictured(folder: Path) -> dict[str, int]:
    """Count the samples with an image as webdataset reads them, by split."""
    import webdataset

    found = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        tars = sorted(map(str, folder.glob(f"{split}-*.tar")))
        for sample in webdataset.WebDataset(tars, shardshuffle=False):
            found[split] += json.loads(sample["json"])["has_image"]
    return found


def test_all_fields_all_parameters_and_the_demo_notice_are_shown(shards: Path) -> None:
    for place in (".", "Demo_Toys"):
        text = (shards / place / card.CARD_FILE).read_text()
        assert all(f"| `{name}` |" in text for name in METADATA_FIELDS)
        for section, values in located(shards).manifest("Demo_Toys").parameters.items():
            assert all(f"| `{section}.{key}` |" in text for key in values)
        assert text.count("DEMO DATA: ") == 2  # in the name shown on the hub, and above everything else
        assert "McAuley" not in text


def test_the_same_shards_give_the_same_card(shards: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(shards.rglob(card.CARD_FILE))}
    assert card.of_location(located(shards)).encode() == before[shards / card.CARD_FILE]
    for category in located(shards).categories():
        card.write_card(shards / category, located(shards).manifest(category))
        assert (shards / category / card.CARD_FILE).read_bytes() == before[shards / category / card.CARD_FILE]


def test_source_and_licence_depend_on_the_kind_of_source(shards: Path) -> None:
    manifest = located(shards).manifest("Demo_Toys")
    hub = written(msgspec.structs.replace(manifest, source=Source("hub", "2b6d039ed471")))
    mirror = written(msgspec.structs.replace(manifest, source=Source("mirror", "")))
    assert "McAuley-Lab/Amazon-Reviews-2023" in hub
    assert "revision `2b6d039ed471`" in hub
    for text in (hub, mirror):
        assert "demo" not in text.lower().replace("demo_toys", "")
        assert "states no licence" in text
        assert "No user id" in text
        assert DatasetCard(text).data.license == "unknown"
    assert "state this if you publish" in mirror
    assert DatasetCard(written(manifest)).data.license is None


def test_limits_follow_the_parameters(shards: Path) -> None:
    manifest = located(shards).manifest("Demo_Toys")
    assert "proportions are lost" in written(manifest)
    text = written(changed(manifest, **{"images.fit": "crop", "images.request": 256, "sample.min_per_category": 10000}))
    assert "largest square" in text
    assert "at most 256 px" in text
    assert "at least 10,000" in text


def test_a_value_cannot_break_out_of_its_cell(shards: Path) -> None:
    text = written(changed(located(shards).manifest("Demo_Toys"), **{"sample.salt": "a`|\n# <b>"}))
    assert "| `sample.salt` | `a'\\| # <b>` |" in text


def test_categories_with_different_parameters_have_no_common_card(shards: Path) -> None:
    manifests = [located(shards).manifest(category) for category in located(shards).categories()]
    manifests[1] = changed(manifests[1], **{"sample.fraction": 0.4})
    with pytest.raises(UserError, match=r"Demo_Toys was made with sample.fraction 0.4 and Demo_Kitchen with 0.2; run"):
        written(*manifests)


@pytest.mark.parametrize(
    ("samples", "word"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K"), (250_000, "100K<n<1M"), (35_390_000, "10M<n<100M")],
)
def test_the_size_is_a_size_category_of_the_hub(samples: int, word: str) -> None:
    assert card._size_category(samples) == word


def test_the_command_prints_the_card_of_a_location(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from effimini.cli import app

    params = str(Path(__file__).parents[2] / "params.yaml")
    app(["card", str(shards), "--params", params], standalone_mode=False)
    assert capsys.readouterr().out == (shards / card.CARD_FILE).read_text()
    app(["card", str(shards), "Demo_Toys", "--params", params], standalone_mode=False)
    assert "Demo_Kitchen" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"has no <category>/manifest.json"):
        app(["card", str(shards / "Demo_Toys"), "--params", params], standalone_mode=False)
