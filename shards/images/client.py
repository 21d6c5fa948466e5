"""A polite HTTP client for many files from few hosts.

In: URLs. Out: for each its body, or the word for why there is none. Guaranteed: at most `fetch.connections` requests
at a time to a host, fewer when it refuses or is slow; a host that names a time to wait is left alone until then; only
what may pass is tried again, `fetch.max_attempts` times at most, each try within `fetch.timeout` seconds; a body is
read up to `fetch.max_bytes`; only public addresses are connected to, at every redirect, unless they are the configured
mirror's; and a host that refuses everything is left alone for a while, and then ends the run with a sentence. Every
`get` ends.
"""

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from prep.core.errors import UserError
from prep.core.params import FetchParams
from prep.core.retry import PermanentError, RequestFailedError, RetryPolicy, TransientError, is_transient, retry_after

MAX_REDIRECTS = 5  # redirects followed
POLICY = RetryPolicy(first_wait=0.5)  # with fetch.max_attempts attempts; a host pauses for its max_wait at most
RESOLVED_FOR = 60  # seconds an address is used before it is looked up again
CONNECT, SILENCE = 5.0, 10.0  # seconds to connect, and between two bytes, within those of the whole image
BREAK = 60.0  # seconds that a host which refuses everything is left alone, once
SHORTEST_GAP, LONGEST_GAP = 0.01, 5.0  # seconds between two requests to a host that takes few a second
PROBES = 3  # refusals after that which end the run
_HEADERS = {"User-Agent": "effimini (research; images of products)", "Accept": "image/*", "Accept-Encoding": "identity"}


class Answer(msgspec.Struct, frozen=True):
    """What came of a URL: a body where `outcome` is "ok", else the word for what went wrong."""

    outcome: str  # ok gone refused bad_url too_large; after the last try: timeout unreachable server_error refused
    status: int = 0  # HTTP, 0 without an answer
    attempts: int = 0
    body: bytes = b""
    error: str = ""  # for people


class ConcurrencyLimit:
    """How many requests may be under way to a host, from 1 to `most`, and below 1, how long to wait between two.

    One more after a round of good answers, half as many after a bad one (additive increase, multiplicative decrease).
    Where one at a time is still too much, as for a host that counts requests a second, the time between two doubles
    with a bad answer, and shrinks with a good one so much that it stays as it is where every fourth answer is bad.
    Source: Chiu and Jain, Analysis of the Increase and Decrease Algorithms for Congestion Avoidance, 1989.
    """

    def __init__(self, most: int) -> None:
        self.limit = float(most)
        self.gap = 0.0  # seconds between two requests, 0 unless the limit is 1
        self._most = most
        self._busy = 0
        self._open_at = 0.0
        self._halved_at = 0.0
        self._free = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a free place and for the end of a pause; give the time of entry."""
        while True:
            while (wait := self._open_at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            async with self._free:
                await self._free.wait_for(lambda: self._busy < int(self.limit))
                if self._open_at <= time.monotonic():
                    self._busy += 1
                    self.pause(self.gap)
                    break
        try:
            yield time.monotonic()
        finally:
            self._busy -= 1
            async with self._free:
                self._free.notify_all()

    def on_success(self) -> None:
        """Let in a little more."""
        if self.gap:
            self.gap = self.gap / 2 ** (1 / 3) if self.gap > SHORTEST_GAP else 0.0
        else:
            self.limit = min(self._most, self.limit + 1 / self.limit)

    def on_failure(self, entered: float) -> None:
        """Let in half as many, once for all that were under way together."""
        if entered >= self._halved_at:
            if self.limit == 1:
                self.gap = min(max(2 * self.gap, SHORTEST_GAP), LONGEST_GAP)
            self.limit = max(1.0, self.limit / 2)
            self._halved_at = time.monotonic()

    def reduce_to_one(self) -> None:
        """Let in one at a time."""
        self.limit = 1.0

    def pause(self, seconds: float) -> None:
        """Let in nobody for so long."""
        self._open_at = max(self._open_at, time.monotonic() + min(seconds, POLICY.max_wait))


class Origin(NamedTuple):
    """Who serves a URL."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: URL) -> Self:
        """Return the origin of an http(s) URL.

        Raises:
            PermanentError: it is of another scheme, or names no host.
        """
        if url.scheme not in {"http", "https"} or not url.host:
            raise PermanentError(f"{url.scheme or 'no'} scheme or no host", "bad_url")
        return cls(url.scheme, url.host, url.port or 0)


