"""Differences between two versions of shards: parameters, items, tars, labels."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from scipy.stats import ks_2samp

from prep.core import writers
from prep.core.errors import UserError
from shards import tokens
from shards.diff import Comparison, compare
from shards.diff_table import comparison_table
from shards.location import ShardLocation
from shards.tar import write_tar
from tests.shards.made import HOW, jpeg, make_shards, sample, seal

SIZES = {"train": [4, 3], "validation": [2], "test": [3]}


def differ(old: Path, new: Path, **tokenization: Any) -> dict[str, Any]:
    """Return what is printed as JSON."""
    found = compare(*(ShardLocation(path, 10**9, 2) for path in (old, new)), **tokenization)
    return cast("dict[str, Any]", msgspec.to_builtins(found))


def shown(result: dict[str, Any]) -> str:
    console = Console(width=160, file=StringIO())
    console.print(comparison_table(msgspec.convert(result, Comparison)))
    return console.file.getvalue()


def rewrite(folder: Path, tar: str, change: Callable[[int, dict[str, Any]], None], to: str | None = None) -> None:
    """Rewrite a tar of synthetic shards with changed metadata, as `to` if given."""
    about = json.loads((folder / "manifest.json").read_text())
    (line,) = (line for line in about["shards"] if line["name"] == tar)
    index = pa.ipc.open_file(str(folder / tar).replace(".tar", ".arrow")).read_all()
    numbers = index["rating_number"].to_pylist()  # the number of a synthetic sample
    samples = [sample(number, folder.name, 6) for number in numbers]
    for number, (metadata, _) in zip(numbers, samples, strict=True):
        change(number, metadata)
    path = folder / (to or tar)
    write_tar(path, [(metadata, jpeg(number)) for number, (metadata, _) in zip(numbers, samples, strict=True)])
    split = path.name.partition("-")[0]
    line.update(msgspec.to_builtins(seal(path, split, len(samples), HOW, tokens.load_tokenizer(HOW.name))))
    writers.write_json(folder / "manifest.json", about)


@pytest.fixture(scope="module")
def versions(
    tmp_path_factory: pytest.TempPathFactory, make_params: Callable[..., Any], run_to: Callable[..., None]
) -> Callable[..., Path]:
    """Return the shards of the demo made with the given parameters, each once."""
    made: dict[str, Path] = {}

    def version(**changes: Any) -> Path:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("version")
            run_to(make_params(**{"source.demo.items": 60} | changes), made[key], "shard")
        return made[key] / "shards"

    return version


def test_a_version_has_no_differences_to_itself(versions: Callable[..., Path]) -> None:
    result = differ(versions(), versions())
    assert not any(result[part] for part in ("parameters", "splits", "moved", "metadata", "drift", "added", "removed"))
    assert shown(result).split("\n", 1)[1].strip() == "nothing changed"


def test_a_larger_fraction_adds_only_training_items(versions: Callable[..., Path]) -> None:
    old, new = versions(), versions(**{"sample.fraction": 0.4})
    result = differ(old, new)
    both = ["Demo_Kitchen", "Demo_Toys"]
    assert result["parameters"] == [{"name": "sample.fraction", "old": 0.2, "new": 0.4, "categories": both}]
    assert [(row["category"], row["split"]) for row in result["splits"]] == [(name, "train") for name in both]
    assert not (result["moved"])
    assert not (result["metadata"])
    assert not (result["unexplained_moves"])
    for row in result["splits"]:
        before, after = (
            {p.name: p.stat().st_size for p in (side / row["category"]).glob("train-*")} for side in (old, new)
        )
        tars = {name for name in after if name.endswith(".tar")} - set(before)
        assert (row["new"], row["gone"], row["reindexed"], row["out"]) == (len(tars), 0, 0, 0)
        assert row["kept"] == len(before) // 2
        assert row["bytes_new"] == sum(size for name, size in after.items() if name not in before)
        keys = [key for name in sorted(tars) for key in index(new / row["category"] / name)["key"].to_pylist()]
        assert (row["in"], row["examples"]) == (len(keys), {"in": keys[:5], "out": []})
    text = shown(result)
    assert "sample.fraction" in text
    assert "DEMO DATA" in text
    assert shown(differ(old, new)) == text
    back = differ(new, old)
    assert [row["out"] for row in back["splits"]] == [row["in"] for row in result["splits"]]
    assert sum(row["bytes_new"] for row in back["splits"]) == 0


def index(tar: Path) -> pa.Table:
    return pa.ipc.open_file(str(tar.with_suffix(".arrow"))).read_all()


def test_label_drift_covers_all_samples_of_a_split(versions: Callable[..., Path]) -> None:
    sides = versions(), versions(**{"sample.fraction": 0.4})
    drift = differ(*sides)["drift"]
    assert [row["category"] for row in drift] == ["Demo_Kitchen", "Demo_Toys", "all"]
    for row, part in zip(drift, ("Demo_Kitchen", "Demo_Toys", "*"), strict=True):
        labels = []
        for side, name in zip(sides, ("old", "new"), strict=True):
            read = pa.concat_tables(index(tar) for tar in sorted(side.glob(f"{part}/train-*.tar")))
            stars = read["average_rating"].to_numpy()
            labels.append(stars)
            assert row[name] == {
                "samples": len(stars),
                "mean": pytest.approx(stars.mean(), abs=1e-5),
                "deviation": pytest.approx(stars.std(), abs=1e-5),
                "median": pytest.approx(np.median(stars), abs=1e-5),
                "five_share": pytest.approx((stars == 5).mean(), abs=1e-5),
                "median_rating_number": np.median(read["rating_number"].to_numpy()),
            }
        assert row["ks"] == pytest.approx(ks_2samp(*labels).statistic, abs=1e-5)
        assert row["split"] == "train"


def test_other_text_fields_change_only_indexes(versions: Callable[..., Path]) -> None:
    result = differ(versions(), versions(**{"text.fields": ["title", "store"]}))
    assert [change["name"] for change in result["parameters"]] == ["tokens.fields"]
    for row in result["splits"]:
        assert (row["new"], row["gone"], row["in"], row["out"]) == (0, 0, 0, 0)
        assert row["reindexed"] == row["kept"]
        assert row["kept"] > 0
        assert row["bytes_new"] > 0
    assert {row["split"] for row in result["splits"]} == {"train", "validation", "test"}
    assert not (result["moved"])
    assert not (result["metadata"])
    assert not (result["drift"])


def test_another_salt_moves_items_between_splits(versions: Callable[..., Path]) -> None:
    whole = {"sample.fraction": 1.0}
    old, new = versions(**whole), versions(**whole, **{"sample.salt": "other"})
    result = differ(old, new)
    assert [change["name"] for change in result["parameters"]] == ["sample.salt"]
    before, after = (
        {key: tar.name.partition("-")[0] for tar in side.glob("*/*.tar") for key in index(tar)["key"].to_pylist()}
        for side in (old, new)
    )
    moved = [key for key in before if after[key] != before[key]]
    assert len(moved) > 0
    assert sum(each["count"] for each in result["moved"]) == len(moved)
    for each in result["moved"]:
        assert {(before[key], after[key]) for key in each["examples"]} == {(each["from"], each["to"])}
    assert not result["unexplained_moves"]
    assert sum(row["in"] + row["out"] for row in result["splits"]) == 0


def test_a_category_added_and_one_removed(versions: Callable[..., Path]) -> None:
    one = versions(**{"source.categories": ["Demo_Toys"]})
    both = versions()
    result = differ(one, both)
    assert (result["added"], result["removed"]) == (["Demo_Kitchen"], [])
    rows = {row["split"]: row for row in result["splits"] if row["category"] == "Demo_Kitchen"}
    assert all(row["kept"] == row["out"] == 0 for row in rows.values())
    assert set(rows) == {"train", "validation", "test"}
    (drift,) = (d for d in result["drift"] if (d["category"], d["split"]) == ("Demo_Kitchen", "test"))
    assert (drift["old"], drift["ks"]) == ({"samples": 0}, None)
    assert "Demo_Kitchen (added)" in shown(result)
    back = differ(both, one)
    assert (back["added"], back["removed"]) == ([], ["Demo_Kitchen"])
    assert "Demo_Kitchen (removed)" in shown(back)
    named = differ(one, both, categories=["Demo_Toys"])
    assert not named["added"]


def test_a_changed_label_and_a_lost_image_are_reported(tmp_path: Path) -> None:
    old = make_shards(tmp_path / "old", SIZES)
    new = Path(shutil.copytree(old, tmp_path / "new"))

    def change(number: int, metadata: dict[str, Any]) -> None:
        if number == 5:
            metadata |= {"average_rating": 4.3, "has_image": False}

    rewrite(new / "Made", "train-001.tar", change)
    result = differ(old, new)
    assert result["metadata"] == [
        {
            "category": "Made",
            "fact": "average_rating",
            "count": 1,
            "examples": [{"key": "B000000005", "old": 1.5, "new": 4.3}],
        },
        {
            "category": "Made",
            "fact": "has_image",
            "count": 1,
            "examples": [{"key": "B000000005", "old": True, "new": False}],
        },
    ]
    (row,) = result["splits"]
    assert (row["split"], row["in"], row["out"], row["kept"], row["new"], row["gone"]) == ("train", 0, 0, 1, 1, 1)
    assert "B000000005 1.5 -> 4.3" in shown(result)
    assert [drift["split"] for drift in result["drift"]] == ["train"]


def test_changed_and_lost_tabular_values_are_reported_by_name(tmp_path: Path) -> None:
    old = make_shards(tmp_path / "old", {"train": [5, 4]})
    new = make_shards(tmp_path / "new", {"train": [5, 4]})

    def change(number: int, metadata: dict[str, Any]) -> None:
        metadata["tabular"] = {6: [12.5, None], 7: [None, 9.0]}.get(number, metadata["tabular"])

    rewrite(new / "Made", "train-001.tar", change)
    result = differ(old, new)
    assert result["metadata"] == [
        {
            "category": "Made", "fact": "price", "count": 2,
            "examples": [
                {"key": "B000000006", "old": None, "new": 12.5}, {"key": "B000000007", "old": 1.75, "new": None},
            ],
        },
        {
            "category": "Made", "fact": "image_count", "count": 2,
            "examples": [
                {"key": "B000000006", "old": 2.5, "new": None}, {"key": "B000000007", "old": 2.75, "new": 9.0},
            ],
        },
    ]  # fmt: skip
    assert "2 with a different price: B000000006 None -> 12.5" in shown(result)


def test_shards_without_tabular_columns_are_compared_with_others(tmp_path: Path) -> None:
    old = make_shards(tmp_path / "old", {"train": [5]}, tabular=())
    result = differ(old, make_shards(tmp_path / "new", {"train": [5]}))
    assert result["metadata"] == []
    assert [(one["name"], one["old"], one["new"]) for one in result["parameters"]] == [
        ("tabular", [], ["price", "image_count"])
    ]


def test_unexplained_split_changes_are_reported(tmp_path: Path) -> None:
    old = make_shards(tmp_path / "old", SIZES)
    new = Path(shutil.copytree(old, tmp_path / "new"))
    rewrite(new / "Made", "train-001.tar", lambda number, metadata: None, to="test-001.tar")
    result = differ(old, new)
    assert [(m["from"], m["to"], m["count"]) for m in result["moved"]] == [("train", "test", 3)]
    assert result["unexplained_moves"]
    assert "do not evaluate a model" in " ".join(shown(result).split())


def test_an_unreadable_version_is_an_error(tmp_path: Path) -> None:
    old = make_shards(tmp_path / "old", SIZES)
    new = Path(shutil.copytree(old, tmp_path / "new"))
    rewrite(new / "Made", "train-001.tar", lambda number, metadata: metadata.update(title="other"))
    (new / "Made/train-001.arrow").write_bytes(b"no index")
    with pytest.raises(UserError, match=r"new/Made/train-001.arrow cannot be read"):
        differ(old, new)
    (new / "Made/train-001.arrow").unlink()
    with pytest.raises(UserError, match=r"new/Made/train-001.arrow does not exist; run `dvc checkout`"):
        differ(old, new)
    with pytest.raises(UserError, match=r"has no <category>/manifest.json"):
        differ(old, tmp_path)


def test_names_from_the_data_are_not_markup(tmp_path: Path) -> None:
    old = make_shards(tmp_path / "old", SIZES)
    new = Path(shutil.copytree(old, tmp_path / "new"))
    path = new / "Made/manifest.json"
    path.write_text(path.read_text().replace('"revision": ""', '"revision": "[red]x[/red]"'))
    assert "[red]x[/red]" in shown(differ(old, new))


def test_a_refreshed_source_is_told_apart_by_what_changed(tmp_path: Path) -> None:
    old = make_shards(tmp_path / "old", {"train": [5, 4]})
    new = Path(shutil.copytree(old, tmp_path / "new"))

    def change(number: int, metadata: dict[str, Any]) -> None:
        if number == 6:
            metadata["title"] = "another thing"

    rewrite(new / "Made", "train-001.tar", change)
    assert differ(old, new)["content"] == [{"category": "Made", "what": "text", "count": 1, "examples": ["B000000006"]}]
    moved = Path(shutil.copytree(old, tmp_path / "moved"))
    path = moved / "Made/train-01-000.tar"
    samples = [sample(number, "Made", 6) for number in range(5, 9)]
    samples[2] = (samples[2][0], samples[2][1] + b"\xff\xd9")
    write_tar(path, samples)
    about = json.loads((moved / "Made/manifest.json").read_text())
    about["shards"][1] = msgspec.to_builtins(seal(path, "train", 4, HOW, tokens.load_tokenizer(HOW.name))) | {"band": 1}
    writers.write_json(moved / "Made/manifest.json", about)
    result = differ(old, moved)
    assert result["content"] == [
        {"category": "Made", "what": "band", "count": 4, "examples": [f"B00000000{n}" for n in (5, 6, 7, 8)]},
        {"category": "Made", "what": "image", "count": 1, "examples": ["B000000007"]},
    ]
    assert "Made, 4 in another band: B000000005" in shown(result)
    assert "Made, 1 with another image: B000000007" in shown(result)
