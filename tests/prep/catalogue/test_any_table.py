"""Whatever a table contains, each of its rows is an item or a reject, or there is an error message."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prep import records
from prep.catalogue.convert import _keep, line
from prep.catalogue.mapping import FIELDS
from prep.catalogue.rows import open_table
from prep.core.errors import UserError
from prep.core.params import TableParams

TABLE = TableParams(columns={name: (name, f"{name}2") for name in FIELDS}, rating_scale=(0, 100), image_folder="")  # type: ignore[arg-type,misc]
TEXT = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "nan",
            "1,234",
            "4.5 out of 5",
            "[",
            "['a', 'b']",
            '{"a": 1}',
            "a|b",
            "https://a/b.jpg",
            "../x.png",
            "x" * 5000,
            "a\0b.png",
        ]
    ),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.binary(max_size=8), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)
COLUMNS = [*FIELDS, *(f"{name}2" for name in FIELDS)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES), max_size=4))
def test_every_row_is_an_item_or_a_reject(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    image = partial(_keep, tmp_path / "images", str(tmp_path), Counter())
    lines = [line(row, TABLE, image) for row in rows]
    assert all(one.count(b"\n") == 1 for one in lines)
    items, rejects = records.parse_lines("items", b"".join(lines), 1)
    assert sorted(items["line"].to_pylist() + [one.line for one in rejects]) == list(range(1, len(rows) + 1))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.zst"]))
def test_any_bytes_are_rows_or_an_error_message(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    path.write_bytes(content)
    try:
        table = open_table(str(path))
        found = list(table.rows(table.columns))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(row, (dict, tuple)) for row in found)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({"id": TEXT, "name": TEXT}), min_size=1, max_size=5))
def test_a_table_is_read_as_it_was_written(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "table.jsonl"
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    except UnicodeEncodeError:  # lone surrogates
        return
    read = [list(open_table(str(tmp_path / name)).rows(["id", "name"])) for name in ("table.jsonl", "table.parquet")]
    assert read[0] == read[1]
    assert [row["name"] or "" for row in read[0] if isinstance(row, dict)] == [
        "" if row["name"] in records.ABSENT else row["name"] for row in rows
    ]
