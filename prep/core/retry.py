"""Retries of HTTP requests: which errors are transient, how long to wait, and when to give up.

In: the error of a request. Out: another attempt after a wait that grows at random, or as long as the server asks.
Guaranteed: only a `TransientError` is tried again, and the attempts end.
"""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import tenacity

MAX_WAIT = 600.0  # seconds before a retry, whatever a server asks for

R = TypeVar("R", bound=tenacity.BaseRetrying)


class RequestFailedError(Exception):
    """A request brought nothing.

    Args:
        what: for people.
        outcome: the word for it, where one is kept.
        status: HTTP, 0 without an answer.
        wait: seconds that the server asks to wait, if it does.
    """

    def __init__(self, what: str, outcome: str = "", status: int = 0, wait: float | None = None) -> None:
        super().__init__(what)
        self.outcome, self.status, self.wait = outcome, status, wait


class TransientError(RequestFailedError):
    """Asking again may bring another answer."""


class PermanentError(RequestFailedError):
    """Asking again would bring the same answer."""


class RetryPolicy(NamedTuple):
    """How often, and how soon, a request is made again."""

    max_attempts: int = 10  # in a row that bring nothing
    first_wait: float = 1.0  # seconds that the first wait takes at most; each later one may take twice as long
    max_wait: float = 60.0  # seconds that a wait takes at most, unless the server asks for more

    def retrying(self) -> tenacity.Retrying:
        """Return what calls a function again after a `TransientError`, and raises the last one."""
        return self._retrying(tenacity.Retrying)

    def retrying_async(self) -> tenacity.AsyncRetrying:
        """Return the same for a coroutine."""
        return self._retrying(tenacity.AsyncRetrying)

    def _retrying(self, kind: type[R]) -> R:
        backoff = tenacity.wait_random_exponential(multiplier=self.first_wait, max=self.max_wait)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            requested = error.wait if isinstance(error, TransientError) else None
            return backoff(state) if requested is None else min(requested, MAX_WAIT)

        return kind(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=tenacity.stop_after_attempt(self.max_attempts),
            wait=wait,
            reraise=True,
        )


DEFAULT_POLICY = RetryPolicy()


def is_transient(status: int) -> bool:
    """Return whether an HTTP status may be another one later."""
    return status in {408, 429} or status >= 500


def requested_wait(headers: Mapping[str, str]) -> float | None:
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
