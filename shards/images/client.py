"""A polite HTTP client for many files from few hosts.

Input: URLs. Output: for each the body, or an outcome that says why there is none. Guarantees: at most
`fetch.connections` concurrent requests per host, fewer if it refuses or is slow; Retry-After is respected; only
transient errors are retried, with at most `fetch.max_attempts` attempts of at most `fetch.timeout` seconds each; at
most `fetch.max_bytes` of a body are read; only public addresses are connected to, also after a redirect, except the
configured mirror's; any answer is an outcome of its URL. A host that refuses all requests is paused once and then given
up: its other URLs get their outcome without a request, and other hosts do not wait for it. If it is the configured
mirror, the run ends with an error message. Every `get` terminates.

With `fetch.proxy` the proxy looks up names and connects, so only literal addresses are checked here.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urljoin
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from prep.core import open_files
from prep.core.errors import UserError, first_sentence
from prep.core.params import FetchParams
from prep.core.retry import PermanentError, RequestFailedError, RetryPolicy, TransientError, is_transient, retry_after
from shards.images import containers, urls

MAX_REDIRECTS = 5  # redirects followed per URL
POLICY = RetryPolicy(first_wait=0.5)  # max_attempts is fetch.max_attempts; max_wait also limits the pause of a host
RESOLVED_FOR = 60  # seconds that a DNS answer is cached
CONNECT, SILENCE = 5.0, 10.0  # seconds to connect, and between two bytes; fetch.timeout limits the whole request
BREAK = 60.0  # seconds of the one pause for a host that refuses all requests
SHORTEST_GAP, LONGEST_GAP = 0.01, 5.0  # bounds of the seconds between two requests to a host with a rate limit
PROBES = 3  # refusals after the pause with which a host is given up
FROM_ENVIRONMENT = "environment"  # fetch.proxy: follow HTTPS_PROXY, HTTP_PROXY and NO_PROXY
_HEADERS = {
    "User-Agent": "effimini (research; images of products)",
    "Accept": ", ".join(f"image/{name.lower()}" for name in containers.READ),
    "Accept-Encoding": "identity",
}
_IPV6 = ipaddress.ip_network("2000::/3")  # all that is allocated for global use
_TUNNELS = [ipaddress.ip_network(block) for block in ("2001::/32", "2002::/16")]  # Teredo and 6to4, to any IPv4 address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

log = logging.getLogger(__name__)


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
        self._line = asyncio.Lock()  # the first in line waits for a slot, the others for their turn
        self._free = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a free slot and for the end of a pause, in the order of arrival; yield the time of entry."""
        async with self._line:
            while True:
                while (wait := self._open_at - time.monotonic()) > 0:
                    await asyncio.sleep(min(wait, 1.0))  # `open` ends a pause
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
                self._free.notify()

    def on_success(self) -> None:
        """Raise the limit a little, or shorten the gap."""
        if self.gap:
            self.gap = self.gap / 2 ** (1 / 3) if self.gap > SHORTEST_GAP else 0.0
        else:
            self.limit = min(self._most, self.limit + 1 / self.limit)

    def on_failure(self, entered: float, answered: bool = True) -> None:
        """Halve the limit, only once for requests that ran concurrently; no gap helps a host that does not answer."""
        if entered >= self._halved_at:
            if self.limit == 1 and answered:
                self.gap = min(max(2 * self.gap, SHORTEST_GAP), LONGEST_GAP)
            self.limit = max(1.0, self.limit / 2)
            self._halved_at = time.monotonic()

    def open(self) -> None:
        """Let all through, as at the start."""
        self.limit, self.gap, self._open_at = float(self._most), 0.0, 0.0

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


class _GivenUpError(PermanentError):
    """A URL was not requested because its host was given up."""


