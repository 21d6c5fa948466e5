"""Partition rows into buckets by hash of parent_asin, without a whole table in memory (an external shuffle).

Input: tables, each with some of the rows.
Output: pieces, Arrow files in which the rows of each bucket are contiguous; buckets are read across all pieces.
Guarantees: an item and its reviews have the same bucket number, and so does one parent_asin in different categories. A
bucket is a range of the hash that orders items (`ORDER_SALT`). The rows of a bucket are in the order of the pieces,
then in the order of each piece.
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

# From the join on, items are sorted by this hash of parent_asin, ties by parent_asin. A bucket is a range of the hash,
# so the concatenated buckets are sorted, for any number of buckets.
ORDER_SALT = "effimini/item"


def bucket_name(table: str, number: int) -> str:
    """Return the file name of a table's bucket."""
    return f"{table}-{number:03d}.parquet"


def bucket_names(table: str, count: int) -> list[str]:
    """Return the file names of a table's buckets, in order."""
    return [bucket_name(table, number) for number in range(count)]


def bucket_files(folder: Path, table: str) -> list[Path]:
    """Return a table's bucket files in order; `folder` is data/raw, data/items or data/groups of a category."""
    return sorted(folder.glob(f"{table}-*.parquet"), key=lambda path: (len(path.name), path.name))


def all_buckets(folder: Path, table: str, count: int, stage: str) -> list[Path]:
    """Return a table's bucket files in `folder`, in order, and check that there are `count` of them.

    Raises:
        UserError: there are more or fewer; the message names the stage to run.
    """
    paths = bucket_files(folder, table)
    if len(paths) != count:
        raise UserError(
            f"{folder} has {len(paths)} buckets of {table} but download.buckets is {count}; run `dvc repro {stage}`"
        )
    return paths


def item_order(asins: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """Return the hash of each parent_asin that items are sorted by."""
    return hashes(ORDER_SALT, asins.to_numpy(zero_copy_only=False))


def sorted_items(table: pa.Table) -> pa.Table:
    """Return the rows sorted in item order: by hash of parent_asin, ties by parent_asin."""
    keys = pa.table({"order": item_order(table["parent_asin"]), "parent_asin": table["parent_asin"]})
    return table.take(pc.sort_indices(keys, [("order", "ascending"), ("parent_asin", "ascending")]))


def bucket_of(order: npt.NDArray[np.uint64], buckets: int) -> npt.NDArray[np.uint16]:
    """Return the bucket of each hash: which of `buckets` equal ranges (at most 65,536) it falls in."""
    return ((order >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.uint16)


def write_piece(path: Path, table: pa.Table, numbers: npt.NDArray[np.integer], count: int) -> None:
    """Write the rows of `table` so that each bucket can be read without the others.

    Args:
        path: the piece to write.
        table: any rows.
        numbers: the bucket of each row, 0 to `count` - 1.
        count: number of buckets.
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
    """Yield the rows of one bucket, one batch per piece."""
    for piece in pieces:
        with pa.memory_map(str(piece)) as file:
            yield pa.ipc.open_file(file).get_batch(number)
