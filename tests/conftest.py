"""What several tests need: parameters to vary, a small demo catalogue taken through the stages, the real corpus."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from prep.params import Params

ROOT = Path(__file__).parent.parent


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = [
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


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a local store of its own, so that none sees what another made."""
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="session")
def make_params() -> Callable[..., Params]:
    """Return the demo's parameters, small, with dotted keys changed: make_params(**{"sample.fraction": 0.4})."""
    demo = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())

    def make(**changes: Any) -> Params:
        raw = msgspec.json.decode(msgspec.json.encode(demo))
        small = {
            "source.categories": ["Demo_Kitchen", "Demo_Toys"],
            "source.demo.items": 80,
            "images.size": 32,
            "download.bad_share": 0.1,  # few rows: a few bad ones are a large share
            "images.bad_share": 0.5,
            "validation.twins.most": 1.0,
            "model.text.name": str(ROOT / "effimini/minilm"),
        }
        for key, value in (small | changes).items():
            *sections, name = key.split(".")
            section = raw
            for part in sections:
                section = section[part]
            section[name] = value
        return msgspec.convert(raw, Params)

    return make


@pytest.fixture(scope="session")
def run_to() -> Callable[..., None]:
    """Run the data stages up to and with `last` on every category, in `data`."""

    def run(params: Params, data: Path, last: str = "weights") -> None:
        from prep import download, groups, join, sample, weights
        from shards import fetch, write

        stages = {
            "download": download.download,
            "join": join.join,
            "groups": groups.group,
            "sample": sample.sample,
            "fetch": fetch.fetch,
            "shard": write.write,
            "weights": weights.weigh,
        }
        for name, stage in stages.items():
            if name in {"groups", "weights"}:
                stage(params, data)
            else:
                for category in params.source.categories:
                    stage(category, params, data)
            if name == last:
                return

    return run


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """Return the sha256 of every file below a folder, by relative path."""
    from prep.files import sha256

    def hashes(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    return hashes


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Return the folder of the real corpus, or skip."""
    folder = Path(os.environ.get("EFFIMINI_CORPUS", ROOT / "../shared/corpus"))
    if not folder.is_dir():
        pytest.skip(f"the real corpus is not at {folder}; name its folder in EFFIMINI_CORPUS")
    return folder.resolve()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], tuple[str, set[str]]]:
    """Open a page in Chromium; return its DOM and the URLs that the page itself asked for."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path; `.ci/run` installs it")

    def open_page(html: str) -> tuple[str, set[str]]:
        (tmp_path / "page.html").write_text(html)
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            origin = f"http://127.0.0.1:{server.server_port}"
            log = tmp_path / "net.json"
            own = [f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
            command = [str(CHROMIUM), *_FLAGS, *own, f"{origin}/page.html"]
            dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
            server.shutdown()
        events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
        asked = {event["url"] for event in events if event.get("initiator") == origin and "url" in event}
        return dom, asked - {f"{origin}/page.html", f"{origin}/favicon.ico"}

    return open_page