class _Host:
    """One origin: its gate, and how often it refused in a row.

    A host that refuses `fetch.max_consecutive_refusals` times in a row is left alone for a while; where it goes on
    refusing, the run ends. Source: M. Nygard, Release It!, 2007 (circuit breaker).
    """

    def __init__(self, origin: Origin, settings: FetchParams) -> None:
        self.concurrency = ConcurrencyLimit(settings.connections)
        self._name = f"{origin.host}:{origin.port}"
        self._limit = settings.max_consecutive_refusals
        self._refused = 0
        self._broken_at = 0.0  # when it was left alone, 0 for not

    def answered(self, entered: float, status: int, error: str, retry_after: float | None) -> None:
        """Learn from an answer, or from its absence (status 0).

        Raises:
            UserError: the host refuses everything, after the break too.
        """
        if status in {429, 503, 0}:
            self.concurrency.on_failure(entered)
        elif status < 400:
            self.concurrency.on_success()
        if retry_after is not None:
            self.concurrency.pause(retry_after)
        if status not in {403, 429, 503, 0}:
            self._refused, self._broken_at = 0, 0.0
        elif entered >= self._broken_at:  # else it was asked before the break
            self._refused += 1
            if self._refused == self._limit:
                self._broken_at = time.monotonic()
                self.concurrency.reduce_to_one()
                self.concurrency.pause(BREAK)
            elif self._refused >= self._limit + PROBES:
                self.concurrency.pause(BREAK)  # nobody else asks while the run ends
                raise UserError(
                    f"{self._name} refused {self._refused} requests in a row "
                    f"(fetch.max_consecutive_refusals), the last of them after a break of {BREAK:g} s, with: {error}; "
                    "what was fetched is kept, so wait an hour and run `dvc repro` "
                    "again, lower fetch.connections, or set fetch.mirror"
                )


class _Resolver(AbstractResolver):
    """Finds the addresses of hosts: the public ones alone, but for the trusted origin.

    What it returns is what is connected to, so a name server that changes its mind after the check gains nothing.
    """

    def __init__(self, trusted: Origin | None) -> None:
        self._trusted = trusted
        self._system = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._system.resolve(host, port, family)
        if self._trusted and (host, port) == (self._trusted.host, self._trusted.port):
            return found
        public = [each for each in found if is_public(each["host"])]
        if not public:
            raise _not_public(host)
        return public

    async def close(self) -> None:
        await self._system.close()


