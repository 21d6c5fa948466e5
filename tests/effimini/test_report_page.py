"""The report in a real browser: it shows everything and asks for nothing."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path; `.ci/run` installs it")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=3000",
]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], tuple[str, set[str]]]:
    """Open a page in Chromium; return its DOM and the URLs that the page itself asked for."""

    def open_page(html: str) -> tuple[str, set[str]]:
        (tmp_path / "page.html").write_text(html)
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            origin = f"http://127.0.0.1:{server.server_port}"
            log = tmp_path / "net.json"
            own = [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
            command = [str(CHROMIUM), *FLAGS, *own, f"{origin}/page.html"]
            dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
            server.shutdown()
        events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
        asked = {event["url"] for event in events if event.get("initiator") == origin and "url" in event}
        return dom, asked - {f"{origin}/page.html", f"{origin}/favicon.ico"}

    return open_page


def test_the_report_shows_everything_and_asks_for_nothing(
    run: Path, opened: Callable[[str], tuple[str, set[str]]]
) -> None:
    dom, asked = opened((run / "results/report.html").read_text())
    for words in ("DEMO DATA", "EffiMini", "TF-IDF + ridge", "Calibration", "sample.fraction", "Rows in = rows out"):
        assert words in dom
    assert dom.count("<svg") == 4
    assert asked == set()


def test_a_page_that_asks_for_something_would_be_seen(opened: Callable[[str], tuple[str, set[str]]]) -> None:
    _, asked = opened('<img src="/picture.png"><link rel="stylesheet" href="http://127.0.0.1:9/style.css">')
    assert {url.rsplit("/", 1)[-1] for url in asked} == {"picture.png", "style.css"}
