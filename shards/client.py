"""A polite HTTP client for many files from few hosts.

In: URLs. Out: for each its body, or the word for why there is none. Guaranteed: at most `fetch.connections` requests at
a time to a host, fewer when it refuses or is slow; a host that names a time to wait is left alone until then; only what
may pass is tried again, `fetch.tries` times at most, each try within `fetch.timeout` seconds; a body is read up to
`fetch.max_bytes`; only public addresses are connected to, at every redirect, unless they are the configured mirror's;
and a host that refuses everything ends the run with a sentence. Every `get` ends.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import httpx
import msgspec
import tenacity

from prep.faults import UserError
from prep.params import Fetch
from prep.retry import retry_after

HOPS = 5  # redirects followed
LONGEST_WAIT = 60.0  # seconds before a retry, whatever the host asks for
RESOLVED_FOR = 60.0  # seconds an address is used before it is looked up again
_HEADERS = {"User-Agent": "effimini (research; images of products)", "Accept": "image/*", "Accept-Encoding": "identity"}
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT)


class Answer(msgspec.Struct, frozen=True):
    """What came of a URL: a body where `outcome` is "ok", else the word for what went wrong."""

    outcome: str  # ok gone refused bad_url too_large; after the last try: timeout unreachable server_error refused
    status: int = 0  # HTTP, 0 without an answer
    tries: int = 0
    body: bytes = b""
    error: str = ""  # for people


class Final(Exception):  # noqa: N818 -- an answer, not an error of the program
    """Asking again would bring the same answer."""

    def __init__(self, outcome: str, status: int, error: str) -> None:
        super().__init__(error)
        self.outcome, self.status, self.error = outcome, status, error


class Passing(Final):
    """Asking again may bring another answer."""


class Gate:
    """How many requests may be under way to a host: from 1 to `most`.

    One more after a round of good answers, half as many after a bad one (additive increase, multiplicative decrease).
    Source: Chiu and Jain, Analysis of the Increase and Decrease Algorithms for Congestion Avoidance, 1989.
    """

    def __init__(self, most: int) -> None:
        self.limit = float(most)
        self._most = most
        self._busy = 0
        self._open_at = 0.0
        self._halved_at = 0.0
        self._free = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a free place and for the end of a pause; give the time of entry."""
        async with self._free:
            await self._free.wait_for(lambda: self._busy < int(self.limit))
            self._busy += 1
        try:
            while (wait := self._open_at - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            yield time.monotonic()
        finally:
            self._busy -= 1
            async with self._free:
                self._free.notify_all()

    def went_well(self) -> None:
        """Let in a little more."""
        self.limit = min(self._most, self.limit + 1 / self.limit)

    def went_badly(self, entered: float) -> None:
        """Let in half as many, once for all that were under way together."""
        if entered >= self._halved_at:
            self.limit = max(1.0, self.limit / 2)
            self._halved_at = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Let in nobody for so long."""
        self._open_at = max(self._open_at, time.monotonic() + min(seconds, LONGEST_WAIT))


class _Host:
    """One origin: its connections, its gate and how often it refused in a row."""

    def __init__(self, url: httpx.URL, settings: Fetch, *, trusted: bool) -> None:
        self.name = url.netloc.decode()
        self.gate = Gate(settings.connections)
        # A transport rather than a client: no cookies, no credentials from the environment, no redirects of its own.
        self.transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=settings.connections, keepalive_expiry=15)
        )
        self._trusted = trusted
        self._limit = settings.refusals
        self._refused = 0
        self._addresses: list[str] = []
        self._resolved_at = -RESOLVED_FOR

    async def address(self, url: httpx.URL, attempt: int) -> str:
        """Return the address to connect to: another one at each try, public ones only unless the host is trusted."""
        if time.monotonic() - self._resolved_at > RESOLVED_FOR:
            port = url.port or {"http": 80, "https": 443}[url.scheme]
            try:
                found = await asyncio.get_running_loop().getaddrinfo(url.raw_host, port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                raise Passing("unreachable", 0, f"{url.host} has no address ({error})") from None
            addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
            self._addresses = [a for a in addresses if self._trusted or is_public(a)]
            self._resolved_at = time.monotonic()
        if not self._addresses:
            raise Final("bad_url", 0, f"{url.host} is not a public address")
        return self._addresses[attempt % len(self._addresses)]

    def answered(self, entered: float, status: int, error: str, retry_after: float | None) -> None:
        """Learn from an answer, or from its absence (status 0).

        Raises:
            UserError: it was one refusal too many in a row.
        """
        if status in {429, 503, 0}:
            self.gate.went_badly(entered)
        elif status < 400:
            self.gate.went_well()
        if retry_after is not None:
            self.gate.pause(retry_after)
        self._refused = self._refused + 1 if status in {403, 429, 503, 0} else 0
        if self._refused >= self._limit:
            raise UserError(
                f"{self.name} refused {self._refused} requests in a row (fetch.refusals), the last with: {error}; "
                "what was had is kept, so wait an hour and run `dvc repro` again, lower fetch.connections, "
                "or set fetch.mirror"
            )


class Client:
    """Asks for files; use it in an `async with`.

    Args:
        settings: the limits.
        trusted: an http(s) URL whose origin may have a private address (the configured mirror), or "".
    """

    def __init__(self, settings: Fetch, trusted: str) -> None:
        self._settings = settings
        self._trusted = _origin(httpx.URL(trusted)) if trusted else None
        self._hosts: dict[tuple[str, str, int | None], _Host] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self._hosts.values():
            await host.transport.aclose()

    async def get(self, url: str) -> Answer:
        """Return what comes of an absolute http(s) URL, after as many tries as it takes and is allowed.

        Raises:
            UserError: the host refused too often in a row.
        """
        tries = 0
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(Passing),
                stop=tenacity.stop_after_attempt(self._settings.tries),
                wait=_BACKOFF,
                reraise=True,
            ):
                with attempt:
                    tries += 1
                    status, body = await self._follow(httpx.URL(url), tries - 1)
            return Answer("ok", status, tries, body)
        except Final as answer:
            return Answer(answer.outcome, answer.status, tries, error=answer.error)
        except httpx.InvalidURL as error:
            return Answer("bad_url", 0, tries, error=str(error))

    async def _follow(self, url: httpx.URL, attempt: int) -> tuple[int, bytes]:
        """Ask, follow redirects, and return the status and the body of the file at their end."""
        left = self._settings.timeout
        for _ in range(HOPS + 1):
            if url.scheme not in {"http", "https"} or not url.host:
                raise Final("bad_url", 0, f"redirect to {url.scheme or 'no'} scheme")
            host = self._host(url)
            async with host.gate.slot() as entered:
                status, target, body = await self._ask(host, url, attempt, entered, left)
                left -= time.monotonic() - entered
            if target is None:
                return status, body
            url = url.join(target)
        raise Final("bad_url", status, f"more than {HOPS} redirects")

    def _host(self, url: httpx.URL) -> _Host:
        origin = _origin(url)
        if origin not in self._hosts:
            self._hosts[origin] = _Host(url, self._settings, trusted=origin == self._trusted)
        return self._hosts[origin]

    async def _ask(
        self, host: _Host, url: httpx.URL, attempt: int, entered: float, left: float
    ) -> tuple[int, str | None, bytes]:
        """Make one request and return its status, the target of a redirect, and the body."""
        status = 0
        try:
            async with asyncio.timeout(left):
                address = await host.address(url, attempt)
                # The address that was checked is the one connected to; the certificate is still checked for the name.
                request = httpx.Request(
                    "GET",
                    url.copy_with(host=address),
                    headers={**_HEADERS, "Host": host.name},
                    extensions={"sni_hostname": url.raw_host.decode(), "timeout": httpx.Timeout(left).as_dict()},
                )
                response = await host.transport.handle_async_request(request)
                status = response.status_code
                try:
                    target = _judge(response)
                    body = b"" if target else await _body(response, self._settings.max_bytes)
                finally:
                    await response.aclose()
        except (TimeoutError, httpx.TimeoutException):
            host.answered(entered, 0, "timeout", None)
            raise Passing("timeout", status, f"timeout after {self._settings.timeout:g} s") from None
        except httpx.TransportError as error:
            host.answered(entered, 0, repr(error), None)
            raise Passing("unreachable", status, type(error).__name__) from None
        except Final as answer:
            if status or isinstance(answer, Passing):
                wait = retry_after(response.headers.get("Retry-After")) if status else None
                host.answered(entered, status, answer.error, wait)
            raise
        host.answered(entered, status, "", None)
        return status, target, body


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed.sixtofour or parsed
    return parsed.is_global and not parsed.is_multicast


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _judge(response: httpx.Response) -> str | None:
    """Return the target of a redirect, or None where the body is what was asked for.

    Raises:
        Final, Passing: neither.
    """
    status = response.status_code
    target = response.headers.get("Location")
    if status == 200:
        return None
    if status in {301, 302, 303, 307, 308} and target:
        return str(target)
    error = f"HTTP {status}"
    if status in {429, 408} or status >= 500:
        raise Passing({429: "refused", 408: "timeout"}.get(status, "server_error"), status, error)
    raise Final({404: "gone", 410: "gone", 400: "bad_url"}.get(status, "refused"), status, error)


async def _body(response: httpx.Response, most: int) -> bytes:
    """Return the whole body.

    Raises:
        Final: it is, or says that it is, longer than `most` bytes.
        httpx.TransportError: it ends before its stated length.
    """
    declared = response.headers.get("Content-Length", "0")
    parts = []
    length = int(declared) if declared.isdecimal() else 0
    if length <= most:
        length = 0
        async for part in response.aiter_raw():
            length += len(part)
            if length > most:
                break
            parts.append(part)
    if length > most:
        raise Final("too_large", response.status_code, f"more than {most} bytes")
    return b"".join(parts)