class Client:
    """Asks for files; use it in an `async with`.

    Args:
        settings: the limits.
        trusted: an http(s) URL whose origin may have a private address (the configured mirror), or "".
    """

    def __init__(self, settings: FetchParams, trusted: str) -> None:
        self._settings = settings
        self._trusted = Origin.of(URL(trusted)) if trusted else None
        self._hosts: dict[Origin, _Host] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the gates hold it down
                limit_per_host=self._settings.connections,
                resolver=_Resolver(self._trusted),
                ttl_dns_cache=RESOLVED_FOR,
                ssl=ssl.create_default_context(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=_HEADERS,
            # no proxy and no password of the environment: a proxy would connect where it likes
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, url: str) -> Answer:
        """Return what comes of an absolute http(s) URL, after as many tries as it takes and is allowed.

        Raises:
            UserError: the host refused too often in a row.
        """
        attempts = 0
        try:
            policy = POLICY._replace(max_attempts=self._settings.max_attempts)
            async for attempt in policy.retrying_async():
                with attempt:
                    attempts += 1
                    status, body = await self._follow(URL(url, encoded=True))
            return Answer("ok", status, attempts, body)
        except RequestFailedError as error:
            return Answer(error.outcome, error.status, attempts, error=str(error))
        except ValueError as error:  # of a URL
            return Answer("bad_url", 0, attempts, error=str(error))

    async def _follow(self, url: URL) -> tuple[int, bytes]:
        """Ask, follow redirects, and return the status and the body of the file at their end."""
        left = self._settings.timeout
        for _ in range(MAX_REDIRECTS + 1):
            origin = Origin.of(url)
            # aiohttp asks no resolver for what looks like an address, 127.1 and 0177.0.0.1 among it
            numeric = ":" in origin.host or origin.host.replace(".", "").isdigit()
            if origin != self._trusted and numeric and not is_public(origin.host):
                raise _not_public(origin.host)
            host = self._hosts.setdefault(origin, _Host(origin, self._settings))
            async with host.concurrency.slot() as entered:
                status, target, body = await self._ask(host, url, entered, left)
                left -= time.monotonic() - entered
            if target is None:
                return status, body
            url = url.join(URL(target))
        raise PermanentError(f"more than {MAX_REDIRECTS} redirects", "bad_url", status)

    async def _ask(self, host: _Host, url: URL, entered: float, left: float) -> tuple[int, str | None, bytes]:
        """Make one request and return its status, the target of a redirect, and the body."""
        status, wait = 0, None
        limits = aiohttp.ClientTimeout(total=left, sock_connect=min(left, CONNECT), sock_read=min(left, SILENCE))
        try:
            async with self._session.get(url, allow_redirects=False, timeout=limits) as response:
                status, wait = response.status, retry_after(response.headers.get("Retry-After"))
                target = _check_response(response)
                body = b"" if target else await _body(response, self._settings.max_bytes)
        except TimeoutError:
            host.answered(entered, 0, "timeout", None)
            raise TransientError(f"timeout, of at most {self._settings.timeout:g} s", "timeout", status) from None
        except (aiohttp.ClientError, OSError) as error:
            host.answered(entered, 0, repr(error), None)
            raise TransientError(type(error).__name__, "unreachable", status) from None
        except RequestFailedError as error:
            if status:
                host.answered(entered, status, str(error), wait)
            raise
        host.answered(entered, status, "", None)
        return status, target, body


def is_public(address: str) -> bool:
    """Return whether an IP address, in its usual form, is one of the public internet."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed.sixtofour or parsed
    return parsed.is_global and not parsed.is_multicast


def _not_public(host: str) -> PermanentError:
    return PermanentError(f"{host} is not a public address", "bad_url")


def _check_response(response: aiohttp.ClientResponse) -> str | None:
    """Return the target of a redirect, or None where the body is what was asked for.

    Raises:
        TransientError, PermanentError: neither.
    """
    status = response.status
    target = response.headers.get("Location")
    if status == 200:
        return None
    if status in {301, 302, 303, 307, 308} and target:
        return str(target)
    error = f"HTTP {status}"
    if is_transient(status):
        raise TransientError(error, {429: "refused", 408: "timeout"}.get(status, "server_error"), status)
    raise PermanentError(error, {404: "gone", 410: "gone", 400: "bad_url"}.get(status, "refused"), status)


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the whole body.

    Raises:
        PermanentError: it is, or says that it is, longer than `most` bytes.
        aiohttp.ClientPayloadError: it ends before its stated length.
    """
    parts: list[bytes] = []
    length = response.content_length or 0
    if length <= most:
        length = 0
        async for part in response.content.iter_any():
            length += len(part)
            if length > most:
                break
            parts.append(part)
    if length > most:
        raise PermanentError(f"more than {most} bytes", "too_large", response.status)
    return b"".join(parts)
