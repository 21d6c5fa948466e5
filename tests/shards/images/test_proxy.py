"""Images through an HTTP proxy, which resolves names and connects."""

import asyncio
import base64
import logging
import socket

import pytest

from prep.core.errors import UserError
from prep.core.params import FetchParams
from prep.core.retry import RetryPolicy
from shards.images import client
from shards.images.client import Answer, Client
from tests.shards.host import Host, Request

BODY = b"picture " * 500
URL = "http://pictures.test/a.jpg"  # a name that only the proxy knows
SECRET = "t0p-secret"


class ProxyRequest(Request):
    def do_CONNECT(self):  # noqa: N802 -- the name that http.server calls
        self.do_GET()


@pytest.fixture
def proxy():
    """A proxy that knows one file; it is asked for whole URLs, and to connect to host:port."""
    with Host() as running:
        running.RequestHandlerClass = ProxyRequest
        running.files[URL] = BODY
        yield running


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setattr(client, "POLICY", RetryPolicy(first_wait=0.01, max_wait=0.3))
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(setting, *urls, mirror=""):
    settings = FetchParams(
        mirror=mirror,
        proxy=setting,
        connections=4,
        max_attempts=3,
        timeout=30,
        max_bytes=100_000,
        max_pixels=10**6,
        max_consecutive_refusals=50,
    )

    async def run():
        async with Client(settings, mirror) as session:
            return await asyncio.gather(*(session.get(url) for url in urls))

    answers = asyncio.run(run())
    return answers if len(urls) > 1 else answers[0]


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_a_proxy_is_followed_only_if_it_is_asked_for(proxy, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setattr(client, "POLICY", RetryPolicy(first_wait=0.01, max_wait=0.01))
    assert ask("", URL).outcome == "unreachable"
    assert not proxy.asked
    assert ask(proxy.url, URL) == Answer("ok", 200, 1, BODY)
    assert ask("environment", URL) == Answer("ok", 200, 1, BODY)
    monkeypatch.setenv("HTTP_PROXY", proxy.url.removeprefix("http://"))
    assert ask("environment", URL).body == BODY
    monkeypatch.delenv("HTTP_PROXY")
    assert ask("environment", URL).outcome == "unreachable"


def test_no_proxy_is_respected(proxy, monkeypatch):
    with Host() as mirror:
        mirror.files["/a.jpg"] = BODY
        assert ask(proxy.url, mirror.url + "/a.jpg", mirror=mirror.url).status == 404
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert ask(proxy.url, mirror.url + "/a.jpg", mirror=mirror.url).body == BODY


def test_a_proxy_with_a_name_of_a_private_address_is_connected_to(proxy):
    assert ask(f"http://localhost:{proxy.server_port}", URL).body == BODY


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1.", "127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0", "10.0.0.1", "169.254.169.254"),
        *(
            "[::1]",
            "[::ffff:10.0.0.1]",
            "[64:ff9b::a00:1]",
            "[fe80::1%25eth0]",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
        ),
    ],
)
def test_a_private_address_is_not_asked_of_the_proxy(proxy, host):
    proxy.faults[URL] = lambda request, _: request.answer(302, headers={"Location": f"http://{host}/secret"})
    directly, redirected = ask(proxy.url, f"http://{host}/secret", URL)
    assert directly.outcome == redirected.outcome == "bad_url"
    assert "not a public address" in directly.error
    assert set(proxy.asked) == {URL}


@pytest.mark.parametrize("url", [URL, "https://pictures.test/a.jpg"])
def test_a_proxy_that_asks_for_a_password_ends_the_run(proxy, url, caplog):
    for path in (URL, "pictures.test:443"):
        proxy.faults[path] = lambda request, _: request.answer(407, headers={"Proxy-Authenticate": "Basic"})
    setting = proxy.url.replace("http://", f"http://user:{SECRET}@")
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match="asks for a user and a password") as raised:
        ask(setting, url)
    assert f"the proxy {proxy.url} (fetch.proxy)" in str(raised.value)
    assert SECRET not in str(raised.value) + caplog.text
    assert proxy.asked.total() == 1


