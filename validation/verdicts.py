"""Results of checks, and the warnings and errors for those that do not pass.

Input: the counts of checks. Output: verdicts, a warning for each that warns and one error for those that fail.
Guarantees: a verdict contains only counts and example keys, no time and no random id, so that its JSON is the same in
every run.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from prep.core.errors import UserError

log = logging.getLogger(__name__)

EXAMPLES_SHOWN = 5  # example keys in messages and results


class FailedError(UserError):
    """A table does not meet an expectation."""


class Verdict(msgspec.Struct, frozen=True):
    """The result of one expectation for one table."""

    table: str
    expectation: str
    rows: int  # rows (or files, groups, ...) checked
    unexpected: int  # those that do not meet the expectation
    allowed: int = 0  # unexpected rows above which it fails
    examples: tuple[str, ...] = ()
    warn_above: int = 0  # unexpected rows above which it warns

    @property
    def passed(self) -> bool:
        """Whether the expectation did not fail."""
        return self.unexpected <= self.allowed

    @property
    def level(self) -> Literal["pass", "warn", "fail"]:
        """The severity: fail stops the run, warn is logged and written to the results."""
        if not self.passed:
            return "fail"
        return "warn" if self.unexpected > self.warn_above else "pass"

    def __str__(self) -> str:
        """Return table, expectation, count, fraction and example keys as part of a message."""
        budget = f", {self.allowed} are allowed" if self.allowed else ""
        fraction = self.unexpected / max(self.rows, 1)
        return (
            f"table {self.table}: expected {self.expectation}, but {self.unexpected} of {self.rows} "
            f"({fraction:.1%}) do not meet this{budget}, for example {', '.join(self.examples)}"
        )


def judge(
    table: str, expectation: str, rows: int, wrong: Iterable[object], allowed: int = 0, warn_above: int = 0
) -> Verdict:
    """Return a verdict from `wrong`, which has a description of each unexpected row, file or group."""
    listed = [str(one) for one in wrong]
    return Verdict(table, expectation, rows, len(listed), allowed, tuple(listed[:EXAMPLES_SHOWN]), warn_above)


def require(where: str, verdicts: Iterable[Verdict], hint: Callable[[], str]) -> None:
    """Log the warnings, and raise if a verdict failed.

    Args:
        where: the folder or file that was checked.
        verdicts: the results of its checks.
        hint: returns what to do next; called only if a verdict failed.

    Raises:
        FailedError: a verdict failed; the message describes the first and names the others.
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
    raise FailedError(f"{where}, {first}{also}; {hint()}")
