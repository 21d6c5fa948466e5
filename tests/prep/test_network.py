"""A server, a proxy or a network that misbehaves: each wait is announced, and each error is one sentence, soon."""

import base64
import logging
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, get_session
from huggingface_hub.errors import OfflineModeIsEnabled

from prep import categories, ranges
from prep import hub as the_hub
from prep.core import progress, retry
from prep.core.errors import UserError, printable
from prep.core.params import SourceParams
from prep.core.retry import DEFAULT_POLICY, RetryPolicy
from prep.metadata import item_batches
from shards.tokens import load_tokenizer
from tests.prep import hub_server
from tests.prep.hub_server import COMMIT, Hub
from tests.prep.test_source import QUICK, had, point_at, source

__all__ = ["source"]
ROOT = Path(__file__).parents[2]
ITEMS = "raw/meta_categories/meta_Toys.jsonl"
BODY = b"{" + random.Random(1).randbytes(1 << 20)
Settings = Callable[..., SourceParams]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({ITEMS: BODY}) as served:
        point_at(served, monkeypatch)
        monkeypatch.setattr(ranges, "RANGE", 1 << 18)
        yield served


def the_error(settings: SourceParams, policy: RetryPolicy = QUICK) -> str:
    with pytest.raises(UserError) as caught:
        had(settings, policy)
    assert "\n" not in str(caught.value)
    assert not [path for path in Path(os.environ["EFFIMINI_STORE"]).rglob("*.jsonl") if path.is_file()]
    return str(caught.value)


