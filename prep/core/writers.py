"""Write tables and reports.

Input: a path and content.
Output: a file, written atomically (`prep.core.files`).
Guarantees: the same content gives the same bytes with the pinned libraries.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from prep.core.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd  # takes long to import, and most users of this module have no frame

_ROW_GROUP = 10_000  # rows


def write_json(path: Path, content: Any) -> None:
    """Write `content` (JSON types and msgspec structs) as indented JSON with sorted keys."""
    text = json.dumps(msgspec.to_builtins(content), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, frame: "pd.DataFrame") -> None:
    """Write `frame` without its index as CSV, floats with six significant digits."""
    with atomic_write(path) as partial:
        frame.to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` as parquet; the same rows give the same bytes with the pinned pyarrow."""
    write_batches(path, table.schema, table.to_batches())


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write rows as parquet with one row group in memory at a time, and return the number of rows.

    The bytes depend only on the rows, not on how they are divided into batches.
    """
    pending: list[pa.RecordBatch] = []
    total = pending_rows = 0
    # Dictionary-encode strings only: for numbers, hashes in particular, a dictionary costs time and space.
    texts = [field.name for field in schema if field.type == pa.string()]
    texts += [f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.string())]
    with (
        atomic_write(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=texts) as writer,
    ):
        for batch in batches:
            pending.append(batch)
            pending_rows += batch.num_rows
            if pending_rows >= _ROW_GROUP:
                rows = pa.Table.from_batches(pending, schema)
                for start in range(0, pending_rows - _ROW_GROUP + 1, _ROW_GROUP):
                    writer.write_table(rows.slice(start, _ROW_GROUP).combine_chunks())
                    total += _ROW_GROUP
                rest = rows.slice(pending_rows // _ROW_GROUP * _ROW_GROUP)
                pending, pending_rows = rest.to_batches(), rest.num_rows
        if pending_rows:
            writer.write_table(pa.Table.from_batches(pending, schema).combine_chunks())
    return total + pending_rows
