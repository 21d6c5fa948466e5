"""Row accounting: rows in = rows out + rows dropped within a stage, and rows in = rows out of the upstream stage.

Input: the stages' ``report.json`` and the rows counted in their files. Output: verdicts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from prep.core import files
from prep.core.errors import UserError
from validation.verdicts import Verdict


class Counts(msgspec.Struct, frozen=True):
    """The row counts of a table in a report; unlike `prep.core.reports.Funnel` they may be inconsistent."""

    rows_in: int
    rows_out: int
    dropped: dict[str, int]


def counts(report: Path) -> dict[str, Counts]:
    """Read the row counts in a report, by table name.

    Raises:
        UserError: the file is missing or has no row counts.
    """
    content: Any = files.read_json(report)
    try:
        return msgspec.convert(content["tables"], dict[str, Counts])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise UserError(
            f'{report} has no row counts of its tables under "tables" ({error}); remove it and run `dvc repro`'
        ) from None


def check_row_counts(
    reported: Mapping[str, Counts], table: str, counted: int, upstream: int | None, source: str = ""
) -> list[Verdict]:
    """Check the row counts of one table.

    Args:
        reported: the row counts in the stage's report, by table name.
        table: name of the table in the report; a table that is not there has no rows.
        counted: rows in the stage's files.
        upstream: rows of the table that the stage reads; None skips the comparison.
        source: path of the table that the stage reads, for the expectation's name.
    """
    own = reported.get(table, Counts(0, 0, {}))
    dropped = sum(own.dropped.values())
    verdicts = [
        _equal(table, "rows in = rows out + rows dropped", own.rows_in, own.rows_out + dropped),
        _equal(table, "rows out in report.json = rows in the files", own.rows_out, counted),
    ]
    if upstream is not None:
        verdicts.append(_equal(table, f"rows in = rows of {source}", own.rows_in, upstream))
    return verdicts


def reasons(table: str, expected: Mapping[str, int], found: Mapping[str, int]) -> Verdict:
    """Check that there are as many dropped rows for each reason as the report counts."""
    pairs = {r: (expected.get(r, 0), found.get(r, 0)) for r in sorted({*expected, *found})}
    different = {reason: pair for reason, pair in pairs.items() if pair[0] != pair[1]}
    return Verdict(
        table,
        "dropped rows per reason as in report.json",
        sum(expected.values()),
        sum(abs(a - b) for a, b in different.values()),
        examples=tuple(f"{reason} {a} in the report, {b} in the file" for reason, (a, b) in different.items()),
    )


def _equal(table: str, expectation: str, left: int, right: int) -> Verdict:
    examples = () if left == right else (f"{left} and {right}",)
    return Verdict(table, expectation, max(left, right), abs(left - right), examples=examples)