@contextmanager
def serving(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """Serve connections on loopback; `answer` gets each request as bytes, up to the empty line."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has hung up
            while True:
                request = b""
                while b"\r\n\r\n" not in request:
                    got = connection.recv(1 << 16)
                    if not got:
                        return
                    request += got
                answer(connection, request)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


# --- waits ---


def test_each_wait_is_announced_with_its_reason_and_length(
    hub: Hub, source: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    host = hub.cdn.url.removeprefix("http://")
    hub.faults.extend([None, hub_server.status(429, Retry_After="1"), hub_server.reset, None])
    assert had(source(hub.cdn.url)) == BODY
    waits = [record.getMessage() for record in caplog.records if record.name == retry.__name__]
    assert waits[0] == f"HTTP 429 from {host}; waiting 1.0 s, attempt 2 of 3"
    assert "Error" in waits[1]
    assert waits[1].endswith(" s, attempt 3 of 3")
    hub.api_faults.append(hub_server.status(503))
    the_hub.newest_commit(QUICK)
    assert caplog.records[-1].getMessage().startswith(f"HTTP 503 from {hub.url.removeprefix('http://')}; waiting 0.0 s")


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("headers", [{"Retry_After": "1000000000"}, {"RateLimit": '"api";r=0;t=1000000000'}])
def test_a_wait_beyond_the_limit_is_an_error_at_once(
    hub: Hub, source: Settings, mirror: bool, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
    hub.faults.append(hub_server.status(429, **headers))
    message = the_error(source(hub.cdn.url if mirror else ""), DEFAULT_POLICY)
    assert "cannot be fetched (HTTP 429; it asks to wait 1,000,000,000 s, which is over 600 s); " in message
    hub.api_faults.append(hub_server.status(429, **headers))
    with pytest.raises(UserError, match=r"does not respond \(HTTP 429; it asks to wait 1,000,000,000 s"):
        the_hub.newest_commit()


def test_a_slow_transfer_is_logged_where_no_bar_is_shown(
    source: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    caplog.set_level(logging.INFO, "prep")
    with Hub({ITEMS: BODY}) as hub:
        hub.faults.append(lambda *answer: (time.sleep(0.5), hub_server.whole(*answer)))
        had(source(hub.cdn.url))
    lines = [record.getMessage() for record in caplog.records if record.name == progress.__name__]
    assert lines[0].startswith(f"meta_Toys.jsonl: 0.0 of {len(BODY) / 1e6:.1f} MB (0.0 %), ")


# --- responses ---


def loop(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")


def elsewhere(scheme: bytes) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: " + scheme + b"\r\nContent-Length: 0\r\n\r\n")

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (loop, "TooManyRedirects"),
        (elsewhere(b"ftp://127.0.0.1/x"), "UnsupportedProtocol"),
        (elsewhere(b"file:///etc/passwd"), "UnsupportedProtocol"),
        (elsewhere(b"http://[::1"), "Error"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_an_error_at_once(
    source: Settings, answer: Callable[..., None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answer) as host:
        assert f"{ITEMS} cannot be fetched " in (found := the_error(source(f"http://{host}")))
        assert message in found
        monkeypatch.setattr(the_hub.constants, "ENDPOINT", f"http://{host}")
        with pytest.raises(UserError, match=rf"the hub \(http://{host}\) .*{message}"):
            the_hub.newest_commit(QUICK)


@pytest.mark.parametrize("location", ["http://", "http://a b", "http://127.0.0.1:99999", "http://" + "a" * 70 + ".x"])
def test_an_address_that_is_none_is_an_error(source: Settings, location: str) -> None:
    assert "cannot be fetched" in the_error(source(location))


def reply(head: str, body: bytes = b"", then: str = "close") -> Callable[[socket.socket, bytes], None]:
    """Answer HEAD as a server of BODY does, and GET with a head and a body."""

    def answer(connection: socket.socket, request: bytes) -> None:
        if request.startswith(b"HEAD"):
            connection.sendall(f'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: {len(BODY)}\r\n\r\n'.encode())
            return
        connection.sendall(f"HTTP/1.1 {head}\r\n\r\n".replace("\n", "\r\n").replace("\r\r", "\r").encode() + body)
        if then == "close":
            connection.shutdown(socket.SHUT_RDWR)

    return answer


def chunks(*bodies: bytes) -> bytes:
    return b"".join(f"{len(body):x}\r\n".encode() + body + b"\r\n" for body in bodies)


N = len(BODY)
PART = 1 << 18
FULL = f"206 Partial Content\nContent-Range: bytes 0-{PART - 1}/{N}"
WRONG = {
    "another range": (f"206 x\nContent-Range: bytes 5-{PART + 4}/{N}\nContent-Length: {PART}", BODY[5 : PART + 5]),
    "a longer range": (f"206 x\nContent-Range: bytes 0-{PART}/{N}\nContent-Length: {PART + 1}", BODY[: PART + 1]),
    "no range": (f"206 x\nContent-Length: {PART}", BODY[:PART]),
    "a reversed range": (f"206 x\nContent-Range: bytes 0--5/{N}\nContent-Length: 0", b""),
    "a range of words": (f"206 x\nContent-Range: items 0-{PART - 1}/{N}\nContent-Length: {PART}", BODY[:PART]),
    "several ranges": ("206 x\nContent-Type: multipart/byteranges; boundary=x\nContent-Length: 8", b"--x--\r\n\r\n"),
    "another size": (f"206 x\nContent-Range: bytes 0-{PART - 1}/{N + 1}\nContent-Length: {PART}", BODY[:PART]),
    "a short length": (f"{FULL}\nContent-Length: 10", BODY[:PART]),
    "a long length": (f"{FULL}\nContent-Length: {PART * 2}", BODY[:PART]),
    "two lengths": (f"{FULL}\nContent-Length: {PART}\nContent-Length: 7", BODY[:PART]),
    "a short body": (f"{FULL}\nContent-Length: {PART}", BODY[: PART - 1]),
    "too few chunks": (f"{FULL}\nTransfer-Encoding: chunked", chunks(BODY[:100]) + b"0\r\n\r\n"),
    "a broken chunk": (f"{FULL}\nTransfer-Encoding: chunked", b"zz\r\n" + BODY[:100]),
    "another version": (f'{FULL}\nETag: "2"\nContent-Length: {PART}', BODY[:PART]),
    "gzip": (f"{FULL}\nContent-Encoding: gzip\nContent-Length: {PART}", BODY[:PART]),
    "gzip of the transfer": (f"{FULL}\nTransfer-Encoding: gzip, chunked", chunks(BODY[:PART]) + b"0\r\n\r\n"),
    "204": ("204 No Content", b""),
    "304": ("304 Not Modified", b""),
    "416": (f"416 x\nContent-Range: bytes */{N}\nContent-Length: 0", b""),
    "206 with the whole file": (f"206 x\nContent-Range: bytes 0-{N - 1}/{N}\nContent-Length: {N}", BODY),
    "200 with a part": (f"200 OK\nContent-Length: {PART}", BODY[:PART]),
    "200 without length": ("200 OK\nConnection: close", BODY),
    "200 in chunks": ("200 OK\nTransfer-Encoding: chunked", chunks(BODY) + b"0\r\n\r\n"),
    "nothing": ("200 OK\nContent-Length: 0", b""),
    "no HTTP": ("\0\x1b[2J", b""),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("keep", [True, False])
def test_a_wrong_response_is_an_error(source: Settings, name: str, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE", PART)
    with serving(reply(*WRONG[name])) as host:
        assert f"{ITEMS} " in the_error(source(f"http://{host}", keep_raw=keep))


@pytest.mark.parametrize("endless", [True, False])
def test_bytes_beyond_the_announced_ones_are_not_used(
    source: Settings, endless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "RANGE", PART)

    def answer(connection: socket.socket, request: bytes) -> None:
        if request.startswith(b"HEAD"):
            reply("")(connection, request)
            return
        begin, last = map(int, request.partition(b"bytes=")[2].partition(b"\r\n")[0].split(b"-"))
        head = f"HTTP/1.1 206 x\r\nContent-Range: bytes {begin}-{last}/{N}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + chunks(BODY[begin : last + 1]))
        for _ in range(10**9 if endless else 3):
            connection.sendall(chunks(b"x" * 100_000))
        connection.sendall(b"0\r\n\r\n")

    with serving(answer) as host:
        assert had(source(f"http://{host}")) == BODY


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html></html>", b"\xef\xbb\xbf \n<html>", b"<?xml version='1.0'?>"])
@pytest.mark.parametrize("mirror", [True, False])
def test_a_page_instead_of_the_file_is_named(hub: Hub, source: Settings, body: bytes, mirror: bool) -> None:
    hub.files = {ITEMS: body + b" " * 100}
    assert "it is a page, perhaps of a login, and not a file of JSON lines" in the_error(
        source(hub.cdn.url if mirror else "")
    )


def test_a_page_is_named_before_it_is_requested(source: Settings, tmp_path: Path) -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        assert request.startswith(b"HEAD")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 9\r\n\r\n")

    with serving(answer) as host, pytest.raises(UserError, match="meta_Toys.jsonl is text/html: it is a page"):
        categories.of_source(source(f"http://{host}"), tmp_path)


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b"", b"\xff", b'{"branches": []}', b"null"])
def test_a_hub_that_responds_with_something_else_is_an_error(
    source: Settings, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with serving(answer) as host:
        monkeypatch.setattr(the_hub.constants, "ENDPOINT", f"http://{host}")
        with pytest.raises(UserError, match="hub"):
            the_hub.newest_commit(QUICK)
        with pytest.raises(UserError, match=r"hub|has no file"):
            had(source())
        with suppress(UserError):  # a list without entries is a valid one
            assert the_hub.listing(COMMIT, "raw") == {}


# --- hosts that cannot be reached ---


def test_a_host_that_never_responded_is_given_up_after_few_attempts(
    source: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = RetryPolicy(max_attempts=10, first_wait=0.001)
    assert "cannot be fetched after 2 attempts (ConnectError" in the_error(source("http://127.0.0.1:9"), many)
    assert "cannot be fetched after 2 attempts (ConnectError" in the_error(source("http://nowhere.invalid"), many)
    hub.faults.extend([hub_server.reset] * 10)  # after HEAD was answered
    assert "cannot be fetched after 10 attempts (" in the_error(source(hub.cdn.url), many)
    monkeypatch.setattr(the_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for ask in (the_hub.newest_commit, lambda: the_hub.listing(COMMIT), categories.of_hub, lambda: had(source(), many)):
        with pytest.raises(UserError, match=r"the hub \(http://127.0.0.1:9\) does not respond after 2 attempts"):
            ask()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the timeouts of the hub and of `probe` short."""
    for module in (the_hub, ranges):
        monkeypatch.setattr(module, "FIRST_TIMEOUT", 0.5)
        monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.5)
    for kept in (the_hub._set_timeouts, the_hub.is_reachable):
        kept.cache_clear()
    close_session()
    yield
    for kept in (the_hub._set_timeouts, the_hub.is_reachable):
        kept.cache_clear()


