"""What goes wrong, in words: a user's mistake, rows set aside, and the budget for them.

In: counts of rows read, kept and dropped by reason. Out: the funnel that stands in every stage's ``report.json``.
Guaranteed: a funnel that does not add up, or that is over its budget, stops the stage.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class UserError(Exception):
    """A mistake its user can mend, as one sentence: what, where, the value found, what to do next.

    The command line prints it without a traceback and exits with code 2.
    """


def first_sentence(error: Exception) -> str:
    """Return the first sentence of a library's error, on one line, to stand within ours."""
    return " ".join(str(error).split()).split(". ")[0]


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


def before(folder: Path) -> list[dict[str, Any]]:
    """Return what the stages up to the one that wrote `folder` reported of rows, the first one first.

    Each stage's ``report.json`` states it as "before", so that the last table tells of every row since the raw files.
    """
    path = folder / "report.json"
    if not path.exists():  # a table that nobody reported of
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    return [*report.get("before", []), {name: report[name] for name in ("stage", "tables")}]


def check_budget(bad: Mapping[str, int], total: int, share: float, what: str, remedy: str) -> None:
    """Stop when the bad rows are more than `share` of `total`.

    Args:
        bad: rows set aside, by reason.
        total: rows seen, good and bad.
        share: the budget, 0 to 1.
        what: the rows in words and where they are, "lines of meta_All_Beauty.jsonl" for example.
        remedy: what the user can do next.

    Raises:
        UserError: the budget is spent.
    """
    count = sum(bad.values())
    if count > share * total:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(bad.items(), key=lambda r: (-r[1], r[0])))
        raise UserError(f"{count} of {total} {what} are unusable ({reasons}), over the budget of {share:.1%}; {remedy}")
