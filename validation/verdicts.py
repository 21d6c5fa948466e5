"""What a check found, and what a user is told when it found something.

In: the counts of checks. Out: verdicts, and one sentence for those that warn or fail. Guaranteed: a verdict holds
counts and example keys only, no time and no random id, so that what is written of it is the same on every run.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from prep.core.errors import UserError

log = logging.getLogger(__name__)

EXAMPLES_SHOWN = 5  # keys shown to the user


class Verdict(msgspec.Struct, frozen=True):
    """One expectation over the rows of one table."""

    table: str
    expectation: str
    rows: int  # looked at
    unexpected: int  # of them, against the expectation
    allowed: int = 0  # unexpected rows that a parameter's budget lets pass
    examples: tuple[str, ...] = ()
    warn_above: int = 0  # unexpected rows that are no cause for a warning

    @property
    def passed(self) -> bool:
        """Whether the table may be used."""
        return self.unexpected <= self.allowed

    @property
    def level(self) -> Literal["pass", "warn", "fail"]:
        """What it means: fail stops the run, warn is said and written."""
        if not self.passed:
            return "fail"
        return "warn" if self.unexpected > self.warn_above else "pass"

    def __str__(self) -> str:
        """Return it as a clause: the table, the expectation, the count, the share and example keys."""
        budget = f", {self.allowed} are allowed" if self.allowed else ""
        share = self.unexpected / max(self.rows, 1)
        return (
            f"table {self.table}: expected {self.expectation}, but {self.unexpected} of {self.rows} ({share:.1%}) are "
            f"not so{budget}, for example {', '.join(self.examples)}"
        )


def judge(
    table: str, expectation: str, rows: int, wrong: Iterable[object], allowed: int = 0, warn_above: int = 0
) -> Verdict:
    """Make a verdict from `wrong`: one printable thing for each row, file or group against it."""
    listed = [str(one) for one in wrong]
    return Verdict(table, expectation, rows, len(listed), allowed, tuple(listed[:EXAMPLES_SHOWN]), warn_above)


def require(where: str, verdicts: Iterable[Verdict], hint: Callable[[], str]) -> None:
    """Say the warnings, and stop at verdicts that did not pass.

    Args:
        where: the folder or file that was checked.
        verdicts: of all its checks.
        hint: says what the user can do next; it is asked only where a verdict did not pass.

    Raises:
        UserError: one did not pass; the first is told in full, the others are named.
    """
    failed = []
    for verdict in verdicts:
        if verdict.level == "warn":
            log.warning("warning: %s, %s", where, verdict)
        elif verdict.level == "fail":
            failed.append(verdict)
    if not failed:
        return
    first, *others = failed
    also = f"; also failed: {', '.join(f'{v.table}: {v.expectation}' for v in others)}" if others else ""
    raise UserError(f"{where}, {first}{also}; {hint()}")