class _Host:
    """One origin: its concurrency limit and the number of consecutive refusals (a circuit breaker).

    A host that refuses `fetch.max_consecutive_refusals` times in a row is paused once; if it keeps refusing, or never
    answered at all, it is given up. A name without an address is given up as well, and is not a refusal. Source:
    M. Nygard, Release It!, 2007 (circuit breaker).
    """

    def __init__(self, origin: Origin, settings: FetchParams) -> None:
        self.concurrency = ConcurrencyLimit(settings.connections)
        self.refusal = ""  # why it was given up, if it refused
        self._given_up = ""  # the outcome of its other URLs, once it is given up
        self._name = f"{origin.host}:{origin.port}"
        self._limit = settings.max_consecutive_refusals
        self._refused = 0
        self._answers = False
        self._broken_at = 0.0  # when the pause began, 0 if there was none

    def check(self) -> None:
        """Raise if the host is given up.

        Raises:
            _GivenUpError: it is, in this run.
        """
        if self._given_up:
            raise _GivenUpError(f"{self._name} was given up in this run", self._given_up)

    def answered(
        self, entered: float, status: int, error: str, retry_after: float | None, has_address: bool = True
    ) -> None:
        """Adapt the limits to a response, or to its absence (status 0)."""
        self._answers |= status > 0
        if status in {429, 503, 0} and self._answers:  # slower requests do not help a host that never answered
            self.concurrency.on_failure(entered, answered=status > 0)
        elif status < 400:
            self.concurrency.on_success()
        if retry_after is not None:
            self.concurrency.pause(retry_after)
        if status not in {403, 429, 503, 0}:
            self._refused, self._broken_at = 0, 0.0
        elif entered >= self._broken_at:  # else the request began before the pause
            self._refused += 1
            if self._refused >= self._limit + PROBES or (self._refused >= self._limit and not self._answers):
                self._give_up(error, "refused" if status else "unreachable", has_address)
            elif self._refused == self._limit:
                self._broken_at = time.monotonic()
                self.concurrency.reduce_to_one()
                self.concurrency.pause(BREAK)

    def _give_up(self, error: str, outcome: str, has_address: bool) -> None:
        if self._given_up:
            return
        self._given_up = outcome
        self.concurrency.open()  # who waits for a slot gets the outcome
        paused = f", also after a pause of {BREAK:g} s" if self._broken_at else ""
        why = f"{self._name} has no address{paused}"
        if has_address:
            why = f"{self._name} refused {self._refused} requests in a row (fetch.max_consecutive_refusals){paused}"
            self.refusal = (
                f"{why}; the last error: {error}; fetched images are kept, so wait an hour and run `dvc repro` "
                "again, lower fetch.connections, or set fetch.mirror"
            )
        log.warning(
            "%s; the last error: %s; its other images are not requested in this run but in the next", why, error
        )


