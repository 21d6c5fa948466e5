import asyncio
import email.utils
import shutil
import socket
import ssl
import subprocess
import time
from itertools import count, pairwise

import pytest

from prep.core.errors import UserError
from prep.core.params import FetchParams
from prep.core.retry import RetryPolicy, retry_after
from prep.core.tables.images import OUTCOMES as ALL_OUTCOMES
from shards.images import client, containers
from shards.images.client import Answer, Client, ConcurrencyLimit, is_public
from tests.shards.host import Host

BODY = b"picture " * 500
OUTCOMES = frozenset(ALL_OUTCOMES)


@pytest.fixture
def host():
    with Host() as running:
        running.files["/a"] = BODY
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(client, "POLICY", RetryPolicy(first_wait=0.01, max_wait=0.3))
    monkeypatch.setattr(client, "BREAK", 0.2)


def settings(**changed):
    values = {
        "connections": 4,
        "max_attempts": 3,
        "timeout": 30,
        "max_bytes": 100_000,
        "max_pixels": 10**6,
        "max_consecutive_refusals": 50,
    }
    return FetchParams(**{"mirror": ""} | values | changed)


def ask(host, *paths, trusted=None, **changed):
    async def run():
        async with Client(settings(**changed), host.url if trusted is None else trusted) as session:
            return await asyncio.gather(*(session.get(host.url + path) for path in paths))

    answers = asyncio.run(run())
    return answers if len(paths) > 1 else answers[0]


def first(wrong, times=1):
    """Fail the first requests, then serve the file."""
    return lambda request, number: wrong(request) if number <= times else request.serve()


def test_a_file_is_fetched_at_the_first_attempt(host):
    assert ask(host, "/a") == Answer("ok", 200, 1, BODY)


@pytest.mark.parametrize(
    ("status", "outcome"), [(404, "gone"), (410, "gone"), (403, "refused"), (401, "refused"), (400, "bad_url")]
)
def test_permanent_errors_are_not_retried(host, status, outcome):
    host.faults["/a"] = lambda request, _: request.answer(status)
    answer = ask(host, "/a")
    assert (answer.outcome, answer.status, answer.attempts, host.asked["/a"]) == (outcome, status, 1, 1)


