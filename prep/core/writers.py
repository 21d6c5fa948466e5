"""How tables and reports are written: the same content gives the same bytes with the pinned libraries.

In: a path and content. Out: a file that appears whole or not at all (`prep.core.files`).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from prep.core.files import atomic_write

_ROW_GROUP = 10_000  # rows


def write_json(path: Path, content: Any) -> None:
    """Write `content` (JSON types and msgspec structs) as indented JSON with sorted keys."""
    text = json.dumps(msgspec.to_builtins(content), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_table(path: Path, table: pa.Table) -> None:
    """Write `table` as parquet: the same rows give the same bytes with the pinned pyarrow."""
    write_batches(path, table.schema, table.to_batches())


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write rows as parquet, a row group in memory at a time, and return how many they are.

    The bytes depend on the rows alone, not on how they come in batches.
    """
    held: list[pa.RecordBatch] = []
    total = waiting = 0
    # A dictionary of numbers, hashes above all, takes more time and room than they do.
    texts = [field.name for field in schema if field.type == pa.string()]
    texts += [f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.string())]
    with (
        atomic_write(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=texts) as writer,
    ):
        for batch in batches:
            held.append(batch)
            waiting += batch.num_rows
            if waiting >= _ROW_GROUP:
                rows = pa.Table.from_batches(held, schema)
                for start in range(0, waiting - _ROW_GROUP + 1, _ROW_GROUP):
                    writer.write_table(rows.slice(start, _ROW_GROUP).combine_chunks())
                    total += _ROW_GROUP
                rest = rows.slice(waiting // _ROW_GROUP * _ROW_GROUP)
                held, waiting = rest.to_batches(), rest.num_rows
        if waiting:
            writer.write_table(pa.Table.from_batches(held, schema).combine_chunks())
    return total + waiting
