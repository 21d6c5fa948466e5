"""Shared fixtures: parameters, a small demo catalogue processed by the stages, the real corpus, a browser."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import pytest
from ruamel.yaml import YAML

from prep.core.params import Params
from tests.clone import set_params

if TYPE_CHECKING:  # the tests that need a GPU run where these are not installed
    from playwright.sync_api import Page, Request

    from tests.cluster import Cluster
    from tests.warm import Warm

with suppress(ImportError):
    from hypothesis import settings

    # by default an example that takes 0.2 s fails, and so do tests on a busy machine
    settings.register_profile("tests", settings.default, deadline=None)
    settings.load_profile("tests")

ROOT = Path(__file__).parent.parent
Visit: TypeAlias = "Callable[[Path], tuple[Page, list[str]]]"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which is not there on a machine with only a GPU's libraries
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers of `-n auto`: one more than cores, for tests wait a quarter of their time."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty local store, so that tests do not share results."""
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="session")
def make_params() -> Callable[..., Params]:
    """Return small demo parameters with dotted keys changed: make_params(**{"sample.fraction": 0.4})."""
    demo = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())

    def make(**changes: Any) -> Params:
        raw = msgspec.json.decode(msgspec.json.encode(demo))
        small = {
            "source.categories": ["Demo_Kitchen", "Demo_Toys"],
            "source.demo.items": 80,
            "images.resolution": 32,
            "download.max_bad_fraction": 0.1,  # with few rows, a few bad ones are a large fraction
            "images.max_bad_fraction": 0.5,
            "validation.near_duplicate_fraction.fail_above": 1.0,
            "model.text.name": str(ROOT / "effimini/minilm"),
        }
        set_params(raw, small | changes)
        return msgspec.convert(raw, Params)

    return make


@pytest.fixture(scope="session")
def run_to() -> Callable[..., None]:
    """Run the data stages up to and including `last` on every category, in `data`."""

    def run(params: Params, data: Path, last: str = "weights") -> None:
        from prep import download, groups, join, sample, weights
        from shards import decontaminate, fetch, shard

        stages = {
            "download": download.download,
            "join": join.join,
            "groups": groups.groups,
            "sample": sample.sample,
            "fetch": fetch.fetch,
            "decontaminate": decontaminate.decontaminate,
            "shard": shard.shard,
            "weights": weights.weights,
        }
        for name, stage in stages.items():
            if name in {"groups", "decontaminate", "weights"}:
                stage(params, data)
            else:
                for category in params.source.categories:
                    stage(category, params, data)
            if name == last:
                return

    return run


@pytest.fixture(scope="session")
def made_data(
    tmp_path_factory: pytest.TempPathFactory, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> Callable[..., Path]:
    """Return a function that runs the data stages in a new folder, with a store of its own: made_data("shard", ...)."""

    def made(last: str = "weights", **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("data")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EFFIMINI_STORE", str(folder / "store"))
            run_to(make_params(**changes), folder, last)
        return folder

    return made


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """Return the sha256 of every file below a folder, by relative path."""
    from prep.core.files import sha256

    def hashes(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    return hashes


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Return the folder of the real corpus, or skip."""
    folder = Path(os.environ.get("EFFIMINI_CORPUS", ROOT / "../shared/corpus"))
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set EFFIMINI_CORPUS to the folder of the real corpus")
    return folder.resolve()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Cluster]":
    """A running cluster."""
    from tests.cluster import Cluster

    started = Cluster(tmp_path_factory.mktemp("cluster"))
    yield started
    started.stop()


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Warm]":
    """A process in whose forks `effimini` and `dvc` start at once."""
    from tests.warm import Warm

    started = Warm(tmp_path_factory.mktemp("warm") / "w")
    yield started
    started.close()


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Open a file in Chromium, offline; return the page and the growing list of URLs that pages request."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path; `.ci/run` installs it")
    from playwright.sync_api import sync_playwright

    requested: list[str] = []

    def note(request: "Request") -> None:
        if not request.is_navigation_request() and not request.url.startswith("data:"):
            requested.append(request.url)

    with ExitStack() as stack:

        def open_file(path: Path) -> "tuple[Page, list[str]]":
            driver = stack.enter_context(sync_playwright())  # only now: while it runs, tests cannot call asyncio.run
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            stack.callback(browser.close)
            page = browser.new_context(offline=True).new_page()
            page.on("request", note)
            page.goto(path.as_uri())
            return page, requested

        yield open_file