FAULTS = {
    "429": (lambda request: request.answer(429), "refused", 429),
    "503": (lambda request: request.answer(503), "server_error", 503),
    "500": (lambda request: request.answer(500), "server_error", 500),
    "408": (lambda request: request.answer(408), "timeout", 408),
    "hang": (lambda request: request.hang(), "timeout", 0),
    "reset": (lambda request: request.reset(), "unreachable", 0),
    "truncated": (lambda request: request.truncate(BODY), "unreachable", 200),
    "nonsense": (lambda request: request.wfile.write(b"nonsense\r\n\r\n"), "unreachable", 0),
    "hang in the body": (
        lambda request: (request.answer(200, b"x", {"Content-Length": "9"}), request.hang()),
        "timeout",
        200,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_transient_errors_are_retried(host, fault):
    twice = 2 if fault == "reset" else 1  # aiohttp itself retries once after a connection reset
    host.faults["/a"] = first(FAULTS[fault][0], times=2 * twice)
    assert ask(host, "/a", timeout=1 if "hang" in fault else 30) == Answer("ok", 200, 3, BODY)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_persistent_error_has_its_outcome_after_the_last_attempt(host, fault):
    wrong, outcome, status = FAULTS[fault]
    host.faults["/a"] = first(wrong, times=99)
    answer = ask(host, "/a", timeout=0.3 if "hang" in fault else 30)
    asked = 6 if fault == "reset" else 3
    assert (answer.outcome, answer.status, answer.attempts, host.asked["/a"]) == (outcome, status, 3, asked)
    assert answer.error


def test_one_byte_at_a_time_ends_at_the_timeout(host):
    def drip(request, _):
        request.answer(200, b"", {"Content-Length": "100"})
        for _ in range(40):
            time.sleep(0.05)
            request.wfile.write(b"x")
            request.wfile.flush()

    host.faults["/a"] = drip
    assert ask(host, "/a", timeout=0.3, max_attempts=1).outcome == "timeout"


@pytest.mark.parametrize(
    "asked_to_wait", ["1", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)], ids=["seconds", "date"]
)
def test_retry_after_pauses_all_requests_to_a_host(host, monkeypatch, asked_to_wait):
    monkeypatch.setattr(client, "POLICY", RetryPolicy(first_wait=0.01, max_wait=5))
    times = []

    def wrong(request, number):
        times.append(time.monotonic())
        if number > 1:
            return request.serve()
        return request.answer(
            429, headers={"Retry-After": asked_to_wait if isinstance(asked_to_wait, str) else asked_to_wait()}
        )

    host.faults["/a"] = wrong
    host.files["/b"] = b"b"

    async def run():
        async with Client(settings(), host.url) as session:
            one = asyncio.create_task(session.get(host.url + "/a"))
            while not times:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            other = await session.get(host.url + "/b")
            times.append(time.monotonic())
            return await one, other

    assert [answer.outcome for answer in asyncio.run(run())] == ["ok", "ok"]
    assert min(times[1:]) - times[0] >= 0.9


def test_a_very_long_retry_after_does_not_block_the_run(host):
    host.faults["/a"] = lambda request, _: request.answer(503, headers={"Retry-After": "999999999"})
    assert ask(host, "/a").outcome == "server_error"


def test_redirects_are_followed_on_the_mirror(host):
    host.faults["/b"] = lambda request, _: request.answer(302, headers={"Location": "/a"})
    assert ask(host, "/b").body == BODY


def test_a_redirect_loop_ends(host):
    host.faults["/a"] = lambda request, _: request.answer(301, headers={"Location": "/a"})
    assert ask(host, "/a").outcome == "bad_url"
    assert host.asked["/a"] == client.MAX_REDIRECTS + 1


@pytest.mark.parametrize("target", ["ftp://host/a", "file:///etc/passwd", "http://host:port/", "http://"])
def test_a_redirect_to_a_non_http_url_is_not_followed(host, target):
    host.faults["/a"] = lambda request, _: request.answer(302, headers={"Location": target})
    assert ask(host, "/a").outcome == "bad_url"


def test_a_private_address_is_not_requested(host):
    answer = ask(host, "/a", trusted="")
    assert (answer.outcome, answer.attempts) == ("bad_url", 1)
    assert "not a public address" in answer.error
    assert not host.asked


@pytest.mark.parametrize(
    "name",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "0177.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "127.0.0.1.",
        "0",
    ],
)
def test_a_redirect_to_a_private_address_is_not_followed(host, name):
    with Host() as private:
        private.files["/secret"] = b"secret"
        target = f"http://{name}:{private.server_port}/secret"
        host.faults["/a"] = lambda request, _: request.answer(302, headers={"Location": target})
        assert ask(host, "/a", max_attempts=1).outcome in {"bad_url", "unreachable"}
        assert not private.asked


def test_only_the_public_addresses_of_a_host_are_connected_to(host, monkeypatch):
    """The resolver checks the addresses that are connected to, so a changing DNS answer has no effect."""
    answers = [["127.0.0.1", "93.184.216.34"], ["127.0.0.1", "10.0.0.1"]]
    connected = []

    async def getaddrinfo(_, name, port, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    async def sock_connect(_, sock, address):
        connected.append(address)
        raise OSError("no route")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)

    async def run():
        async with Client(settings(max_attempts=1), host.url) as session:
            return [await session.get(f"http://{name}.test:{host.server_port}/a") for name in ("both", "private")]

    assert [answer.outcome for answer in asyncio.run(run())] == ["unreachable", "bad_url"]
    assert connected == [("93.184.216.34", host.server_port)]
    assert not host.asked


