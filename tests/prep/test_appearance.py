"""A split by time tests on the products that appeared last, with whole groups and nested fractions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prep.appearance import listed_day
from prep.core.buckets import bucket_files
from prep.core.errors import UserError
from prep.core.params import Params
from prep.groups import groups
from prep.sample import sample
from tests.prep.joined import write_items

DAY = 86_400_000
FIRST = 15_000  # days since 1970
TIMED = {"sample.split": "time", "sample.require": [], "sample.min_chars": 0, "sample.fraction": 1.0}


def product(number: int, **fields: Any) -> dict[str, Any]:
    return {"parent_asin": f"P{number:03d}", "first_review": (FIRST + number) * DAY, "review_count": 1} | fields


def made(tmp_path: Path, params: Params, rows: list[dict[str, Any]], category: str = "Demo_Toys") -> dict[str, Any]:
    """Return the rows of the sample by parent_asin."""
    write_items(tmp_path, category, rows, params.download.buckets)
    groups(params, tmp_path)
    sample(category, params, tmp_path)
    found = [
        row for path in (tmp_path / "sample" / category).glob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    return {row["parent_asin"]: row for row in found}


@pytest.fixture
def timed(make_params: Callable[..., Params]) -> Callable[..., Params]:
    return lambda **changes: make_params(**(TIMED | {"source.categories": ["Demo_Toys"]} | changes))


def test_the_last_products_are_tested_and_those_before_them_validated(
    tmp_path: Path, timed: Callable[..., Params]
) -> None:
    found = made(tmp_path, timed(), [product(number) for number in range(100)])
    by_split = {
        split: sorted(k for k, row in found.items() if row["split"] == split) for split in ("train", "validation")
    }
    assert by_split["train"] == [f"P{number:03d}" for number in range(80)]
    assert by_split["validation"] == [f"P{number:03d}" for number in range(80, 90)]
    assert len(found) == 100


def test_a_smaller_fraction_keeps_the_splits_and_is_a_subset(tmp_path: Path, timed: Callable[..., Params]) -> None:
    rows = [product(number) for number in range(200)]
    whole = made(tmp_path / "whole", timed(), rows)
    part = made(tmp_path / "part", timed(**{"sample.fraction": 0.4}), rows)
    assert len(part) < len(whole)
    assert all(whole[key] == row for key, row in part.items())


def test_a_group_is_in_one_split_with_its_first_item(tmp_path: Path, timed: Callable[..., Params]) -> None:
    rows = [product(number) for number in range(100)]
    rows[99]["title"] = rows[3]["title"] = "the same product"
    found = made(tmp_path, timed(), rows)
    assert found["P003"]["split"] == found["P099"]["split"] == "train"


def test_an_id_in_two_categories_appears_once(tmp_path: Path, timed: Callable[..., Params]) -> None:
    params = timed(**{"source.categories": ["Demo_Toys", "Demo_Kitchen"]})
    write_items(tmp_path, "Demo_Kitchen", [product(5, first_review=(FIRST + 500) * DAY)], params.download.buckets)
    made(tmp_path, params, [product(number) for number in range(100)])
    tables = [pq.read_table(path) for path in (tmp_path / "groups").rglob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist() if row["parent_asin"] == "P005"]
    assert [row["appeared"] for row in rows] == [0.05, 0.05]


def test_the_date_of_a_detail_counts_where_there_are_no_reviews(tmp_path: Path, timed: Callable[..., Params]) -> None:
    rows = [product(number) for number in range(98)]
    detail = json.dumps({"Date First Available": "January 1, 2040"})
    rows += [product(98, first_review=None, details=detail), product(99, first_review=None)]
    found = made(tmp_path, timed(), rows)
    assert found["P098"]["split"] == "test"
    assert found["P099"]["split"] == "train"  # it has no time


def test_without_any_time_there_is_an_error(tmp_path: Path, timed: Callable[..., Params]) -> None:
    with pytest.raises(UserError, match=r"sample\.split is time, but no item has one"):
        made(tmp_path, timed(), [product(number, first_review=None) for number in range(9)])


def test_a_split_by_hash_reads_no_times(tmp_path: Path, timed: Callable[..., Params]) -> None:
    made(tmp_path, timed(**{"sample.split": "hash"}), [product(number) for number in range(50)])
    tables = map(pq.read_table, bucket_files(tmp_path / "groups/Demo_Toys", "groups"))
    assert sum(table["appeared"].null_count for table in tables) == 50


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("January 5, 2015", 16440),
        ("5 January 2015", 16440),
        ("\u200e January 5, 2015", 16440),
        ("2015-01-05T23:59:00Z", 16440),
        ("1420416000000", 16440),
        ("2015", 16436),
        ("soon", None),
        ("9999999999999999", None),
        ("", None),
    ],
)
def test_dates_are_read_as_shops_write_them(text: str, day: int | None) -> None:
    assert listed_day(json.dumps({"Date First Available": text}, ensure_ascii=False)) == day


def test_other_details_have_no_date() -> None:
    assert listed_day('{"Brand": "2015"}') is None
    assert listed_day('"Date First Available') is None
    assert listed_day('["Date First Available"]') is None
