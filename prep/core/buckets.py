"""Rows spread over buckets by hash of parent_asin, without holding a table: pieces are written, buckets are read.

In: tables, a part of all rows each. Out: pieces, files in which the rows of a bucket lie together. Guaranteed: an item
and its reviews, and one parent_asin in whatever category, have the same bucket number; a bucket is a range of the
hash by which `ORDER_SALT` orders items; its rows come in the order of the pieces, then of their rows.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.core import files
from prep.core.errors import UserError
from prep.core.hashes import hashes

# The order of items from the join on: by this hash of parent_asin, ties by parent_asin. A bucket is a range of it, so
# buckets one after another are in order whatever their number.
ORDER_SALT = "effimini/item"


def bucket_name(table: str, number: int) -> str:
    """Return the name of a bucket file of a table."""
    return f"{table}-{number:03d}.parquet"


def bucket_names(table: str, count: int) -> list[str]:
    """Return the names of the bucket files of a table, in order."""
    return [bucket_name(table, number) for number in range(count)]


def bucket_files(folder: Path, table: str) -> list[Path]:
    """Return the bucket files of a table of ``data/raw``, ``data/items`` or ``data/groups`` of a category, in order."""
    return sorted(folder.glob(f"{table}-*.parquet"), key=lambda path: (len(path.name), path.name))


def all_buckets(folder: Path, table: str, count: int, stage: str) -> list[Path]:
    """Return the bucket files of a table of a category, in order, which are to be `count`.

    Raises:
        UserError: they are not; the sentence names the stage to run.
    """
    paths = bucket_files(folder, table)
    if len(paths) != count:
        raise UserError(
            f"{folder} holds {len(paths)} buckets of {table}, download.buckets is {count}; run `dvc repro {stage}`"
        )
    return paths


def item_order(asins: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Return the hash by which items are ordered, of each parent_asin."""
    return hashes(ORDER_SALT, asins.to_numpy(zero_copy_only=False))


def sorted_items(table: pa.Table) -> pa.Table:
    """Return the rows in the order of items."""
    keys = pa.table({"order": item_order(table["parent_asin"]), "parent_asin": table["parent_asin"]})
    return table.take(pc.sort_indices(keys, [("order", "ascending"), ("parent_asin", "ascending")]))


def bucket_of(order: npt.NDArray[np.uint64], buckets: int) -> npt.NDArray[np.uint16]:
    """Return the bucket of each hash: the range of hashes it falls in, of `buckets` equal ones (at most 65,536)."""
    return ((order >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.uint16)


def write_piece(path: Path, table: pa.Table, numbers: npt.NDArray[np.integer], count: int) -> None:
    """Write the rows of `table` so that those of each bucket can be read alone.

    Args:
        path: the piece.
        table: any rows.
        numbers: the bucket of each row, 0 to `count` - 1.
        count: how many buckets there are.
    """
    rows = table.take(np.argsort(numbers, kind="stable")).combine_chunks()
    last = np.cumsum(np.bincount(numbers, minlength=count))
    whole = rows.to_batches()[0] if rows.num_rows else pa.RecordBatch.from_pylist([], table.schema)
    with (
        files.atomic_write(path, durable=False) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        for begin, end in zip([0, *last[:-1]], last, strict=True):
            writer.write_batch(whole.slice(begin, end - begin))


def read_bucket(pieces: Iterable[Path], number: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one bucket, a batch a piece."""
    for piece in pieces:
        with pa.memory_map(str(piece)) as file:
            yield pa.ipc.open_file(file).get_batch(number)
