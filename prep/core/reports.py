"""What a stage reports of its rows: in = out + dropped, by reason.

In: counts. Out: the funnel in ``report.json``. Guaranteed: a funnel that does not add up stops the stage.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec


class Funnel(msgspec.Struct, frozen=True):
    """Rows in = rows out + rows dropped, by reason (promise 4).

    Raises:
        ValueError: the counts do not add up, which is a bug of the stage.
    """

    rows_in: int
    rows_out: int
    dropped: dict[str, int]

    def __post_init__(self) -> None:
        """Refuse counts that do not add up."""
        if self.rows_in != self.rows_out + sum(self.dropped.values()):
            raise ValueError(f"rows are not accounted for: {self}")

    @classmethod
    def of(cls, rows_in: int, dropped: Mapping[str, int]) -> "Funnel":
        """Make the funnel of `rows_in` rows; reasons are sorted and those with no row are left out."""
        counted = {reason: int(count) for reason, count in sorted(dropped.items()) if count}
        return cls(rows_in, rows_in - sum(counted.values()), counted)


class Reported(msgspec.Struct, frozen=True):
    """What a stage reported of the rows of its tables."""

    stage: str
    tables: dict[str, Funnel]


class _Report(Reported, frozen=True):
    before: list[Reported] = []


def earlier_reports(folder: Path) -> list[Reported]:
    """Return what the stages up to the one that wrote `folder` reported of rows, the first one first.

    Each stage's ``report.json`` states it as "before", so that the last table tells of every row since the raw files.
    """
    path = folder / "report.json"
    if not path.exists():  # a table that nobody reported of
        return []
    report = msgspec.json.decode(path.read_bytes(), type=_Report)
    return [*report.before, Reported(report.stage, report.tables)]
