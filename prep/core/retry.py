"""Retries of HTTP requests: which errors are transient, how long to wait, and when to give up.

Input: the error of a request.
Output: another attempt, after a random exponential backoff or after the wait that the server requests.
Guarantees: only a `TransientError` is retried, the number of attempts is limited, and `RetryPolicy.call` announces each
wait in the log. Messages name a proxy without its user and password.
"""

import email.utils
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import tenacity

from prep.core.errors import UserError

MAX_WAIT = 600.0  # longest wait before a retry that a server can request, seconds
FIRST_ATTEMPTS = 2  # attempts with a host that has not responded yet
CONNECT_TIMEOUT = 4.0  # seconds until a connection is established
FIRST_TIMEOUT = 10.0  # seconds until a host responds to a request without content

R = TypeVar("R", bound=tenacity.BaseRetrying)
T = TypeVar("T")

log = logging.getLogger(__name__)
_responded: set[str] = set()  # hosts that have responded to this process


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
        self.attempts = 1  # requests that `RetryPolicy.call` made

    @property
    def summary(self) -> str:
        """The number of attempts, and the message of the last one in parentheses."""
        return f"after {self.attempts} attempts ({self})" if self.attempts > 1 else f"({self})"


class TransientError(RequestFailedError):
    """A request failed and a retry may succeed."""


class PermanentError(RequestFailedError):
    """A request failed and a retry would fail in the same way."""


class RetryPolicy(NamedTuple):
    """How many times a request is attempted, and how long to wait in between."""

    max_attempts: int = 10  # consecutive failures before giving up
    first_wait: float = 1.0  # upper bound of the first wait, seconds; it doubles with every retry
    max_wait: float = 60.0  # upper bound of every wait, seconds, unless the server requests a longer one

    def call(self, ask: Callable[[], T], url: str) -> T:
        """Make a request, repeat it after each `TransientError`, and announce each wait in the log.

        A host that has not responded to this process is given up after `FIRST_ATTEMPTS`, since its name may be wrong or
        the network down; so is one that asks to wait for longer than `MAX_WAIT`.

        Args:
            ask: makes the request.
            url: what is requested.

        Raises:
            RequestFailedError: the last attempt failed; it contains the number of attempts.
        """
        host = _host(url)

        def limit() -> int:
            return self.max_attempts if host in _responded else min(FIRST_ATTEMPTS, self.max_attempts)

        def give_up(state: tenacity.RetryCallState) -> bool:
            error = _error(state)
            if error.status:
                _responded.add(host)
            return state.attempt_number >= limit() or (error.wait or 0) > MAX_WAIT

        def announce(state: tenacity.RetryCallState) -> None:
            log.warning(
                "%s from %s; waiting %.1f s, attempt %d of %d",
                *(_error(state), host, state.upcoming_sleep, state.attempt_number + 1, limit()),
            )

        retrying = self._retrying(tenacity.Retrying).copy(stop=give_up, before_sleep=announce)
        try:
            result = retrying(ask)
        except RequestFailedError as error:
            error.attempts = retrying.statistics["attempt_number"]
            raise
        _responded.add(host)
        return result

    def retrying_async(self) -> tenacity.AsyncRetrying:
        """Return a caller that retries a coroutine after a `TransientError`, and raises the last error."""
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


def _error(state: tenacity.RetryCallState) -> RequestFailedError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, RequestFailedError)
    return error


def has_responded(url: str) -> bool:
    """Return whether the host of a URL has responded to `RetryPolicy.call` in this process."""
    return _host(url) in _responded


def _host(url: str) -> str:
    """Return host and port of a URL, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


def refused(status: int, headers: Mapping[str, str]) -> TransientError:
    """Return the error of a response whose status `is_transient`."""
    wait = requested_wait(headers)
    asks = f"; it asks to wait {wait:,.0f} s, which is over {MAX_WAIT:.0f} s" if (wait or 0) > MAX_WAIT else ""
    return TransientError(f"HTTP {status}{asks}", status=status, wait=wait)


def unanswered(error: Exception, url: str) -> RequestFailedError:
    """Return the error of a request that got no response.

    Args:
        error: raised by httpx or by httpx2, whose classes have the same names.
        url: what was requested.
    """
    name, proxy = type(error).__name__, proxy_of(url)
    what = f"{name}: {error}" if str(error) else name
    if name == "ProxyError" and str(error).startswith("407"):
        return proxy_refusal(url)
    if name == "ProxyError" or (proxy and name in {"ConnectError", "ConnectTimeout"}):
        what = f"the proxy {proxy} does not connect: {what}"
    permanent = {"TooManyRedirects", "UnsupportedProtocol", "InvalidURL", "UnicodeError", "LocalProtocolError"}
    return PermanentError(what) if name in permanent else TransientError(what)


def proxy_refusal(url: str) -> PermanentError:
    """Return the error of a response with status 407."""
    variable = f"{urlsplit(url).scheme.upper()}_PROXY"
    return PermanentError(
        f"HTTP 407: the proxy {proxy_of(url)} does not accept its user and password; set {variable} to "
        "http://user:password@host:port",
        status=407,
    )


def proxy_of(url: str) -> str:
    """Return host and port of the proxy that the environment sets for a URL, or "" if it sets none."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all", "")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    return _host(proxy if "://" in proxy else f"//{proxy}")


@contextmanager
def usable_proxies(invalid_url: type[Exception]) -> Iterator[None]:
    """Make an HTTP client; its own errors about a proxy in the environment contain the proxy's password.

    Args:
        invalid_url: the class InvalidURL of the HTTP library.

    Raises:
        UserError: the proxy cannot be used.
    """
    try:
        yield
    except (ValueError, ImportError, invalid_url) as error:
        raise UserError(
            f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not the URL of a usable proxy ({type(error).__name__}); "
            "correct it: http://host:port, or http://user:password@host:port"
        ) from None


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
