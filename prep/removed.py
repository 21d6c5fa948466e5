"""Items that were removed on request, and the places that they keep, so that no other item moves.

Input: ``removed/<category>.csv`` beside the data folder, which ``effimini remove`` writes and the team commits.
Output: raw tables without these items, and their places in the ranking of the sample.
Guarantees: the file names no item: it has hashes of ids and image ids. Whoever has the source can still find out which
items they are, by hashing all of its ids. An item that is not listed keeps its split, band and tar.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prep.core import files, writers
from prep.core.buckets import ORDER_SALT, item_order
from prep.core.errors import UserError, first_sentence
from prep.core.hashes import hashes
from prep.core.parts import REMOVED
from prep.core.reports import Funnel

FOLDER = Path("removed")


class Removed(NamedTuple):
    """A removed item with its place; or, without an item, a group that keeps the place of its former first item."""

    item: int = 0  # hash of parent_asin, by which items are sorted (`ORDER_SALT`); 0: none
    images: tuple[int, ...] = ()  # hashes of the ids of images that no other item has
    stratum: int = -1  # of `prep.strata`; -1: the filter had dropped it, so it has no place
    split: float = 0.0  # what `prep.strata.split_positions` gave its group
    order: int = 0  # its place in the stratum, of `prep.strata.order_of`
    slot: int = 0  # 1 if it counts in the division of a part into tars; 0 if it was excluded as a near duplicate
    group: int = 0  # hash of the id of a group that keeps `split` and `order`; 0: none


def path_of(data: Path, category: str) -> Path:
    """Return the list of a category's removed items."""
    return data.absolute().parent / FOLDER / f"{category}.csv"


def read_removed(data: Path, category: str) -> list[Removed]:
    """Return the removed items of a category.

    Raises:
        UserError: the file is not as ``effimini remove`` wrote it.
    """
    path = path_of(data, category)
    if not path.exists():
        return []
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        return [
            Removed(
                *(int(row.item), tuple(map(int, row.images.split())), int(row.stratum), float(row.split)),
                *(int(row.order), int(row.slot), int(row.group)),
            )
            for row in rows.itertuples()
        ]
    except (ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a list of removed items ({first_sentence(error)}); restore it with git"
        ) from None


def write_removed(data: Path, category: str, removed: Iterable[Removed]) -> None:
    """Write the removed items of a category, sorted, each once."""
    rows = [one._asdict() | {"images": " ".join(map(str, one.images))} for one in sorted(set(removed))]
    with files.atomic_write(path_of(data, category)) as partial:
        pd.DataFrame(rows, columns=Removed._fields).to_csv(partial, index=False, lineterminator="\n")


def item_hash(asin: str) -> int:
    """Return the hash of a parent_asin that the list has in its place."""
    return int(hashes(ORDER_SALT, [asin])[0])


def image_hashes(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return the hashes of ids of images (`prep.groups.image_key`)."""
    return hashes("effimini/removed-image", list(keys))


def group_hashes(groups: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return the hashes of ids of groups."""
    return hashes("effimini/removed-group", list(groups))


def keep_places(
    groups: Sequence[str], split: npt.NDArray[np.float64], order: npt.NDArray[np.uint64], removed: Iterable[Removed]
) -> None:
    """Give groups whose first item was removed the place that they had.

    Args:
        groups: the group of each item.
        split: of each group, from `prep.strata.split_positions`; changed in place.
        order: of each group, from `prep.strata.order_of`; changed in place.
        removed: the removed items of the category.
    """
    known = {one.group: one for one in removed if one.group}
    if known and groups:
        hashed = group_hashes(groups)
        for row in np.flatnonzero(np.isin(hashed, np.array(list(known), np.uint64))):
            split[row], order[row] = known[int(hashed[row])].split, known[int(hashed[row])].order


def drop(category: str, data: Path) -> int:
    """Drop the removed items and their reviews from ``data/raw/<category>``, counted as `REMOVED`; return how many.

    The bytes are the same whether the table was just made or had some of the items dropped before.
    """
    folder = data.absolute() / "raw" / category
    gone = _gone(category, data)
    if folder.parent.exists():
        files.remove_leftovers(folder)  # a run that was killed may have left a table that still has the items
    if not sum(_rows(path, gone) for path in _tables(folder)):
        return 0
    with files.atomic_folder(folder) as out:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            files.link(path, out / path.name)
        return drop_from(out, category, data)


def drop_from(folder: Path, category: str, data: Path) -> int:
    """Drop the removed items and their reviews from the tables in a folder that is being made; return how many."""
    gone = _gone(category, data)
    counts = Counter[str]()
    for path in _tables(folder):
        if rows := _rows(path, gone):
            counts[path.name.partition("-")[0]] += rows
            with files.atomic_write(path, durable=False) as partial:  # the file may be a link to that of another folder
                _write_without(path, gone, partial)
    if counts:
        report = files.read_json(folder / "report.json")
        for kind, count in counts.items():
            dropped = Counter(report["tables"][kind]["dropped"]) + Counter({REMOVED: count})
            report["tables"][kind] = Funnel.of(report["tables"][kind]["rows_in"], dropped)
        (folder / "report.json").unlink()
        writers.write_json(folder / "report.json", report)
    return counts["items"]


def _gone(category: str, data: Path) -> npt.NDArray[np.uint64]:
    return np.array([one.item for one in read_removed(data, category) if one.item], np.uint64)


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-*.parquet"))


def _rows(path: Path, gone: npt.NDArray[np.uint64]) -> int:
    """Return how many rows of a table are of removed items."""
    if not len(gone):
        return 0
    return int(np.isin(item_order(pq.read_table(path, columns=["parent_asin"])["parent_asin"]), gone).sum())


def _write_without(path: Path, gone: npt.NDArray[np.uint64], out: Path) -> None:
    with pq.ParquetFile(path) as table:
        kept = (
            batch.filter(pa.array(~np.isin(item_order(batch["parent_asin"]), gone))) for batch in table.iter_batches()
        )
        writers.write_batches(out, table.schema_arrow, kept)
