"""Checks of the columns of one table: schema, the rules of its suite, and unique keys.

Input: a suite, and the table's parquet or Arrow files or a table in memory. Output: verdicts. Guarantees: rules are
evaluated on batches of at most `ROWS_PER_BATCH` rows and keys are compared about `ROWS_PER_PART` rows at a time, so
that memory grows with the number of rows only by the key columns.

Rules can also name derived columns: "size of title" is the number of characters of a string or of elements of a list,
and "size of hi_res + large" is the sum of two sizes; null, an empty string and an empty JSON object have size 0.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep.core import files
from prep.core.hashes import hashes
from prep.core.progress import counted
from validation.suites import Rule, Suite
from validation.verdicts import EXAMPLES_SHOWN, Verdict, judge

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

SCHEMA = "columns, column order and types as in prep/core/tables"
ROWS_PER_BATCH = 200_000  # rows that Great Expectations validates at once
ROWS_PER_PART = 1_000_000  # rows with keys compared at once
SIZE = "size of "
_CHUNK = 10_000  # rows read at once; 10,000 images take about 100 MB

Rows: TypeAlias = "Path | pa.Table"  # a file, or a table in memory


def schema_of(path: Rows) -> pa.Schema:
    """Return the schema of a parquet or Arrow file, or of a table."""
    if isinstance(path, pa.Table):
        return path.schema
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).schema
    return pq.read_schema(path)


def rows_of(path: Rows) -> int:
    """Return the number of rows of a parquet or Arrow file, or of a table."""
    if isinstance(path, pa.Table):
        return int(path.num_rows)
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            return int(pa.ipc.open_file(source).count_rows())
    return int(pq.read_metadata(path).num_rows)


def chunks(paths: Sequence[Rows], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of files in order as batches with `columns` only; a derived column gives its source columns."""
    names = list(dict.fromkeys(source for column in columns for source in source_columns(column)))
    for path in paths:
        if isinstance(path, pa.Table):
            yield from path.select(names).to_batches(_CHUNK)
        elif path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                yield from (reader.get_batch(i).select(names) for i in range(reader.num_record_batches))
        else:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_CHUNK, columns=names)


def values(chunk: pa.RecordBatch, column: str) -> pa.Array:
    """Return a column of a chunk; a derived column is int64 without nulls."""
    if not column.startswith(SIZE):
        return chunk[column]
    return reduce(pc.add, (_size(chunk[source]) for source in source_columns(column)))


def source_columns(column: str) -> list[str]:
    """Return the table's columns that a column is computed from: itself, unless it is derived."""
    return column.removeprefix(SIZE).split(" + ") if column.startswith(SIZE) else [column]


def _size(array: pa.Array) -> pa.Array:
    if pa.types.is_list(array.type):
        sizes = pc.list_value_length(array)
    else:
        sizes = pc.if_else(pc.equal(array, "{}"), 0, pc.utf8_length(array))
    return pc.cast(pc.fill_null(sizes, 0), pa.int64())


