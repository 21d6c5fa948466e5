"""The columns and the text of an item are the same in the shards and in what predict reads."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from effimini.input_csv import INPUT_COLUMNS
from effimini.model import Config
from effimini.predict import read_items
from prep import demo
from prep.core.fields import LABELS, assemble
from prep.core.params import Params
from prep.core.tables.tabular import TABULAR_NAMES
from prep.records import parse_lines
from shards.stream import ShardDataset

RAW = ("store", "details", "price", "images", "videos", "categories")
CONFIG = cast(Config, SimpleNamespace(fields=tuple(LABELS)))


def cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def written(path: Path, rows: list[dict[str, Any]], write: Callable[[Any], str] = cell) -> Path:
    """Write lines of the dataset as the CSV file that predict reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*INPUT_COLUMNS, *RAW), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows({name: write(value) for name, value in row.items()} for row in rows)
    return path


@pytest.mark.parametrize("write", [cell, lambda value: "" if value is None else str(value)], ids=["json", "python"])
def test_predict_reads_the_columns_and_the_text_that_the_shards_have(
    write: Callable[[Any], str], stored: dict[str, tuple[str, list[float | None]]], lines: list[str], tmp_path: Path
) -> None:
    rows = {row["parent_asin"]: row for row in map(json.loads, lines)}
    items = read_items(written(tmp_path / "items.csv", [rows[key] for key in stored], write), tmp_path, CONFIG)
    assert {item.id: (item.text, list(item.tabular)) for item in items} == stored


@pytest.fixture(scope="module")
def lines(made: tuple[Params, Path]) -> list[str]:
    """The lines of the demo that can be read."""
    params, data = made
    source = params.source
    demo.write_catalogue(data / "demo", source.categories[:1], source.demo.items, source.demo.seed)
    content = (data / f"demo/raw/meta_categories/meta_{source.categories[0]}.jsonl").read_text().splitlines()
    return [line for line in content if not parse_lines("items", line.encode() + b"\n", 1)[1]]


@pytest.fixture(scope="module")
def made(
    make_params: Callable[..., Params], run_to: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Params, Path]:
    folder = tmp_path_factory.mktemp("tabular")
    params = make_params(**{"source.categories": ["Demo_Toys"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder / "store"))
        run_to(params, folder / "data", "shard")
    return params, folder / "data"


@pytest.fixture(scope="module")
def stored(made: tuple[Params, Path]) -> dict[str, tuple[str, list[float | None]]]:
    """The text and the columns of every item in the shards."""
    params, data = made
    found = {}
    for split in ("train", "validation", "test"):
        dataset = ShardDataset(data / "shards", params.source.categories, split)
        assert dataset.tabular_names == TABULAR_NAMES
        for number in range(len(dataset)):
            metadata = dataset.metadata(number)
            found[metadata["parent_asin"]] = assemble(metadata, tuple(LABELS)), metadata["tabular"]
    return found


def test_a_leak_in_the_details_changes_no_column_and_no_text(tmp_path: Path, lines: list[str]) -> None:
    plain = [json.loads(line) for line in lines]
    leaking = [
        row
        | {
            "details": {
                "Best Sellers Rank": {"Toys": int(1000 / row["average_rating"])},
                **row["details"],
                "Customer Reviews": {"rating": row["average_rating"], "count": row["rating_number"]},
            }
        }
        for row in plain
    ]
    found = [read_items(written(tmp_path / "items.csv", rows), tmp_path, CONFIG) for rows in (plain, leaking)]
    assert found[0] == found[1]


def test_fields_that_are_not_given_are_missing(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(f"{','.join(INPUT_COLUMNS)}\nA1,,a title,,,\n")
    (item,) = read_items(tmp_path / "items.csv", tmp_path, CONFIG)
    found = dict(zip(TABULAR_NAMES, item.tabular, strict=True))
    assert {name: value for name, value in found.items() if value is not None} == {
        "price_missing": 1, "title_length": 7, "title_numbers": 0, "title_truncated": 0, "feature_count": 0,
        "detail_count": 0,
    }  # fmt: skip