def test_the_request_contains_the_host_name_not_the_address(host):
    names = []
    host.faults["/a"] = lambda request, _: (names.append(request.headers["Host"]), request.serve())
    named = f"http://localhost:{host.server_port}"

    async def run():
        async with Client(settings(), named) as session:
            return await session.get(named + "/a")

    assert asyncio.run(run()).outcome == "ok"
    assert names == [f"localhost:{host.server_port}"]


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make a certificate with")
@pytest.mark.parametrize(("name", "outcome"), [("localhost", "ok"), ("127.0.0.1", "unreachable")])
def test_a_certificate_is_verified_for_the_host_name_not_the_address(host, tmp_path, monkeypatch, name, outcome):
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key",
        "-out",
        "cert",
        "-days",
        "2",
    ]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *subject], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    host.socket = context.wrap_socket(host.socket, server_side=True)
    host.url = f"https://{name}:{host.server_port}"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    assert ask(host, "/a", max_attempts=1).outcome == outcome


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_read_up_to_its_limit(host, declared):
    host.files["/a"] = b"x" * 5_000_000
    host.files["/b"] = b"x" * 1000
    if not declared:
        host.faults["/a"] = lambda request, _: endless_body(request)
    large, exact = ask(host, "/a", "/b", max_bytes=1000)
    assert (large.outcome, large.body, large.attempts) == ("too_large", b"", 1)
    assert exact.outcome == "ok"


def endless_body(request):
    request.send_response(200)
    request.end_headers()
    request.close_connection = True
    for _ in range(100):
        request.wfile.write(b"x" * 10_000)


def test_concurrent_requests_stay_within_the_limit(host):
    for n in range(24):
        host.faults[f"/{n}"] = lambda request, _: (time.sleep(0.02), request.answer(200, b"x"))
    answers = ask(host, *(f"/{n}" for n in range(24)), connections=3)
    assert {answer.outcome for answer in answers} == {"ok"}
    assert host.most_under_way == 3


def test_concurrency_adapts_to_a_host_with_a_lower_limit(host):
    def wrong(request, _):
        crowded = request.server.under_way > 2
        time.sleep(0.01)
        request.answer(429) if crowded else request.answer(200, b"x")

    paths = [f"/{n}" for n in range(60)]
    host.faults = dict.fromkeys(paths, wrong)
    answers = ask(host, *paths, connections=16, max_attempts=8)
    assert {answer.outcome for answer in answers} == {"ok"}
    assert host.asked.total() < 2 * len(paths)


def test_connections_are_reused(host):
    peers = set()
    host.faults["/a"] = lambda request, _: (peers.add(request.client_address), request.serve())

    async def run():
        async with Client(settings(), host.url) as session:
            for _ in range(10):
                await session.get(host.url + "/a")

    asyncio.run(run())
    assert len(peers) == 1


@pytest.mark.parametrize("status", [403, 429, 503])
def test_a_host_that_refuses_all_requests_ends_the_run_with_an_error(host, status):
    for n in range(30):
        host.faults[f"/{n}"] = lambda request, _: request.answer(status)
    with pytest.raises(
        UserError, match=rf"127\.0\.0\.1:\d+ refused 9 requests in a row.*HTTP {status}.*run `dvc repro`"
    ):
        ask(host, *(f"/{n}" for n in range(30)), max_consecutive_refusals=6, connections=1)
    assert host.asked.total() == 6 + client.PROBES


def test_a_host_that_recovers_during_the_pause_is_used_again(host, monkeypatch):
    monkeypatch.setattr(client, "BREAK", 1.0)
    monkeypatch.setattr(client, "POLICY", RetryPolicy(first_wait=0.01, max_wait=5))
    times = []

    def wrong(request, _):
        times.append(time.monotonic())
        request.answer(503) if times[-1] < times[0] + 0.9 else request.answer(200, BODY)

    paths = [f"/{n}" for n in range(40)]
    host.faults = dict.fromkeys(paths, wrong)
    answers = ask(host, *paths, max_consecutive_refusals=6, connections=4, max_attempts=3)
    assert {answer.outcome for answer in answers} == {"ok"}
    assert max(later - sooner for sooner, later in pairwise(times)) >= 0.9
    assert len(times) <= len(paths) + 6 + 4  # requests in flight when the pause began


def test_an_unreachable_host_ends_the_run_with_an_error(host):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="ConnectorError"):
            ask(host, "/a", "/b", "/c", max_consecutive_refusals=4)


@pytest.fixture
def public(monkeypatch):
    """Take loopback for public, because tests have no other addresses."""
    monkeypatch.setattr(client, "is_public", lambda _: True)


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


async def ask_urls(urls, **changed):
    async with Client(settings(**changed), "") as session:
        return await asyncio.gather(*(session.get(url) for url in urls)), session.refusals