@pytest.mark.usefixtures("hasty")
def test_libraries_ask_a_hub_that_does_not_respond_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(the_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(the_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with the_hub.offline_unless_reachable(), pytest.raises(OfflineModeIsEnabled):
        get_session().get("http://127.0.0.1:9")
    assert not the_hub.constants.HF_HUB_OFFLINE
    with Hub({ITEMS: BODY}) as hub:
        point_at(hub, monkeypatch)
        the_hub.is_reachable.cache_clear()
        with the_hub.offline_unless_reachable():
            assert not the_hub.constants.HF_HUB_OFFLINE


@contextmanager
def accepting_none() -> Iterator[str]:
    """Yield a host whose connections are never established, as behind a firewall: its queue is full."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def accepting_silently() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


ASKING: dict[str, Callable[[Settings, str], object]] = {
    "newest": lambda source, host: the_hub.newest_commit(),
    "listing": lambda source, host: the_hub.listing(COMMIT, "raw"),
    "file": lambda source, host: had(source()),
    "parquet": lambda source, host: next(item_batches(source(metadata="parquet"), "Toys")),
    "mirror": lambda source, host: had(source(f"http://{host}")),
}


@pytest.mark.usefixtures("hasty")
def test_an_encoder_is_read_from_the_cache_if_the_hub_does_not_respond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(the_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with accepting_none() as host:
        monkeypatch.setattr(the_hub.constants, "ENDPOINT", f"http://{host}")
        with pytest.raises(UserError, match="model.text.name a/b is not a local folder, and tokenizer.json cannot be"):
            load_tokenizer("a/b")
        assert "does not respond after 2 attempts (ConnectTimeout" in caplog.text
        kept = tmp_path / "models--a--b"
        shutil.copytree(ROOT / "effimini/minilm", kept / f"snapshots/{COMMIT}")
        (kept / "refs").mkdir()
        (kept / "refs/main").write_text(COMMIT)
        assert load_tokenizer("a/b").get_vocab_size() > 100


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize(("at", "error"), [(accepting_none, "ConnectTimeout"), (accepting_silently, "ReadTimeout")])
def test_a_host_that_is_silent_is_an_error(
    source: Settings, name: str, at: Callable[[], Any], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at() as host:
        monkeypatch.setattr(the_hub.constants, "ENDPOINT", f"http://{host}")
        with pytest.raises(UserError, match=rf"{host}.* after 2 attempts \({error}"):
            ASKING[name](source, host)


def test_a_mirror_that_does_not_exist_cannot_be_listed(source: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="source.location .*/nowhere is not a folder; check"):
        categories.of_source(source(str(tmp_path / "nowhere")), tmp_path)


# --- proxies ---


def forwarding(seen: list[bytes], credentials: str = "") -> Callable[[socket.socket, bytes], None]:
    """Be a proxy for http URLs, with credentials if given."""

    def answer(connection: socket.socket, request: bytes) -> None:
        line, _, rest = request.partition(b"\r\n")
        seen.append(line)
        wanted = f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}".encode()
        if credentials and wanted.lower() not in request.lower():
            connection.sendall(b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
            return
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length and len(body) < int(length[1]):  # it may come after the headers
            got = connection.recv(1 << 16)
            if not got:
                return
            body, rest = body + got, rest + got
        method, url, version = line.split()
        host, _, path = url.removeprefix(b"http://").partition(b"/")
        name, _, port = host.partition(b":")
        with socket.create_connection((name.decode(), int(port))) as server:
            server.sendall(b" ".join([method, b"/" + path, version]) + b"\r\n" + rest)
            server.shutdown(socket.SHUT_WR)  # so that it closes the connection after its response
            closing = b"\r\nConnection: close\r\n"  # or the client may use the connection again before it sees its end
            while got := server.recv(1 << 16):
                connection.sendall(got.replace(b"\r\n", closing, 1) if closing else got)
                closing = b""
        connection.shutdown(socket.SHUT_RDWR)

    return answer


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the proxy of the environment, for loopback too."""

    def set_proxy(url: str, no_proxy: str = "") -> None:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (("HTTP_PROXY", url), ("HTTPS_PROXY", url), ("NO_PROXY", no_proxy), ("no_proxy", no_proxy)):
            monkeypatch.setenv(name, value)
        close_session()
        the_hub._set_timeouts.cache_clear()

    return set_proxy


@pytest.mark.parametrize("mirror", [True, False])
def test_a_download_goes_through_the_proxy_or_around_it(
    hub: Hub, source: Settings, mirror: bool, proxied: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []
    caplog.set_level(logging.DEBUG)
    settings = source(hub.cdn.url if mirror else "", keep_raw=False)
    with serving(forwarding(seen, "me:pass%20word")) as proxy:
        proxied(f"http://me:pass%2520word@{proxy}")
        assert had(settings) == BODY
        assert seen
        proxied(f"http://me:pass%2520word@{proxy}", no_proxy="127.0.0.1")
        seen.clear()
        assert had(settings) == BODY
        assert seen == []
    assert "word" not in caplog.text


@pytest.mark.parametrize("mirror", ["http", "https", ""])
def test_a_proxy_that_refuses_is_an_error_at_once(
    source: Settings,
    mirror: str,
    proxied: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")

    with serving(answer) as proxy:
        proxied(f"http://me:sesame@{proxy}")
        monkeypatch.setattr(the_hub.constants, "ENDPOINT", "https://hub.invalid")
        message = the_error(source(f"{mirror}://mirror.invalid" if mirror else ""), DEFAULT_POLICY)
        assert f"(HTTP 407: the proxy {proxy} does not accept its user and password; set " in message
        assert "sesame" not in message
        assert "waiting" not in caplog.text


@pytest.mark.parametrize("mirror", ["http", "https", ""])
def test_a_dead_proxy_is_named(
    source: Settings, mirror: str, proxied: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxied("http://me:sesame@127.0.0.1:9")
    monkeypatch.setattr(the_hub.constants, "ENDPOINT", "https://hub.invalid")
    message = the_error(source(f"{mirror}://mirror.invalid" if mirror else ""), RetryPolicy(first_wait=0.001))
    assert "after 2 attempts (the proxy 127.0.0.1:9 does not connect: ConnectError" in message
    assert "sesame" not in message


@pytest.mark.parametrize(
    "url", ["other://me:sesame@127.0.0.1:9", "http://me:sesame@127.0.0.1:port", "socks5://me:sesame@127.0.0.1:9"]
)
@pytest.mark.parametrize("mirror", ["http://mirror.invalid", ""])
def test_a_proxy_that_is_none_is_an_error(
    source: Settings, mirror: str, url: str, proxied: Callable[..., None]
) -> None:
    proxied(url)
    message = the_error(source(mirror))
    assert "is not the URL of a usable proxy" in message
    assert "sesame" not in message


# --- what reaches the terminal ---

EVIL = "\x1b]0;owned\x07\x9b2J\x7f\u202egnp\u2066\u2028\u200f"


def evil(name: str) -> Callable[[socket.socket, bytes], None]:
    """Serve a file whose responses contain control characters."""
    bad = EVIL.encode("latin-1", "ignore")
    etags = iter([b"1", *[b"2" + bad.replace(b"\x07", b"").replace(b"\x7f", b"")] * 9])

    def answer(connection: socket.socket, request: bytes) -> None:
        if name == "error" or (name == "reason" and not request.startswith(b"HEAD")):
            reason = b" No\x1b[2J" if name == "reason" else b" No"
            head = b"HTTP/1.1 403" + reason + b"\r\nX-Error-Message: a\x1b[2Jb\x9bc\r\nContent-Length: 0\r\n\r\n"
        elif request.startswith(b"HEAD"):
            head = b"HTTP/1.1 200 OK\r\nETag: " + next(etags) + b"\r\nContent-Length: 9\r\n\r\n"
        elif name == "body":
            head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<\x1b[2J\x9b\x07.."
        else:
            length = b"Content-Length: 9\r\n\r\n123456789"
            head = b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-8\x1b[2J/9\r\nETag: " + next(etags) + b"\r\n" + length
        connection.sendall(head)

    return answer


@pytest.mark.parametrize("name", ["error", "reason", "etag", "body"])
def test_no_control_character_of_a_server_reaches_the_terminal(tmp_path: Path, name: str) -> None:
    params = (ROOT / "params.yaml").read_text()
    with serving(evil(name)) as host:
        params = params.replace("kind: demo", "kind: mirror").replace("location: ''", f"location: http://{host}")
        (tmp_path / "other.yaml").write_text(params)
        assert host in params
        done = subprocess.run(
            [sys.executable, "-m", "effimini.cli", "download", "Demo_Toys", "--params", "other.yaml"],
            cwd=tmp_path, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    text = done.stderr.decode()
    assert done.returncode == 2, text
    assert text.endswith("\n")
    assert [printable(line) for line in text.split("\n")] == text.split("\n")


def test_no_control_character_reaches_the_log_or_a_traceback(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from effimini.cli import program\n"
        "def app():\n"
        "    logging.warning('%s', sys.argv[1])\n"
        "    try: raise ValueError(sys.argv[1])\n"
        "    except ValueError: logging.exception('x')\n"
        "    raise ValueError(sys.argv[1])\n"
        "program.app = app; program.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, EVIL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count(r"\u202egnp") == 3
    assert [printable(line) for line in done.stderr.split("\n")] == done.stderr.split("\n")
