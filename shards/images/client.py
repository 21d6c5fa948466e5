"""A polite HTTP client for many files from few hosts.

Input: URLs. Output: for each the body, or an outcome that says why there is none. Guarantees: at most
`fetch.connections` concurrent requests per host, fewer if it refuses or is slow; Retry-After is respected; only
transient errors are retried, with at most `fetch.max_attempts` attempts of at most `fetch.timeout` seconds each; at
most `fetch.max_bytes` of a body are read; only public addresses are connected to, also after a redirect, except the
configured mirror's; a host that refuses all requests is paused once, and then ends the run with an error message. Every
`get` terminates.
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

MAX_REDIRECTS = 5  # redirects followed per URL
POLICY = RetryPolicy(first_wait=0.5)  # max_attempts is fetch.max_attempts; max_wait also limits the pause of a host
RESOLVED_FOR = 60  # seconds that a DNS answer is cached
CONNECT, SILENCE = 5.0, 10.0  # seconds to connect, and between two bytes; fetch.timeout limits the whole request
BREAK = 60.0  # seconds of the one pause for a host that refuses all requests
SHORTEST_GAP, LONGEST_GAP = 0.01, 5.0  # bounds of the seconds between two requests to a host with a rate limit
PROBES = 3  # refusals after the pause that end the run
_HEADERS = {"User-Agent": "effimini (research; images of products)", "Accept": "image/*", "Accept-Encoding": "identity"}


class Answer(msgspec.Struct, frozen=True):
    """The result for a URL: a body if `outcome` is "ok", otherwise the kind of failure."""

    outcome: str  # ok gone refused bad_url too_large; after the last attempt: timeout unreachable server_error refused
    status: int = 0  # HTTP status, 0 without a response
    attempts: int = 0
    body: bytes = b""
    error: str = ""  # for logs


class ConcurrencyLimit:
    """The number of concurrent requests to a host, from 1 to `most`; below 1, the time between two requests.

    The limit grows by one after a round of successes and halves after a failure (additive increase, multiplicative
    decrease). If one request at a time is still too much (a host that limits requests per second), the time between two
    requests doubles with a failure and shrinks with a success, at a rate that is in balance if one response in four
    fails. Source: Chiu and Jain, Analysis of the Increase and Decrease Algorithms for Congestion Avoidance, 1989.
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
        """Wait for a free slot and for the end of a pause; yield the time of entry."""
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
        """Raise the limit a little, or shorten the gap."""
        if self.gap:
            self.gap = self.gap / 2 ** (1 / 3) if self.gap > SHORTEST_GAP else 0.0
        else:
            self.limit = min(self._most, self.limit + 1 / self.limit)

    def on_failure(self, entered: float) -> None:
        """Halve the limit, only once for requests that ran concurrently."""
        if entered >= self._halved_at:
            if self.limit == 1:
                self.gap = min(max(2 * self.gap, SHORTEST_GAP), LONGEST_GAP)
            self.limit = max(1.0, self.limit / 2)
            self._halved_at = time.monotonic()

    def reduce_to_one(self) -> None:
        """Allow only one request at a time."""
        self.limit = 1.0

    def pause(self, seconds: float) -> None:
        """Start no request for `seconds`, at most `POLICY.max_wait`."""
        self._open_at = max(self._open_at, time.monotonic() + min(seconds, POLICY.max_wait))


class Origin(NamedTuple):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: URL) -> Self:
        """Return the origin of an http(s) URL.

        Raises:
            PermanentError: it has another scheme, or no host.
        """
        if url.scheme not in {"http", "https"} or not url.host:
            raise PermanentError(f"{url.scheme or 'no'} scheme or no host", "bad_url")
        return cls(url.scheme, url.host, url.port or 0)


class _Host:
    """One origin: its concurrency limit and the number of consecutive refusals (a circuit breaker).

    A host that refuses `fetch.max_consecutive_refusals` times in a row is paused once; if it keeps refusing, the run
    ends. Source: M. Nygard, Release It!, 2007 (circuit breaker).
    """

    def __init__(self, origin: Origin, settings: FetchParams) -> None:
        self.concurrency = ConcurrencyLimit(settings.connections)
        self._name = f"{origin.host}:{origin.port}"
        self._limit = settings.max_consecutive_refusals
        self._refused = 0
        self._broken_at = 0.0  # when the pause began, 0 if there was none

    def answered(self, entered: float, status: int, error: str, retry_after: float | None) -> None:
        """Adapt the limits to a response, or to its absence (status 0).

        Raises:
            UserError: the host refuses all requests, also after the pause.
        """
        if status in {429, 503, 0}:
            self.concurrency.on_failure(entered)
        elif status < 400:
            self.concurrency.on_success()
        if retry_after is not None:
            self.concurrency.pause(retry_after)
        if status not in {403, 429, 503, 0}:
            self._refused, self._broken_at = 0, 0.0
        elif entered >= self._broken_at:  # else the request began before the pause
            self._refused += 1
            if self._refused == self._limit:
                self._broken_at = time.monotonic()
                self.concurrency.reduce_to_one()
                self.concurrency.pause(BREAK)
            elif self._refused >= self._limit + PROBES:
                self.concurrency.pause(BREAK)  # no other request starts while the run ends
                raise UserError(
                    f"{self._name} refused {self._refused} requests in a row "
                    f"(fetch.max_consecutive_refusals), also after a pause of {BREAK:g} s; the last error: {error}; "
                    "fetched images are kept, so wait an hour and run `dvc repro` "
                    "again, lower fetch.connections, or set fetch.mirror"
                )