@pytest.mark.parametrize("dead", ["closed", "403", "503", "reset"])
def test_a_host_that_refuses_all_is_given_up_and_others_do_not_wait_for_it(host, public, caplog, dead):
    """Its other URLs have an outcome that the next run retries, without a request; it is named once."""
    with Host() as other:
        faults = {"403": lambda r, _: r.answer(403), "503": lambda r, _: r.answer(503), "reset": lambda r, _: r.reset()}
        other.faults = {f"/{n}": faults.get(dead) for n in range(60)}
        bad = f"http://127.0.0.1:{closed_port()}" if dead == "closed" else other.url
        paths = [f"/{n}" for n in range(20)]
        host.files = dict.fromkeys(paths, BODY)
        urls = [f"{bad}/{n}" for n in range(60)] + [host.url + path for path in paths]
        answers, refusals = asyncio.run(ask_urls(urls, max_consecutive_refusals=8, max_attempts=2))
        assert [answer.outcome for answer in answers[60:]] == ["ok"] * 20
        assert {answer.outcome for answer in answers[:60]} <= {"refused", "server_error", "unreachable"}
        assert sum(answer.attempts == 0 for answer in answers) >= 30
        assert other.asked.total() <= 2 * (8 + 4 + client.PROBES + 2)
    assert len(refusals) == 1
    assert "requests in a row" in refusals[0]
    assert [record.levelname for record in caplog.records if "not requested in this run" in record.message] == [
        "WARNING"
    ]


def test_a_redirect_to_a_host_that_was_given_up_has_an_outcome(host, public):
    dead = f"http://127.0.0.1:{closed_port()}"
    for n in range(40):
        target = f"{dead}/{n}"
        host.faults[f"/{n}"] = lambda request, _, to=target: request.answer(302, headers={"Location": to})
    urls = [f"{host.url}/{n}" for n in range(40)] + [host.url + "/a"]
    answers, refusals = asyncio.run(ask_urls(urls, max_consecutive_refusals=5))
    assert [answer.outcome for answer in answers] == ["unreachable"] * 40 + ["ok"]
    assert dead.removeprefix("http://") in refusals[0]


def test_names_without_an_address_are_no_refusals_and_are_given_up(public, caplog, monkeypatch):
    asked = []

    async def getaddrinfo(_, name, port, **__):
        asked.append(name)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    urls = [f"http://absent.test/{n}" for n in range(60)]
    answers, refusals = asyncio.run(ask_urls(urls, max_consecutive_refusals=8, max_attempts=2))
    assert {answer.outcome for answer in answers} == {"unreachable"}
    assert refusals == []
    assert 0 < len(asked) < 30
    assert "absent.test:80 has no address" in caplog.text


def raw(text):
    return lambda request: (request.wfile.write(text), setattr(request, "close_connection", True))


def endless(text, start=b""):
    def write(request):
        request.wfile.write(start)
        for _ in range(20_000):
            request.wfile.write(text)

    return write


