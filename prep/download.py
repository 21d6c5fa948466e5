"""Download: the raw lines of a category, typed, in buckets.

In: ``meta_<category>.jsonl`` and ``<category>.jsonl`` of the source. Out: ``data/raw/<category>/`` with
``items-NNN.parquet`` and ``reviews-NNN.parquet``, a bucket by hash of parent_asin each, ``rejects.parquet`` and
``report.json``. Guaranteed: items and reviews of one product stand in buckets of the same number; every line is a
row or a reject with its reason; memory is bounded by the row groups of the open buckets, not by the lines; no
review text and no user id is stored.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prep import files
from prep.faults import Funnel, UserError, check_budget
from prep.params import Params
from prep.records import Reject, item_row, review_row
from prep.source import Table, raw_file
from prep.strata import hash64
from prep.tables import ITEMS, REJECTS, REVIEWS

_ROW_GROUP = 10_000  # rows of a bucket held in memory


def download(category: str, params: Params, data: Path = Path("data")) -> None:
    """Write ``data/raw/<category>``.

    Raises:
        UserError: a raw file is missing, cannot be read, holds no line, or is over ``download.bad_share``.
    """
    with files.folder(data / "raw" / category) as out:
        rejects: list[tuple[str, int, str]] = []
        tables = {"items": _type_lines("items", category, params, out, rejects)}
        if params.source.reviews:
            tables["reviews"] = _type_lines("reviews", category, params, out, rejects)
        else:
            _Buckets(out, "reviews", REVIEWS, params.download.buckets).close()
            tables["reviews"] = Funnel.of(0, {})
        files.write_table(out / "rejects.parquet", table_of(rejects, REJECTS))
        files.write_json(out / "report.json", {"stage": "download", "category": category, "tables": tables})


def bucket_files(folder: Path, table: Table) -> list[Path]:
    """Return the bucket files of a table of ``data/raw/<category>`` or ``data/items/<category>``, in order."""
    return sorted(folder.glob(f"{table}-*.parquet"))


def table_of(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Make a table of `schema` from rows in its column order."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )


class _Buckets:
    """The files of a table: rows spread by hash of parent_asin, each written a row group at a time."""

    def __init__(self, folder: Path, table: Table, schema: pa.Schema, buckets: int) -> None:
        self._schema = schema
        self._rows: list[list[tuple[Any, ...]]] = [[] for _ in range(buckets)]
        self._writers = [
            pq.ParquetWriter(folder / f"{table}-{number:03d}.parquet", schema, compression="zstd")
            for number in range(buckets)
        ]

    def add(self, row: tuple[Any, ...]) -> None:
        """Add a row; its first column is the parent_asin."""
        bucket = hash64("effimini/bucket", row[0]) % len(self._rows)
        self._rows[bucket].append(row)
        if len(self._rows[bucket]) == _ROW_GROUP:
            self._flush(bucket)

    def close(self) -> None:
        """Write what is left and close the files."""
        for bucket, writer in enumerate(self._writers):
            self._flush(bucket)
            writer.close()

    def _flush(self, bucket: int) -> None:
        self._writers[bucket].write_table(table_of(self._rows[bucket], self._schema))
        self._rows[bucket].clear()


def _type_lines(
    table: Table,
    category: str,
    params: Params,
    out: Path,
    rejects: list[tuple[str, int, str]],
) -> Funnel:
    """Turn one raw file into the buckets of one table; append its rejects and return its funnel."""
    to_row: Callable[[bytes, int], tuple[Any, ...]] = item_row if table == "items" else review_row
    buckets = _Buckets(out, table, ITEMS if table == "items" else REVIEWS, params.download.buckets)
    reasons: Counter[str] = Counter()
    number = 0
    raw = raw_file(params.source, table, category)
    name = Path(raw.name).name
    for number, line in enumerate(_lines(raw.chunks()), start=1):
        try:
            buckets.add(to_row(line, number))
        except Reject as reject:
            reasons[str(reject)] += 1
            rejects.append((name, number, str(reject)))
    buckets.close()
    check_budget(
        reasons,
        number,
        params.download.bad_share,
        f"lines of {name}",
        f"look at the file, or raise download.bad_share ({params.download.bad_share})",
    )
    if table == "items" and number == 0:
        raise UserError(f"{name} of the source is empty; check source.location and source.categories")
    return Funnel.of(number, reasons)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines of bytes that come in pieces, each with its end."""
    rest = b""
    for chunk in chunks:
        lines = io.BytesIO(rest + chunk).readlines()
        rest = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
        yield from lines
    if rest:
        yield rest