class _Resolver(AbstractResolver):
    """Resolves hosts to public addresses only, except for the trusted origin.

    The client connects to exactly the addresses returned, so a DNS answer that changes after the check has no effect.
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
        public = [result for result in found if is_public(result["host"])]
        if not public:
            raise _not_public(host)
        return public

    async def close(self) -> None:
        await self._system.close()


class Client:
    """Fetches files; use it in an `async with`.

    Args:
        settings: the limits.
        trusted: an http(s) URL (the configured mirror) whose origin may have a private address, or "".
    """

    def __init__(self, settings: FetchParams, trusted: str) -> None:
        self._settings = settings
        self._trusted = Origin.of(URL(trusted)) if trusted else None
        self._policy = POLICY._replace(max_attempts=settings.max_attempts)
        self._hosts: dict[Origin, _Host] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the concurrency limits apply instead
                limit_per_host=self._settings.connections,
                resolver=_Resolver(self._trusted),
                ttl_dns_cache=RESOLVED_FOR,
                ssl=ssl.create_default_context(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=_HEADERS,
            # ignore proxies and passwords of the environment: a proxy could connect to private addresses
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, url: str) -> Answer:
        """Fetch an absolute http(s) URL, retrying transient errors.

        Raises:
            UserError: the host refused too many requests in a row.
        """
        attempts = 0
        try:
            async for attempt in self._policy.retrying_async():
                with attempt:
                    attempts += 1
                    status, body = await self._follow(URL(url, encoded=True))
            return Answer("ok", status, attempts, body)
        except RequestFailedError as error:
            return Answer(error.outcome, error.status, attempts, error=str(error))
        except ValueError as error:  # invalid URL
            return Answer("bad_url", 0, attempts, error=str(error))

    async def _follow(self, url: URL) -> tuple[int, bytes]:
        """Send a request, follow redirects, and return the final status and body."""
        left = self._settings.timeout
        for _ in range(MAX_REDIRECTS + 1):
            origin = Origin.of(url)
            # aiohttp does not resolve what looks like an address, such as 127.1 and 0177.0.0.1
            numeric = ":" in origin.host or origin.host.replace(".", "").isdigit()
            if origin != self._trusted and numeric and not is_public(origin.host):
                raise _not_public(origin.host)
            host = self._hosts.setdefault(origin, _Host(origin, self._settings))
            async with host.concurrency.slot() as entered:
                status, target, body = await self._request(host, url, entered, left)
                left -= time.monotonic() - entered
            if target is None:
                return status, body
            url = url.join(URL(target))
        raise PermanentError(f"more than {MAX_REDIRECTS} redirects", "bad_url", status)

    async def _request(self, host: _Host, url: URL, entered: float, left: float) -> tuple[int, str | None, bytes]:
        """Send one request; return its status, the target of a redirect, and the body."""
        status, wait = 0, None
        limits = aiohttp.ClientTimeout(total=left, sock_connect=min(left, CONNECT), sock_read=min(left, SILENCE))
        try:
            async with self._session.get(url, allow_redirects=False, timeout=limits) as response:
                status, wait = response.status, retry_after(response.headers.get("Retry-After"))
                target = _check_response(response)
                body = b"" if target else await _body(response, self._settings.max_bytes)
        except TimeoutError:
            host.answered(entered, 0, "timeout", None)
            raise TransientError(
                f"timeout (fetch.timeout is {self._settings.timeout:g} s)", "timeout", status
            ) from None
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
    """Return whether an IP address in standard notation is globally reachable."""
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
    """Return the target of a redirect, or None for a successful response.

    Raises:
        TransientError, PermanentError: any other status.
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


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the whole body.

    Raises:
        PermanentError: it has more than `max_bytes` bytes, or Content-Length says so.
        aiohttp.ClientPayloadError: it is shorter than Content-Length.
    """
    chunks: list[bytes] = []
    length = response.content_length or 0
    if length <= max_bytes:
        length = 0
        async for chunk in response.content.iter_any():
            length += len(chunk)
            if length > max_bytes:
                break
            chunks.append(chunk)
    if length > max_bytes:
        raise PermanentError(f"more than {max_bytes} bytes", "too_large", response.status)
    return b"".join(chunks)