class _Resolver(AbstractResolver):
    """Resolves hosts to public addresses only, except for trusted ones.

    The client connects to exactly the addresses returned, so a DNS answer that changes after the check has no effect.
    """

    def __init__(self, trusted: set[tuple[str, int]]) -> None:
        self._trusted = trusted  # hosts and ports
        self._system = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._system.resolve(host, port, family)
        if (host, port) in self._trusted:
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

    Raises:
        UserError: `fetch.proxy` is not the URL of an HTTP proxy.
    """

    def __init__(self, settings: FetchParams, trusted: str) -> None:
        self.room = asyncio.Semaphore(2 * settings.connections)  # files that are received or used; hold it in `get`
        self._settings = settings
        self._trusted = Origin.of(URL(trusted)) if trusted else None
        self._proxies = proxies(settings.proxy)
        self._proxy_answers, self._proxy_failures = False, 0
        self._policy = POLICY._replace(max_attempts=settings.max_attempts)
        self._hosts: dict[Origin, _Host] = {}

    @property
    def refusals(self) -> list[str]:
        """Error messages about the hosts that refused all requests and were given up."""
        return [host.refusal for host in self._hosts.values() if host.refusal]

    async def __aenter__(self) -> Self:
        known = {Origin.of(proxy) for proxy in self._proxies.values()} | ({self._trusted} if self._trusted else set())
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=open_files.limit() // 2,  # over all hosts; below it the concurrency limits apply
                limit_per_host=self._settings.connections,
                resolver=_Resolver({(origin.host, origin.port) for origin in known}),
                ttl_dns_cache=RESOLVED_FOR,
                ssl=ssl.create_default_context(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers=_HEADERS,
            # ignore proxies and passwords of the environment, unless asked to follow them: a proxy could connect to
            # private addresses
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, url: str) -> Answer:
        """Fetch an absolute http(s) URL, retrying transient errors. Whoever holds `room` does not while it waits.

        Raises:
            UserError: the mirror refused too many requests in a row, or the proxy cannot be used.
        """
        attempts = 0
        try:
            async for attempt in self._policy.retrying_async():
                with attempt:
                    attempts += 1
                    status, body = await self._follow(_parsed(url))
            return Answer("ok", status, attempts, body)
        except _GivenUpError as error:
            return Answer(error.outcome, error.status, attempts - 1, error=str(error))
        except RequestFailedError as error:
            return Answer(error.outcome, error.status, attempts, error=str(error))

    async def _follow(self, url: URL) -> tuple[int, bytes]:
        """Send a request, follow redirects, and return the final status and body."""
        left, status = self._settings.timeout, 0
        for _ in range(MAX_REDIRECTS + 1):
            if left <= 0:  # aiohttp takes 0 for no limit
                raise self._timeout(status)
            origin = Origin.of(url)
            self._check_address(origin)
            host = self._hosts.setdefault(origin, _Host(origin, self._settings))
            async with self._slot(host) as entered:
                status, target, body = await self._request(host, url, entered, left)
                left -= time.monotonic() - entered
            if target is None:
                return status, body
            url = _parsed(target, url)
        raise PermanentError(f"more than {MAX_REDIRECTS} redirects", "bad_url", status)

    def _check_address(self, origin: Origin) -> None:
        """Check an address that is in a URL: nobody looks it up, or the proxy does.

        Raises:
            PermanentError: it is not public.
        """
        address = _literal(origin.host)
        local = self._proxies and (origin.host.rstrip(".") + ".").endswith("localhost.")
        if origin != self._trusted and (local or (address and not is_public(address))):
            raise _not_public(origin.host)

    @asynccontextmanager
    async def _slot(self, host: _Host) -> AsyncIterator[float]:
        """Wait for a slot of a host, and leave `room` to other hosts meanwhile; yield the time of entry."""
        host.check()
        self.room.release()
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(host.concurrency.slot())
            finally:
                await self.room.acquire()
            host.check()
            yield time.monotonic()

    async def _request(self, host: _Host, url: URL, entered: float, left: float) -> tuple[int, str | None, bytes]:
        """Send one request; return its status, the target of a redirect, and the body."""
        status, wait = 0, None
        limits = aiohttp.ClientTimeout(total=left, sock_connect=min(left, CONNECT), sock_read=min(left, SILENCE))
        proxy = self._proxy_for(url)
        try:
            async with self._session.get(url, allow_redirects=False, timeout=limits, proxy=proxy) as response:
                status, wait = response.status, retry_after(response.headers.get("Retry-After"))
                self._check_proxy(proxy, status)
                target = _check_response(response)
                body = b"" if target else await _body(response, self._settings.max_bytes)
        except (UserError, RequestFailedError) as error:
            if status and isinstance(error, RequestFailedError):
                self._answered(host, entered, status, str(error), wait)
            raise
        except Exception as error:  # noqa: BLE001 -- what libraries make of any URL and any answer is an outcome
            raise self._failure(host, proxy, entered, status, error) from None
        self._answered(host, entered, status, "", None)
        return status, target, body

    def _failure(
        self, host: _Host, proxy: URL | None, entered: float, status: int, error: Exception
    ) -> RequestFailedError:
        """Return what an error of a library means for a URL, after telling its host.

        Raises:
            UserError: it is the proxy's, or the mirror refuses all requests.
        """
        name = type(error).__name__
        match error:
            case aiohttp.ClientHttpProxyError():  # the answer to CONNECT, before any of the host
                self._check_proxy(proxy, error.status)
                return TransientError(f"the proxy responds with HTTP {error.status}", "unreachable")
            case aiohttp.ClientProxyConnectionError():
                self._check_proxy(proxy, 0, error)
                return TransientError("no connection to the proxy", "unreachable")
            case aiohttp.ClientConnectorDNSError():
                self._check_proxy(proxy, 0, error)
                self._answered(host, entered, 0, first_sentence(error), None, has_address=False)
                return TransientError("no address for the name", "unreachable", status)
            case TimeoutError():
                if isinstance(error, aiohttp.ConnectionTimeoutError):
                    self._check_proxy(proxy, 0, error)
                self._answered(host, entered, 0, "timeout", None)
                return self._timeout(status)
            case aiohttp.ClientError() | OSError() if not isinstance(error, aiohttp.InvalidURL):
                self._answered(host, entered, 0, f"{name}: {first_sentence(error)}", None)
                return TransientError(name, "unreachable", status)
        return PermanentError(f"{name} in the request", "bad_url", status)

    def _answered(
        self, host: _Host, entered: float, status: int, error: str, wait: float | None, has_address: bool = True
    ) -> None:
        host.answered(entered, status, error, wait, has_address)
        if host.refusal and self._trusted and host is self._hosts.get(self._trusted):
            raise UserError(host.refusal)

    def _timeout(self, status: int) -> TransientError:
        return TransientError(f"timeout (fetch.timeout is {self._settings.timeout:g} s)", "timeout", status)

    def _proxy_for(self, url: URL) -> URL | None:
        proxy = self._proxies.get(url.scheme)
        return None if proxy is None or proxy_bypass(f"{url.host}:{url.port}") else proxy

    def _check_proxy(self, proxy: URL | None, status: int, error: Exception | None = None) -> None:
        """Look at the proxy's side of an answer.

        Raises:
            UserError: it asks for a password, has never answered, or not for `fetch.max_consecutive_refusals` requests.
                The message names no password.
        """
        if proxy is None:
            return
        name = f"the proxy {proxy.scheme}://{proxy.host}:{proxy.port} (fetch.proxy)"
        if status == 407:
            raise UserError(
                f"{name} asks for a user and a password, or does not accept them (HTTP 407); "
                "give them as http://user:password@host:port in HTTPS_PROXY with fetch.proxy: environment"
            )
        self._proxy_failures = 0 if status else self._proxy_failures + 1
        if not status and (not self._proxy_answers or self._proxy_failures >= self._settings.max_consecutive_refusals):
            raise UserError(
                f"{name} cannot be reached ({first_sentence(error) if error else 'no answer'}); "
                "start it, or correct fetch.proxy"
            )
        self._proxy_answers |= status > 0


def is_public(address: str) -> bool:
    """Return whether an IP address in standard notation is globally reachable; NAT64 is judged by its IPv4 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed in _NAT64:
            parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        elif parsed.ipv4_mapped:
            parsed = parsed.ipv4_mapped
        elif parsed not in _IPV6 or any(parsed in block for block in _TUNNELS):
            return False
    return parsed.is_global and not parsed.is_multicast


