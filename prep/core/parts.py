"""The parts of a sample: split names, and the files of ``data/sample`` and ``data/images``, one per part."""

from pathlib import Path

from prep.core.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"

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
