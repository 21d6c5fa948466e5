"""The parts of a sample: split names, and the files of ``data/sample``, ``images`` and ``exclusions``, one per part."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep.core.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"

REMOVED = "removed"  # why a row of the raw tables is dropped: its item was removed on request (prep/removed.py)
SLOTS_FILE = "removed.json"  # in data/sample/<category>: rows of a part before which a removed item had its place
NOT_TAKEN = ("beyond_fraction", "held_out")  # why a usable item is in no part: in train; in validation and test


def part_files(folder: Path) -> list[Path]:
    """Return the part files of ``data/sample/<category>`` or ``data/images/<category>``, in order."""
    return sorted(folder.glob("*.parquet"))


def sample_parts(data: Path, category: str) -> list[Path]:
    """Return the part files of ``data/sample/<category>``, in order.

    Raises:
        UserError: there are none.
    """
    parts = part_files(data / "sample" / category)
    if not parts:
        raise UserError(f"{data}/sample/{category} has no part files; run `dvc repro sample@{category}`")
    return parts


def excluded(part: Path) -> pa.ChunkedArray:
    """Return the parent_asins of a part of ``data/sample`` that are excluded as near duplicates.

    Raises:
        UserError: ``data/exclusions`` does not have this part.
    """
    path = part.parents[2] / "exclusions" / part.parent.name / part.name
    if not path.exists():
        raise UserError(f"{path} does not exist; run `dvc repro decontaminate`")
    return pq.read_table(path, columns=["parent_asin"])["parent_asin"]


def kept_rows(part: Path, columns: Sequence[str]) -> pa.Table:
    """Return the rows of a part of ``data/sample`` that are not excluded.

    Raises:
        UserError: as in `excluded`.
    """
    rows = pq.read_table(part, columns=list(dict.fromkeys(["parent_asin", *columns])))
    return rows.filter(pc.invert(pc.is_in(rows["parent_asin"], value_set=excluded(part)))).select(columns)