def proxies(setting: str) -> dict[str, URL]:
    """Return the proxy of each scheme.

    Args:
        setting: `fetch.proxy`: the URL of an HTTP proxy, `FROM_ENVIRONMENT`, or "" for none.

    Raises:
        UserError: it is not the URL of an HTTP proxy; the message does not repeat it, since it may contain a password.
    """
    found = getproxies() if setting == FROM_ENVIRONMENT else dict.fromkeys(("http", "https"), setting)
    parsed = {}
    for scheme in ("http", "https"):
        if text := found.get(scheme):
            try:
                url = URL(text if "://" in text else f"http://{text}")
                Origin.of(url)
            except (ValueError, IndexError, PermanentError):
                where = f"{scheme.upper()}_PROXY" if setting == FROM_ENVIRONMENT else "fetch.proxy"
                raise UserError(
                    f"{where} is not the URL of an HTTP proxy; it should be like http://host:3128"
                ) from None
            parsed[scheme] = url
    return parsed


def _parsed(text: str, base: URL | None = None) -> URL:
    """Return a URL, or the target of a redirect from `base`, as a browser reads it.

    Raises:
        PermanentError: it is not an absolute http(s) URL without a password.
    """
    try:
        url = URL(urls.quoted(urljoin(str(base), text) if base else text), encoded=True)
        Origin.of(url)
    except (ValueError, IndexError) as error:
        raise PermanentError(f"not a URL ({first_sentence(error)})", "bad_url") from None
    return url


def _literal(host: str) -> str:
    """Return the IP address that a host is, as a browser or a proxy reads it (127.1, 0x7f.1 ...), or ""."""
    if ":" in host:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):
        return ""


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
