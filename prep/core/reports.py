"""Row accounting of a stage: rows in = rows out + rows dropped, by reason.

Input: counts.
Output: the row accounting in ``report.json``.
Guarantees: a stage stops if its counts do not add up.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec


class Funnel(msgspec.Struct, frozen=True):
    """Row accounting of one table: rows in = rows out + rows dropped, by reason.

    Raises:
        ValueError: the counts do not add up, which is a bug in the stage.
    """

    rows_in: int
    rows_out: int
    dropped: dict[str, int]

    def __post_init__(self) -> None:
        """Check that the counts add up."""
        if self.rows_in != self.rows_out + sum(self.dropped.values()):
            raise ValueError(f"rows are not accounted for: {self}")

    @classmethod
    def of(cls, rows_in: int, dropped: Mapping[str, int]) -> "Funnel":
        """Create the row accounting of `rows_in` rows; reasons are sorted, and those with no rows are omitted."""
        counted = {reason: int(count) for reason, count in sorted(dropped.items()) if count}
        return cls(rows_in, rows_in - sum(counted.values()), counted)


class Reported(msgspec.Struct, frozen=True):
    """The row accounting that a stage reported for its tables."""

    stage: str
    tables: dict[str, Funnel]


class _Report(Reported, frozen=True):
    before: list[Reported] = []


def earlier_reports(folder: Path) -> list[Reported]:
    """Return the row accounting of the stage that wrote `folder` and of the stages upstream, the earliest first.

    Each ``report.json`` repeats the upstream counts as "before", so the last one covers every row since the raw data.
    """
    path = folder / "report.json"
    if not path.exists():  # the table has no report
        return []
    report = msgspec.json.decode(path.read_bytes(), type=_Report)
    return [*report.before, Reported(report.stage, report.tables)]
