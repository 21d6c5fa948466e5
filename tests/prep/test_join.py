import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.core.params import Params
from prep.core.tables.raw import ITEMS, REVIEWS
from prep.core.writers import write_table
from prep.join import join


def item(asin: str, line: int, count: int | None = 1) -> tuple:
    return (asin, line, "Toys", f"title {line}", 4.0, count, [], [], None, "{}", None, None, None, None, None, None)


def review(asin: str, stars: float, *, line: int, user: int = 0, time: int = 0) -> tuple:
    return (asin, line, user, stars, time, True)


def table_of(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema)


@pytest.fixture
def joined(tmp_path: Path, make_params: Callable[..., Params]) -> Callable[..., tuple[dict, dict]]:
    def run(items: list[tuple], reviews: list[tuple], rule: str = "all") -> tuple[dict, dict]:
        raw = tmp_path / "raw/Toys"
        write_table(raw / "items-000.parquet", table_of(items, ITEMS))
        write_table(raw / "reviews-000.parquet", table_of(reviews, REVIEWS))
        join("Toys", make_params(**{"join.reviews": rule, "download.buckets": 1}), tmp_path)
        table: pa.Table = pq.read_table(tmp_path / "items/Toys/items-000.parquet")
        report = json.loads((tmp_path / "items/Toys/report.json").read_text())
        return {row["parent_asin"]: row for row in table.to_pylist()}, report

    return run


def test_an_item_has_the_statistics_of_its_reviews(joined: Callable[..., tuple[dict, dict]]) -> None:
    reviews = [review("A", 5.0, line=1, time=10), review("A", 2.0, line=2, time=30), review("A", 2.0, line=3, time=20)]
    rows, _ = joined([item("A", 1), item("B", 2)], reviews)
    assert rows["A"]["review_count"] == 3
    assert rows["A"]["review_mean"] == pytest.approx(3.0)
    assert rows["A"]["review_spread"] == pytest.approx(2**0.5)
    assert (rows["A"]["first_review"], rows["A"]["last_review"]) == (10, 30)
    assert rows["A"]["verified_share"] == 1.0
    assert (rows["B"]["review_count"], rows["B"]["review_mean"]) == (0, None)


def test_duplicates_orphans_and_zero_ratings_are_counted_and_do_not_count(
    joined: Callable[..., tuple[dict, dict]],
) -> None:
    reviews = [
        review("A", 5.0, line=1),
        review("A", 5.0, line=1),
        review("A", 0.0, line=2),
        review("Z", 5.0, line=3),
    ]
    rows, report = joined([item("A", 1), item("B", 2)], reviews)
    assert rows["A"]["review_count"] == 1
    assert report["tables"]["reviews"] == {
        "rows_in": 4,
        "rows_out": 1,
        "dropped": {"duplicate_line": 1, "no_item": 1, "rating_out_of_range": 1},
    }
    assert report["items_without_reviews"] == 1


def test_the_first_row_with_the_most_ratings_of_an_id_is_kept(joined: Callable[..., tuple[dict, dict]]) -> None:
    rows, report = joined([item("A", 1, 3), item("A", 2, 9), item("A", 3, 9), item("B", 4, None)], [])
    assert rows["A"]["title"] == "title 2"
    assert report["tables"]["items"] == {"rows_in": 4, "rows_out": 2, "dropped": {"duplicate_id": 2}}


def test_first_by_user_counts_only_the_first_review_of_a_user(joined: Callable[..., tuple[dict, dict]]) -> None:
    reviews = [review("A", 1.0, line=1, user=7, time=20), review("A", 5.0, line=2, user=7, time=10)]
    assert joined([item("A", 1)], reviews)[0]["A"]["review_mean"] == 3.0
    rows, report = joined([item("A", 1)], reviews, "first_by_user")
    assert rows["A"]["review_mean"] == 5.0
    assert report["tables"]["reviews"]["dropped"] == {"later_by_user": 1}


def test_metadata_and_reviews_are_compared(joined: Callable[..., tuple[dict, dict]]) -> None:
    reviews = [review("A", 4.0, line=1), review("A", 4.0, line=2), review("B", 1.0, line=3)]
    _, report = joined([item("A", 1, 2), item("B", 2, 5), item("C", 3, 0), item("D", 4, None)], reviews)
    assert report["rating_number_less_review_count"] == {
        "items": 3, "mean": 1.3333, "mean_absolute": 1.3333, "share_equal": 0.6667,
    }  # fmt: skip
    assert report["average_rating_less_review_mean"] == {
        "items": 2, "mean": 1.5, "mean_absolute": 1.5, "share_equal": 0.5,
    }  # fmt: skip
