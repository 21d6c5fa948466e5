"""The row funnel: rows in = rows out + rows dropped, in a stage and from one to the next (promise 4).

In: the stages' ``report.json`` and the rows counted in their files. Out: verdicts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from prep.core import files
from prep.core.errors import UserError
from validation.verdicts import Verdict


class Counts(msgspec.Struct, frozen=True):
    """A funnel as it stands in a report; unlike `prep.core.errors.Funnel` it may be wrong."""

    rows_in: int
    rows_out: int
    dropped: dict[str, int]


def counts(report: Path) -> dict[str, Counts]:
    """Read the funnels of a report, by table.

    Raises:
        UserError: the file is absent, or holds no funnels.
    """
    content: Any = files.read_json(report)
    try:
        return msgspec.convert(content["tables"], dict[str, Counts])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise UserError(
            f'{report} does not hold the counts of its tables under "tables" ({error}); remove it and run `dvc repro`'
        ) from None


def check_row_counts(
    funnels: Mapping[str, Counts], table: str, counted: int, before: int | None, source: str = ""
) -> list[Verdict]:
    """Check the funnel of one table.

    Args:
        funnels: of the stage's report.
        table: its name there; one that is absent has no rows.
        counted: rows found in the stage's files.
        before: rows that came out of the stage before; None where there is none.
        source: the stage before, in words.
    """
    own = funnels.get(table, Counts(0, 0, {}))
    dropped = sum(own.dropped.values())
    verdicts = [
        _equal(table, "rows in = rows out + dropped", own.rows_in, own.rows_out + dropped),
        _equal(table, "rows out of the report = rows in the files", own.rows_out, counted),
    ]
    if before is not None:
        verdicts.append(_equal(table, f"rows in = rows out of {source}", own.rows_in, before))
    return verdicts


def reasons(table: str, expected: Mapping[str, int], found: Mapping[str, int]) -> Verdict:
    """Check that rows set aside are as many, by reason, as the report says."""
    wrong = {r: (expected.get(r, 0), found.get(r, 0)) for r in sorted({*expected, *found})}
    different = {reason: pair for reason, pair in wrong.items() if pair[0] != pair[1]}
    return Verdict(
        table,
        "rows by reason as in the report",
        sum(expected.values()),
        sum(abs(a - b) for a, b in different.values()),
        examples=tuple(f"{reason} {a} in the report, {b} in the file" for reason, (a, b) in different.items()),
    )


def _equal(table: str, expectation: str, left: int, right: int) -> Verdict:
    examples = () if left == right else (f"{left} against {right}",)
    return Verdict(table, expectation, max(left, right), abs(left - right), examples=examples)
