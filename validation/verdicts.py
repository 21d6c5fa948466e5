"""What a check found, and what a user is told when it found something.

In: the counts of checks. Out: verdicts for a gate file, or one sentence. Guaranteed: a verdict holds counts
and example keys only, no time and no random id, so that a gate file is the same on every run.
"""

from collections.abc import Iterable

import msgspec

from prep.faults import UserError

EXAMPLES = 5  # keys shown to the user


class Verdict(msgspec.Struct, frozen=True):
    """One expectation over the rows of one table."""

    table: str
    expectation: str
    rows: int  # looked at
    unexpected: int  # of them, against the expectation
    allowed: int = 0  # unexpected rows that a parameter's budget lets pass
    examples: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the table may be used."""
        return self.unexpected <= self.allowed


def judge(table: str, expectation: str, rows: int, wrong: Iterable[object]) -> Verdict:
    """Make a verdict from `wrong`: one printable thing for each row, file or group against it."""
    listed = [str(one) for one in wrong]
    return Verdict(table, expectation, rows, len(listed), examples=tuple(listed[:EXAMPLES]))


def require(where: str, verdicts: Iterable[Verdict], remedy: str) -> None:
    """Stop at verdicts that did not pass.

    Args:
        where: the folder or file that was checked.
        verdicts: of all its checks.
        remedy: what the user can do next.

    Raises:
        UserError: one did not pass; the first is told in full, the others are named.
    """
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return
    first, *others = failed
    share = first.unexpected / max(first.rows, 1)
    budget = f", {first.allowed} are allowed" if first.allowed else ""
    also = f"; also failed: {', '.join(f'{v.table}: {v.expectation}' for v in others)}" if others else ""
    raise UserError(
        f"{where}, table {first.table}: expected {first.expectation}, but {first.unexpected} of {first.rows} "
        f"({share:.1%}) are not so{budget}, for example {', '.join(first.examples)}{also}; {remedy}"
    )
