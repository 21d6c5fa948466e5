"""Retries of HTTP requests: which errors are transient, how long to wait, and when to give up.

Input: the error of a request.
Output: another attempt, after a random exponential backoff or after the wait that the server requests.
Guarantees: only a `TransientError` is retried, and the number of attempts is limited.
"""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import tenacity

MAX_WAIT = 600.0  # longest wait before a retry that a server can request, seconds

R = TypeVar("R", bound=tenacity.BaseRetrying)


class RequestFailedError(Exception):
    """A request failed.

    Args:
        what: the error message.
        outcome: the outcome to record, "" if none is recorded.
        status: HTTP status, 0 if there was no response.
        wait: seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, what: str, outcome: str = "", status: int = 0, wait: float | None = None) -> None:
        super().__init__(what)
        self.outcome, self.status, self.wait = outcome, status, wait


class TransientError(RequestFailedError):
    """A request failed and a retry may succeed."""


class PermanentError(RequestFailedError):
    """A request failed and a retry would fail in the same way."""


class RetryPolicy(NamedTuple):
    """How many times a request is attempted, and how long to wait in between."""

    max_attempts: int = 10  # consecutive failures before giving up
    first_wait: float = 1.0  # upper bound of the first wait, seconds; it doubles with every retry
    max_wait: float = 60.0  # upper bound of every wait, seconds, unless the server requests a longer one

    def retrying(self) -> tenacity.Retrying:
        """Return a caller that retries a function after a `TransientError`, and raises the last error."""
        return self._retrying(tenacity.Retrying)

    def retrying_async(self) -> tenacity.AsyncRetrying:
        """Return the same as `retrying` for a coroutine."""
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
    """Return whether an HTTP status is a transient error."""
    return status in {408, 429} or status >= 500


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a response asks to wait, or None if it does not say.

    The hub sends them in the RateLimit header, for example `"api";r=0;t=55`; other servers send Retry-After.
    """
    limit = re.search(r"\br=0\b.*\bt=(\d+)", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else retry_after(headers.get("Retry-After"))


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, or None if it is absent or invalid.

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