HEAD = b"HTTP/1.1 200 OK\r\n"
ODD = {
    "a status without a reason": raw(b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n"),
    "a status of two digits": raw(b"HTTP/1.1 20 OK\r\n\r\n"),
    "a status of four digits": raw(b"HTTP/1.1 2000 OK\r\n\r\n"),
    "a status of letters": raw(b"HTTP/1.1 ABC OK\r\n\r\n"),
    "status 999": raw(b"HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n"),
    "status 101": raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxxxx"),
    "status 204": raw(b"HTTP/1.1 204 No\r\n\r\n"),
    "status 304": raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9\r\n"),
    "HTTP/0.9": raw(b"<html>hello</html>"),
    "HTTP/9.9": raw(b"HTTP/9.9 200 OK\r\nContent-Length: 1\r\n\r\nx"),
    "nothing": raw(b""),
    "zeros": raw(bytes(1000)),
    "a cut header": raw(HEAD + b"Content-Le"),
    "a header without a colon": raw(HEAD + b"nonsense\r\n\r\n"),
    "a header of bytes": raw(HEAD + b"X: \xff\xfe\r\nContent-Length: 1\r\n\r\nx"),
    "a huge header": raw(HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n"),
    "very many headers": raw(HEAD + b"X: y\r\n" * 20_000 + b"\r\n"),
    "endless headers": endless(b"X: " + b"y" * 1000 + b"\r\n", HEAD),
    "endless 100": endless(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a length of letters": raw(HEAD + b"Content-Length: many\r\n\r\n"),
    "a negative length": raw(HEAD + b"Content-Length: -5\r\n\r\n"),
    "a length of 30 digits": raw(HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n"),
    "two lengths": raw(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
    "a length and chunks": raw(HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "bad chunks": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nxx\r\n"),
    "a negative chunk": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nxx\r\n"),
    "a huge chunk": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 40 + b"\r\nxx\r\n"),
    "cut chunks": raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nxx"),
    "an unknown coding": raw(HEAD + b"Transfer-Encoding: rot13\r\n\r\nxx"),
    "a bad Retry-After": raw(
        b"HTTP/1.1 503 No\r\nRetry-After: Mon, 99 Foo 99999 99:99:99 X\r\nContent-Length: 0\r\n\r\n"
    ),
    "an empty Retry-After": raw(b"HTTP/1.1 503 No\r\nRetry-After: \r\nContent-Length: 0\r\n\r\n"),
    "a Retry-After of 400 digits": raw(
        b"HTTP/1.1 503 No\r\nRetry-After: " + b"9" * 400 + b"\r\nContent-Length: 0\r\n\r\n"
    ),
}
TARGETS = [
    *(
        "http://user:[pw]@/",
        "http://[::1",
        "http://]/",
        "http://[pw]/",
        "http://a[b]c/",
        "http://h:0/",
        "http://h:99999/",
    ),
    *(
        "http://h:-1/",
        "http://h:x/",
        "http://[fe80::1%25eth0]/",
        "http://[::1%25lo]:80/",
        "http://[v1.x]/",
        "//",
        "///",
    ),
    *(
        "http://xn--/",
        "http://xn--a/",
        "http://a..b/",
        "http://.a/",
        f"http://{'a' * 64}.test/",
        f"http://{'a.' * 200}test/",
    ),
    *(
        "http://\u2048.test/",
        "http://-a-.test/",
        "http://a b/",
        "http://%00/",
        "http://a%2fb/",
        "http://\\a/",
        "\\\\a\\b",
    ),
    *(
        "http:",
        "http:/a",
        "http://?",
        "http://#",
        "?a",
        "",
        " ",
        "\t",
        "ht!tp://a/",
        "javascript:alert(1)",
        "data:,x",
        "/%zz",
    ),
    *(
        "http://user:secret@127.0.0.1/",
        "http://@127.0.0.1/",
        "/" + "a" * 7000,
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
    ),
]


@pytest.mark.parametrize("what", ODD)
def test_any_answer_is_an_outcome(host, what):
    host.faults["/a"] = lambda request, _: ODD[what](request)
    host.files["/b"] = BODY
    odd, sound = ask(host, "/a", "/b", timeout=1, max_attempts=2)
    assert odd.outcome in OUTCOMES
    assert sound == Answer("ok", 200, sound.attempts, BODY)


def test_any_target_of_a_redirect_is_an_outcome(host, public, monkeypatch):
    async def getaddrinfo(_, name, port, **__):
        name.encode("idna")  # as the real one does
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    for n, target in enumerate(TARGETS):
        host.faults[f"/{n}"] = lambda request, _, to=target: raw(
            f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode()
        )(request)
    answers = ask(host, *(f"/{n}" for n in range(len(TARGETS))), "/a", timeout=1, max_attempts=1)
    assert {answer.outcome for answer in answers[:-1]} <= OUTCOMES
    assert [to for to, answer in zip(TARGETS, answers, strict=False) if answer.outcome == "ok"] == ["http:/a"]
    assert answers[-1].body == BODY


def test_any_url_is_an_outcome(public, monkeypatch):
    async def getaddrinfo(_, name, port, **__):
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    answers, _ = asyncio.run(ask_urls(TARGETS, max_attempts=1, timeout=1))
    assert {answer.outcome for answer in answers} <= OUTCOMES - {"ok"}


@pytest.mark.parametrize("name", ["1572395042", "93.184.55330"])
def test_another_notation_of_a_public_address_is_no_refusal(name):
    answers, refusals = asyncio.run(ask_urls([f"http://{name}/{n}" for n in range(20)], max_consecutive_refusals=3))
    assert {(answer.outcome, answer.attempts) for answer in answers} == {("bad_url", 1)}
    assert refusals == []


def test_slow_redirects_end_at_the_timeout(host):
    for n in range(5):
        host.faults[f"/{n}"] = lambda request, _, to=n + 1: (
            time.sleep(0.3),
            request.answer(302, headers={"Location": f"/{to}"}),
        )
    host.faults["/5"] = lambda request, _: request.hang()
    assert ask(host, "/0", timeout=1, max_attempts=1).outcome == "timeout"
    assert not host.asked["/5"]


def test_a_url_of_any_characters_is_requested_as_a_browser_does(host):
    host.faults["/x"] = lambda request, _: request.answer(
        302, headers={"Location": "/caf\u00e9 [1]%.jpg?a b".encode().decode("latin-1")}
    )
    host.files["/caf%C3%A9%20[1]%.jpg?a%20b"] = BODY
    assert ask(host, "/x").body == BODY
    assert ask(host, "/caf\u00e9 [1]%.jpg?a b#top").body == BODY


def test_what_is_decoded_is_asked_for(host):
    accepted = []
    host.faults["/a"] = lambda request, _: (accepted.append(request.headers["Accept"]), request.serve())
    ask(host, "/a")
    assert accepted[0].split(", ") == [f"image/{name.lower()}" for name in containers.READ]


def test_refusals_between_successes_do_not_end_the_run(host):
    number = count()
    for n in range(20):
        host.files[f"/{n}"] = BODY
        host.faults[f"/{n}"] = lambda request, _: request.serve() if next(number) % 3 else request.answer(503)
    answers = ask(host, *(f"/{n}" for n in range(20)), max_consecutive_refusals=3, connections=1, max_attempts=4)
    assert {answer.outcome for answer in answers} == {"ok"}


def test_the_request_rate_adapts_to_a_host_with_a_rate_limit(host, monkeypatch):
    monkeypatch.setattr(client, "POLICY", RetryPolicy(first_wait=0.4, max_wait=0.4))
    times, refused = [], []

    def wrong(request, _):
        now = time.monotonic()
        if len([then for then in times if then > now - 1]) < 40:
            times.append(now)
            request.answer(200, b"x")
        else:
            refused.append(now)
            request.answer(429)

    paths = [f"/{n}" for n in range(150)]
    host.faults = dict.fromkeys(paths, wrong)
    answers = ask(host, *paths, connections=16, max_attempts=12)
    assert {answer.outcome for answer in answers} == {"ok"}
    assert len(refused) < len(paths)


def test_the_concurrency_limit_halves_once_per_round_and_grows_slowly(monkeypatch):
    async def run():
        gate = ConcurrencyLimit(8)
        async with gate.slot() as one, gate.slot() as other:
            gate.on_failure(one)
            gate.on_failure(other)
        assert gate.limit == 4
        async with gate.slot() as later:
            gate.on_failure(later)
        assert gate.limit == 2
        monkeypatch.setattr(gate, "pause", lambda _: None)
        for _ in range(100):
            async with gate.slot() as again:
                gate.on_failure(again)
        assert (gate.limit, gate.gap) == (1, client.LONGEST_GAP)
        while gate.gap:
            assert gate.limit == 1
            gate.on_success()
        gate.on_success()
        assert gate.limit == 2
        for _ in range(100):
            gate.on_success()
        assert gate.limit == 8

    asyncio.run(run())


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("7", 7), (" 0 ", 0), ("soon", None), ("-3", None), ("", None), ("1.5", None)]
)
def test_retry_after_in_seconds(header, seconds):
    assert retry_after(header) == seconds


def test_retry_after_as_a_date():
    assert 50 < retry_after(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700:4700::1111", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("2002:7f00:1::", False),
        ("2002:5db8:d822::", False),  # 6to4 and Teredo: whatever they lead to
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b::5db8:d822", True),
        ("64:ff9b:1::5db8:d822", False),
        ("::127.0.0.1", False),
        ("::93.184.216.34", False),
        ("::ffff:0:127.0.0.1", False),
        ("fec0::1", False),
        ("5f00::1", False),
        ("2001:db8::1", False),
        ("::", False),
    ],
)
def test_only_globally_reachable_addresses_are_public(address, public):
    assert is_public(address) is public