def read_columns(paths: Sequence[Rows], columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return `columns` of all rows of the files, in order."""
    wanted = pa.schema([field.with_nullable(True) for field in schema if field.name in columns])
    return pa.Table.from_batches([_cast(chunk, wanted) for chunk in chunks(paths, wanted.names)], wanted)


def _cast(chunk: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([chunk[name] for name in schema.names], schema=schema)


def by_key(key: str, *tables: pa.Table) -> Iterator[tuple[pa.Table, ...]]:
    """Split tables by a hash of column `key` into parts of about `ROWS_PER_PART` rows, with equal keys in one part.

    A join or group-by on the key then needs the memory of one part only.

    Yields:
        For each part, one table per input table.
    """
    count = max(1, -(-max(table.num_rows for table in tables) // ROWS_PER_PART))
    if count == 1:
        yield tables
        return
    numbers = [_parts_of(table[key], count) for table in tables]
    for number in range(count):
        yield tuple(table.filter(pa.array(own == number)) for table, own in zip(tables, numbers, strict=True))


def _parts_of(keys: pa.ChunkedArray, count: int) -> "npt.NDArray[np.uint16]":
    texts = (chunk.cast(pa.string()).to_pylist() for chunk in keys.chunks)
    found = [(hashes("validation", text) % np.uint64(count)).astype(np.uint16) for text in texts]
    return np.concatenate([np.empty(0, np.uint16), *found])


def check_columns(table: str, suite: Suite, paths: Sequence[Rows]) -> list[Verdict]:
    """Check the files of a table, or a table in memory, against its suite.

    Returns:
        A verdict for the schema; if that passes, also one for each rule and one for the key.
    """
    faults = ((path, _schema_fault(schema_of(path), suite.schema)) for path in paths)
    wrong = [f"{path.name}: {fault}" if isinstance(path, Path) else fault for path, fault in faults if fault]
    schema = judge(table, SCHEMA, len(paths), wrong)
    if not schema.passed:
        return [schema]
    verdicts = [schema, *_check_rules(table, suite, paths)]
    return [*verdicts, _check_key(table, suite, paths)] if suite.key else verdicts


def _schema_fault(found: pa.Schema, expected: pa.Schema) -> str:
    """Return the first difference in names, order or types, or ""; nulls in required columns have their own rules."""
    if found.names != expected.names:
        missing = [name for name in expected.names if name not in found.names]
        unknown = [name for name in found.names if name not in expected.names]
        if missing or unknown:
            return f"columns missing {missing}, unknown {unknown}"
        return f"columns in order {found.names}"
    different = [(a, b) for a, b in zip(found, expected, strict=True) if a.type != b.type]
    return f"{different[0][0].name} is {different[0][0].type}, not {different[0][1].type}" if different else ""


def _check_rules(table: str, suite: Suite, paths: Sequence[Rows]) -> list[Verdict]:
    rows = 0
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {rule.name: [] for rule in suite.rules}
    with counted(f"validate {table}: rows", sum(map(rows_of, paths))) as advance:
        for frame in _frames(suite, paths):
            rows += len(frame)
            for rule, count, positions in _expect(suite.rules, frame):
                counts[rule.name] += count
                examples[rule.name] += [_describe_row(suite, rule, frame, i) for i in positions]
            advance(len(frame))
    return [
        Verdict(
            *(table, rule.name, rows, counts[rule.name], int(rule.fail_above * rows)),
            tuple(examples[rule.name][:EXAMPLES_SHOWN]),
            int(rule.warn_above * rows),
        )
        for rule in suite.rules
    ]


def _frames(suite: Suite, paths: Sequence[Rows]) -> Iterator["pd.DataFrame"]:
    """Yield batches for Great Expectations; a column that is only checked for nulls is reduced to true or null.

    This keeps texts, lists and images in memory for one chunk of rows only.
    """
    valued = {*suite.label} | {c for r in suite.rules if r.kind != "ExpectColumnValuesToNotBeNull" for c in r.columns}
    columns = list(dict.fromkeys([*suite.label, *(column for rule in suite.rules for column in rule.columns)]))
    batch: list[pa.Table] = []
    for chunk in chunks(paths, columns):
        arrays = [
            values(chunk, name) if name in valued else pc.if_else(pc.is_valid(chunk[name]), True, None)
            for name in columns
        ]
        batch.append(pa.table(arrays, columns))
        if sum(table.num_rows for table in batch) + _CHUNK > ROWS_PER_BATCH:
            yield pa.concat_tables(batch).to_pandas()
            batch = []
    if any(table.num_rows for table in batch):
        yield pa.concat_tables(batch).to_pandas()


@cache
def _great_expectations() -> tuple[Any, Any]:
    """Import Great Expectations (takes seconds); return it and a batch definition for frames, without progress bars."""
    files.ensure_home()  # which it looks for on import
    log = logging.getLogger("great_expectations")
    log.setLevel(logging.ERROR)  # before the import, which logs hundreds of lines
    log.propagate = False  # some of its modules set their own level; errors still go to stderr
    import great_expectations as gx  # noqa: PLC0415
    from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: PLC0415

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("tables").add_dataframe_asset("table")
    return gx, asset.add_batch_definition_whole_dataframe("rows")


def _expect(rules: Sequence[Rule], frame: "pd.DataFrame") -> Iterator[tuple[Rule, int, list[int]]]:
    """Evaluate rules on a frame; yield each rule, its number of unexpected rows and the positions of some of them.

    Raises:
        RuntimeError: Great Expectations could not evaluate a rule, which is a bug in the suite.
    """
    gx, definition = _great_expectations()
    named = {rule.name: rule for rule in rules}
    suite = gx.ExpectationSuite(name="suite")
    for rule in rules:
        expectation = getattr(gx.expectations, rule.kind)
        suite.add_expectation(expectation(**rule.arguments, meta={"name": rule.name}))
    batch = definition.get_batch(batch_parameters={"dataframe": frame})
    for result in batch.validate(suite, result_format="SUMMARY").results:
        if "unexpected_count" not in result.result:
            raise RuntimeError(f"{result.expectation_config.meta['name']}: {result.exception_info}")
        positions = [int(i) for i in result.result.get("partial_unexpected_index_list") or ()]
        yield named[result.expectation_config.meta["name"]], int(result.result["unexpected_count"]), positions


def _describe_row(suite: Suite, rule: Rule, frame: "pd.DataFrame", position: int) -> str:
    key = " ".join(str(frame[name].iloc[position]) for name in suite.label)
    values = [f"{name} {frame[name].iloc[position]}" for name in rule.columns if name not in suite.label]
    return f"{key} ({', '.join(values)})" if values else key


def _check_key(table: str, suite: Suite, paths: Sequence[Rows]) -> Verdict:
    keys = read_columns(paths, suite.key, suite.schema).drop_null()  # null keys have their own rule
    different, repeated = 0, []
    for (bucket,) in by_key(suite.key[-1], keys):
        counted = bucket.group_by(list(suite.key)).aggregate([([], "count_all")])
        different += counted.num_rows
        duplicates = counted.filter(pc.greater(counted["count_all"], 1))
        repeated += duplicates.sort_by([(name, "ascending") for name in suite.key]).slice(0, EXAMPLES_SHOWN).to_pylist()
    repeated.sort(key=lambda row: [row[name] for name in suite.key])
    return Verdict(
        table,
        f"{' and '.join(suite.key)} unique",
        keys.num_rows,
        keys.num_rows - different,
        examples=tuple(
            f"{' '.join(str(row[n]) for n in suite.key)} ({row['count_all']} times)"
            for row in repeated[:EXAMPLES_SHOWN]
        ),
    )
