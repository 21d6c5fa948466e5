"""Buckets contain all rows, in order, and are the same on every machine."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.core.buckets import bucket_files, bucket_names, bucket_of, item_order, read_bucket, sorted_items, write_piece
from prep.core.tables.raw import ITEMS, REVIEWS

ROWS = pa.schema([("parent_asin", pa.string()), ("parts", pa.list_(pa.string())), ("number", pa.float64())])
ROW = st.fixed_dictionaries(
    {
        "parent_asin": st.text(st.sampled_from("AB01"), min_size=1, max_size=3),
        "parts": st.none() | st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=3), max_size=3),
        "number": st.none() | st.floats(allow_nan=False),
    }
)
COUNTS = st.integers(1, 9) | st.sampled_from([64, 1000, 4096])
IDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), unique=True, max_size=50)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.lists(st.tuples(ROW, st.integers(0, 3)), max_size=6), max_size=4))
def test_a_bucket_has_its_rows_in_the_order_of_pieces_and_rows(pieces: list[list[tuple[dict, int]]]) -> None:
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / "new" / f"{number}.arrow" for number in range(len(pieces))]
        for path, piece in zip(paths, pieces, strict=True):
            table = pa.Table.from_pylist([row for row, _ in piece], ROWS)
            write_piece(path, table, np.array([bucket for _, bucket in piece], np.int64), 4)
        for bucket in range(4):
            batches = list(read_bucket(paths, bucket))
            assert all(batch.schema == ROWS for batch in batches)
            assert [row for batch in batches for row in batch.to_pylist()] == [
                row for piece in pieces for row, number in piece if number == bucket
            ]


@pytest.mark.parametrize("schema", [ITEMS, REVIEWS])
def test_an_empty_table_is_written_to_every_bucket(tmp_path: Path, schema: pa.Schema) -> None:
    write_piece(tmp_path / "piece", schema.empty_table(), np.array([], np.int64), 3)
    batches = [batch for number in range(3) for batch in read_bucket([tmp_path / "piece"], number)]
    assert [(batch.schema, batch.num_rows) for batch in batches] == [(schema, 0)] * 3
    assert list(read_bucket([], 0)) == []


@given(hashes=st.lists(st.integers(0, 2**64 - 1)), count=COUNTS)
def test_a_bucket_is_a_range_of_the_hash(hashes: list[int], count: int) -> None:
    numbers = bucket_of(np.array(sorted([0, *hashes, 2**64 - 1]), np.uint64), count)
    assert (np.diff(numbers) >= 0).all()
    assert (numbers[0], numbers[-1]) == (0, count - 1)


def test_buckets_have_equal_sizes() -> None:
    order = item_order(pa.array([f"B{number:09d}" for number in range(40_000)]))
    sizes = np.bincount(bucket_of(order, 8))
    assert len(sizes) == 8
    assert abs(sizes - 5_000).max() < 5 * 5_000**0.5  # five standard deviations


@given(ids=IDS, count=COUNTS)
def test_concatenated_buckets_are_sorted_for_any_number_of_buckets(ids: list[str], count: int) -> None:
    table = pa.table({"parent_asin": pa.array(ids, pa.string())})
    whole = sorted_items(table)
    numbers = bucket_of(item_order(table["parent_asin"]), count)
    buckets = [sorted_items(table.filter(pa.array(numbers == number))) for number in np.unique(numbers)]
    assert pa.concat_tables([whole.slice(0, 0), *buckets]).equals(whole)
    assert sorted_items(table.take(np.arange(len(ids))[::-1])).equals(whole)


def test_item_order_is_the_same_on_every_machine_and_version() -> None:
    ids = ["B000000001", "B000000002", "0123456789", "b"]
    assert [f"{value:016x}" for value in item_order(pa.array(ids))] == [
        "98778c10eb74eac1",
        "b949d709288ec1d8",
        "5a814e2ea81798fc",
        "e710cdf1a79951b4",
    ]
    assert bucket_of(item_order(pa.chunked_array([ids])), 100).tolist() == [59, 72, 35, 90]
    assert sorted_items(pa.table({"parent_asin": ids}))["parent_asin"].to_pylist() == [
        "0123456789",
        "B000000001",
        "B000000002",
        "b",
    ]


@pytest.mark.parametrize("count", [1, 12, 1200])
def test_bucket_files_are_found_in_the_order_of_their_numbers(tmp_path: Path, count: int) -> None:
    names = bucket_names("items", count)
    for name in [*names, "reviews-000.parquet", "rejects.parquet", "report.json"]:
        (tmp_path / name).touch()
    assert [path.name for path in bucket_files(tmp_path, "items")] == names
