"""Asking again: which faults pass, how long to wait, and when to give up.

In: a fault of a request. Out: another try after a wait that grows at random, or as long as the server asks.
Guaranteed: only a `Passing` fault is tried again, and the tries end.
"""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

import tenacity

LONGEST_WAIT = 600.0  # seconds before a retry, whatever a server asks for


class Passing(Exception):  # noqa: N818 -- a state of the server, not an error of the program
    """Asking again may bring another answer.

    Args:
        what: for people.
        wait: seconds that the server asks to wait, if it does.
    """

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


class Patience(NamedTuple):
    """How long a fault is borne."""

    tries: int = 10  # in a row that bring nothing
    first: float = 1.0  # seconds that the first wait takes at most; each later one may take twice as long
    longest: float = 60.0  # seconds that a wait takes at most, unless the server asks for more

    def retrying(self) -> tenacity.Retrying:
        """Return what calls a function again after a `Passing`, and raises the last one."""
        backoff = tenacity.wait_random_exponential(multiplier=self.first, max=self.longest)

        def wait(state: tenacity.RetryCallState) -> float:
            fault = state.outcome.exception() if state.outcome else None
            asked = fault.wait if isinstance(fault, Passing) else None
            return backoff(state) if asked is None else min(asked, LONGEST_WAIT)

        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Passing),
            stop=tenacity.stop_after_attempt(self.tries),
            wait=wait,
            reraise=True,
        )


def passes(status: int) -> bool:
    """Return whether an HTTP status may be another one later."""
    return status in {408, 429} or status >= 500


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait, or None.

    The hub names them in RateLimit, `"api";r=0;t=55` for example, where others send Retry-After.
    """
    limit = re.search(r"\br=0\b.*\bt=(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else retry_after(headers.get("Retry-After"))


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, from either of its forms, or None.

    Source: RFC 9110, section 10.2.3 (a number of seconds, or an HTTP date).
    """
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