def test_a_password_is_sent_to_the_proxy_only(proxy, caplog):
    sent = []
    proxy.faults[URL] = lambda request, _: (sent.append(request.headers), request.answer(503))
    with caplog.at_level(logging.DEBUG):
        answer = ask(proxy.url.replace("http://", f"http://user:{SECRET}@"), URL)
    assert answer.outcome == "server_error"
    given = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert {headers["Proxy-Authorization"] for headers in sent} == {f"Basic {given}"}
    assert all("Authorization" not in headers for headers in sent)
    assert SECRET not in answer.error + caplog.text
    assert given not in answer.error + caplog.text


@pytest.mark.parametrize("url", [URL, "https://pictures.test/a.jpg"])
@pytest.mark.parametrize("where", ["a closed port", "a name without an address", "a silent address"])
def test_a_dead_proxy_ends_the_run(url, where, monkeypatch):
    monkeypatch.setattr(client, "CONNECT", 0.5)
    place = {
        "a closed port": f"127.0.0.1:{closed_port()}",
        "a name without an address": "proxy.invalid:3128",
        "a silent address": "127.0.0.1:9",
    }[where]
    if where == "a silent address":

        async def sock_connect(*_):
            await asyncio.sleep(60)

        monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", sock_connect)
    with pytest.raises(UserError, match=r"the proxy http://.* cannot be reached .*fetch\.proxy") as raised:
        ask(f"http://user:{SECRET}@{place}", url)
    assert SECRET not in str(raised.value)


def test_a_proxy_that_dies_during_the_run_ends_it(proxy):
    proxy.faults[URL] = lambda request, _: (request.serve(), setattr(request, "close_connection", True))

    async def run():
        settings = FetchParams(
            mirror="",
            proxy=proxy.url,
            connections=4,
            max_attempts=3,
            timeout=30,
            max_bytes=100_000,
            max_pixels=10**6,
            max_consecutive_refusals=12,
        )
        async with Client(settings, "") as session:
            assert (await session.get(URL)).outcome == "ok"
            proxy.shutdown()
            proxy.socket.close()
            outcomes = [(await session.get(f"http://{n}.test/")).outcome for n in range(3)]
            assert outcomes == ["unreachable"] * 3
            await session.get(URL)

    with pytest.raises(UserError, match="cannot be reached"):
        asyncio.run(run())


def test_a_proxy_that_answered_before_may_fail_now_and_then(proxy):
    other = "http://others.test/b.jpg"
    proxy.files[other] = BODY
    proxy.faults[other] = lambda request, number: request.reset() if number < 3 else request.serve()
    answers = ask(proxy.url, URL, other)
    assert [answer.outcome for answer in answers] == ["ok", "ok"]


@pytest.mark.parametrize(("status", "outcome"), [(502, "unreachable"), (504, "unreachable"), (403, "unreachable")])
def test_what_the_proxy_says_of_a_host_is_an_outcome(proxy, status, outcome):
    proxy.faults["pictures.test:443"] = lambda request, _: request.answer(status)
    answers = ask(proxy.url, "https://pictures.test/a.jpg", URL)
    assert [answer.outcome for answer in answers] == [outcome, "ok"]
    assert f"HTTP {status}" in answers[0].error


@pytest.mark.parametrize(
    "setting", [f"socks5://u:{SECRET}@h:1", f"http://{SECRET}@h:x", f"http://[{SECRET}", "ftp://h"]
)
def test_what_is_no_proxy_is_an_error_that_does_not_repeat_it(setting, monkeypatch):
    with pytest.raises(UserError, match=r"fetch\.proxy is not the URL of an HTTP proxy") as raised:
        ask(setting, URL)
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("HTTPS_PROXY", setting)
    with pytest.raises(UserError, match="HTTPS_PROXY is not the URL"):
        ask("environment", URL)
