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
from shards.images import client
from shards.images.client import Answer, Client, ConcurrencyLimit, is_public
from tests.shards.host import Host

BODY = b"picture " * 500


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
    return FetchParams(mirror="", **values | changed)


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
        host.faults["/a"] = lambda request, _: endless(request)
    large, exact = ask(host, "/a", "/b", max_bytes=1000)
    assert (large.outcome, large.body, large.attempts) == ("too_large", b"", 1)
    assert exact.outcome == "ok"


def endless(request):
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
    ],
)
def test_only_globally_reachable_addresses_are_public(address, public):
    assert is_public(address) is public
