import hashlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import msgspec
import pytest
from huggingface_hub import constants

from prep import download, ranges
from prep import hub as the_hub
from prep.core.errors import UserError
from prep.core.params import Params, SourceParams
from prep.core.retry import RetryPolicy
from prep.source import locate, raw_file
from tests.prep import hub_server
from tests.prep.hub_server import COMMIT, NEWEST, Hub

ITEMS = "raw/meta_categories/meta_Toys.jsonl"
BODY = random.Random(1).randbytes(1 << 20)
ROOT = Path(__file__).parents[2]
QUICK = RetryPolicy(max_attempts=3, first_wait=0.001)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the hub with one file as the endpoint of huggingface_hub; files are read in ranges of 256 KiB."""
    with Hub({ITEMS: BODY}) as served:
        point_at(served, monkeypatch)
        monkeypatch.setattr(ranges, "RANGE", 1 << 18)
        yield served


def point_at(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture
def source(make_params: Callable[..., Params]) -> Callable[..., SourceParams]:
    def of(location: str = "", **changes: object) -> SourceParams:
        where = {"kind": "mirror", "location": location} if location else {"kind": "hub", "revision": COMMIT}
        given = {"categories": ["Toys"], **where, **changes}
        return make_params(**{f"source.{key}": value for key, value in given.items()}).source

    return of


def had(settings: SourceParams, policy: RetryPolicy = QUICK) -> bytes:
    raw = raw_file(settings, "items", "Toys", policy)
    return raw.path.read_bytes() if raw.path else b"".join(raw.arriving())


def left() -> list[Path]:
    return [path for path in Path(os.environ["EFFIMINI_STORE"]).rglob("*") if path.is_file()]


FAULTS = {
    "429": hub_server.status(429),
    "429 with 0 s": hub_server.status(429, Retry_After="0"),
    "429 with a date": hub_server.status(429, Retry_After=hub_server.http_date(-5)),
    "429 of the hub": hub_server.status(429, RateLimit='"resolvers";r=0;t=0'),
    "408": hub_server.status(408),
    "503": hub_server.status(503),
    "reset": hub_server.reset,
    "cut": hub_server.cut,
    "short": hub_server.short,
    "elsewhere": hub_server.elsewhere,
    "faint": hub_server.faint,
    "page": hub_server.page,
    "whole": hub_server.whole,
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("name", FAULTS)
def test_the_bytes_are_correct_after_every_transient_fault(
    hub: Hub, source: Callable[..., SourceParams], name: str, mirror: bool, keep: bool
) -> None:
    fault = FAULTS[name]
    hub.faults.extend([None, fault, fault, None, fault])
    assert had(source(hub.cdn.url if mirror else "", keep_raw=keep)) == BODY
    assert not hub.faults or name == "whole"  # which sends the rest at once


def test_a_permanent_fault_is_an_error_after_the_attempts(hub: Hub, source: Callable[..., SourceParams]) -> None:
    hub.faults.extend([hub_server.status(503)] * 4)
    with pytest.raises(UserError, match=rf"{ITEMS} cannot be fetched after 3 attempts \(HTTP 503\).*HF_TOKEN"):
        had(source(keep_raw=False))
    assert len(hub.faults) == 1
    with pytest.raises(UserError, match=r"meta_Toys.jsonl cannot be fetched after 2 attempts.*check source.location"):
        had(source("http://127.0.0.1:9"))


def test_a_file_that_a_new_revision_did_not_change_is_not_downloaded_again(
    hub: Hub, source: Callable[..., SourceParams], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert had(source()) == BODY
    asked = len(hub.ranges())
    new = source(revision=NEWEST)
    assert had(new) == BODY
    assert len(hub.ranges()) == asked
    assert "meta_Toys.jsonl: as in another revision, so it is not downloaded again" in caplog.text
    first, second = sorted(Path(os.environ["EFFIMINI_STORE"]).rglob("meta_Toys.jsonl"))
    assert first.samefile(second)
    hub.files = {ITEMS: BODY[::-1]}
    shutil.rmtree(second.parents[2])
    shutil.rmtree(first.parents[2])
    assert had(new) == BODY[::-1]
    assert len(hub.ranges()) == 2 * asked
    hub.files = {ITEMS: BODY}
    (path,) = Path(os.environ["EFFIMINI_STORE"]).rglob("meta_Toys.jsonl")
    path.write_bytes(BODY)  # not what its seal says
    assert had(source()) == BODY
    assert len(hub.ranges()) == 3 * asked


@pytest.mark.parametrize("headers", [{"Retry_After": "1"}, {"RateLimit": '"api";r=0;t=1'}, "date"])
def test_a_retry_waits_as_long_as_the_server_requests(
    hub: Hub, source: Callable[..., SourceParams], headers: dict[str, str] | str
) -> None:
    # A client that does not wait uses up its attempts before the server opens.
    given = {"Retry_After": hub_server.http_date(2)} if isinstance(headers, str) else headers
    hub_server.closed_for(hub, 0.9, **given)
    assert had(source(keep_raw=False), RetryPolicy(max_attempts=2, first_wait=0.001)) == BODY


def test_an_incomplete_response_counts_as_an_attempt(hub: Hub, source: Callable[..., SourceParams]) -> None:
    hub.faults.extend([hub_server.faint, hub_server.status(503), hub_server.status(503)])
    with pytest.raises(UserError, match="after 3 attempts"):
        had(source(hub.cdn.url, keep_raw=False))
    hub.faults.extend([hub_server.page] * 3)
    with pytest.raises(UserError, match=r"after 3 attempts \(received 28 bytes of text/html, expected"):
        had(source(hub.cdn.url, keep_raw=False))


def test_an_interrupted_response_is_resumed_where_it_stopped(hub: Hub, source: Callable[..., SourceParams]) -> None:
    hub.faults.append(hub_server.cut)
    had(source(hub.cdn.url))
    first, second, *_ = (tuple(map(int, asked.split("-"))) for asked in hub.ranges())
    assert first == (0, (1 << 18) - 1)
    assert second == (1 << 17, (1 << 17) + (1 << 18) - 1)


@pytest.mark.parametrize("fault", [hub_server.changed, hub_server.grown])
def test_a_file_that_changes_while_it_is_read_is_an_error(
    hub: Hub, source: Callable[..., SourceParams], fault: Callable[..., None]
) -> None:
    hub.faults.extend([None, fault])
    with pytest.raises(UserError, match=r"meta_Toys.jsonl changed while it was read: .*run again"):
        had(source(hub.cdn.url))
    assert not [path for path in left() if path.name == "meta_Toys.jsonl"]


@pytest.mark.parametrize("keep", [True, False])
def test_wrong_bytes_of_the_right_length_are_detected_by_sha256(
    hub: Hub, source: Callable[..., SourceParams], keep: bool
) -> None:
    hub.faults.extend([None, hub_server.corrupt])
    with pytest.raises(UserError, match=f"has sha256 .*, expected {hashlib.sha256(BODY).hexdigest()}; run again"):
        had(source(keep_raw=keep))
    assert had(source(keep_raw=keep)) == BODY  # without the wrong bytes


def test_a_kept_file_is_requested_once_and_a_streamed_one_leaves_no_file(
    hub: Hub, source: Callable[..., SourceParams]
) -> None:
    streamed = raw_file(source(keep_raw=False), "items", "Toys")
    assert (streamed.name, streamed.size, streamed.path) == (ITEMS, len(BODY), None)
    assert streamed.arriving is not None
    assert b"".join(streamed.arriving()) == BODY
    assert left() == []
    kept = raw_file(source(keep_raw=True), "items", "Toys")
    assert kept.path is not None
    assert kept.path.read_bytes() == BODY
    asked = len(hub.ranges())
    assert raw_file(source(keep_raw=True), "items", "Toys").path == kept.path
    assert len(hub.ranges()) == asked


@pytest.mark.parametrize("kind", ["hub", "mirror"])
def test_a_kept_file_that_was_changed_on_disk_is_downloaded_again(
    hub: Hub, source: Callable[..., SourceParams], kind: str
) -> None:
    settings = source(keep_raw=True) if kind == "hub" else source(hub.cdn.url, keep_raw=True)
    path = raw_file(settings, "items", "Toys").path
    assert path is not None
    path.write_bytes(BODY[:-2] + b"x\n")
    assert raw_file(settings, "items", "Toys").path == path
    assert path.read_bytes() == BODY
    asked = len(hub.ranges())
    path.with_name(f"{path.name}.sha256").unlink()  # as before there were seals: only the hub publishes a sha256
    raw_file(settings, "items", "Toys")
    assert (len(hub.ranges()) == asked) == (kind == "hub")
    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
    path.write_bytes(BODY[:-2] + b"x\n")
    raw_file(settings, "items", "Toys")
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("pattern", ["raw/meta_categories/*.jsonl", "images/I/*"])
def test_a_demo_catalogue_that_was_changed_is_made_again(
    pattern: str, make_params: Callable[..., Params], digests: Callable[[Path], dict[str, str]]
) -> None:
    settings = make_params().source
    catalogue = Path(locate(settings, "Demo_Toys").base)
    before = digests(catalogue)
    path = next(catalogue.glob(pattern))
    path.write_bytes(path.read_bytes()[:-1])
    assert Path(locate(settings, "Demo_Toys").base) == catalogue
    assert digests(catalogue) == before
    path.unlink()
    locate(settings, "Demo_Toys")
    assert digests(catalogue) == before


def run(settings: SourceParams, *code: str, **environment: str) -> subprocess.Popen[bytes]:
    """Read the raw file in another process, with HF_ENDPOINT in the environment."""
    script = (
        "import sys, msgspec; from prep.core.params import SourceParams; from prep import ranges, source;"
        f"ranges.RANGE = 1 << 18; settings = msgspec.json.decode(sys.argv[1], type=SourceParams);{';'.join(code)}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, msgspec.json.encode(settings).decode()], stderr=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("mirror", [True, False])
def test_bytes_that_did_not_reach_the_disk_are_downloaded_again(
    hub: Hub, source: Callable[..., SourceParams], mirror: bool
) -> None:
    """After a power failure the end of a file may be zeros; a mirror publishes no sha256 that would tell."""
    settings = source(hub.cdn.url if mirror else "", keep_raw=True)
    path = raw_file(settings, "items", "Toys").path
    assert path is not None
    path.rename(partial := path.with_name(f".{path.name}.partial"))
    path.with_name(f"{path.name}.sha256").unlink()
    partial.write_bytes(BODY[: ranges.RANGE + 1] + bytes(ranges.RANGE - 1))
    before = len(hub.ranges())
    assert had(settings) == BODY
    assert hub.ranges()[before:][0] == "262144-524287"


@pytest.mark.parametrize("mirror", [True, False])
def test_a_killed_download_is_resumed(hub: Hub, source: Callable[..., SourceParams], mirror: bool) -> None:
    hub.faults.extend([None, None, lambda request, *_: request.connection.recv(1)])  # two ranges, then no response
    settings = source(hub.cdn.url if mirror else "", keep_raw=True)
    process = run(settings, 'source.raw_file(settings, "items", "Toys")', HF_ENDPOINT=hub.url)
    while len(hub.ranges()) < 3:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in left() if path.suffix != ".lock"] == [".meta_Toys.jsonl.partial"]
    before = len(hub.ranges())
    assert had(settings) == BODY
    assert hub.ranges()[before:] == ["262144-524287", "524288-786431", "786432-1048575"]
    assert sorted(path.name for path in left() if path.suffix != ".lock") == [
        "meta_Toys.jsonl",
        "meta_Toys.jsonl.sha256",
    ]


def test_the_token_is_sent_only_to_the_hub_and_not_logged(
    hub: Hub, source: Callable[..., SourceParams], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.faults.append(hub_server.status(503))
    had(source(keep_raw=False))
    hub.faults.extend([hub_server.status(503)] * 3)
    with pytest.raises(UserError) as caught:
        had(source(keep_raw=False))
    assert {asked.token for asked in hub.hub.asked} == {"Bearer hf_secret"}
    assert {asked.token for asked in hub.cdn.asked} == {""}
    assert "hf_secret" not in caplog.text + str(caught.value) + repr(the_hub.remote(COMMIT, ITEMS))


def test_every_url_contains_the_commit(hub: Hub, source: Callable[..., SourceParams]) -> None:
    had(source())
    assert all(COMMIT in asked.path for asked in hub.hub.asked if the_hub.REPO in asked.path)


def test_each_file_is_logged_with_bytes_time_and_rate(
    hub: Hub, source: Callable[..., SourceParams], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "prep")
    had(source(keep_raw=False))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("prep")]
    assert len(lines) == 1
    assert lines[0].startswith(f"meta_Toys.jsonl: {len(BODY)} bytes in ")
    assert lines[0].endswith(" MB/s")


def test_a_full_disk_is_an_error_before_anything_is_fetched(hub: Hub, source: Callable[..., SourceParams]) -> None:
    hub.announced[ITEMS] = 10**18
    for settings in (source(), source(hub.cdn.url)):
        with pytest.raises(UserError, match=r"needs 1,000,000,.* bytes more in .*EFFIMINI_STORE .*keep_raw: false"):
            had(settings)
    assert hub.ranges() == []


def test_a_disk_that_fills_up_during_the_download_is_an_error(
    hub: Hub, source: Callable[..., SourceParams], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted on this machine")
    try:
        monkeypatch.setenv("EFFIMINI_STORE", str(disk))

        def fill(request: object, *_: object) -> None:
            (disk / "other").write_bytes(bytes(900_000))
            hub_server.cut(request, *_)  # type: ignore[arg-type]

        hub.faults.append(fill)
        with pytest.raises(UserError, match="bytes more in .* are free; free up"):
            had(source())
        (disk / "other").unlink()
        assert had(source()) == BODY
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (hub_server.refusing(403, "GatedRepo"), r"is a gated repository on .*accept its terms"),
        (hub_server.refusing(404, "RepoNotFound"), r"has no repository McAuley-Lab/.*HF_TOKEN"),
        (hub_server.refusing(404, "RevisionNotFound"), r"has no commit 1{40}; set source.revision .*categories --hub"),
        (
            hub_server.refusing(401, "", "Invalid credentials in Authorization header"),
            r"401 .*the token is not accepted: log",
        ),
    ],
)
def test_a_refusal_of_the_hub_is_an_error(
    hub: Hub, source: Callable[..., SourceParams], fault: Callable[..., None], message: str
) -> None:
    hub.api_faults.append(fault)
    with pytest.raises(UserError, match=message) as caught:
        had(source())
    assert "\n" not in str(caught.value)


def test_a_missing_or_inaccessible_file_is_an_error(hub: Hub, source: Callable[..., SourceParams]) -> None:
    with pytest.raises(UserError, match=rf"no file raw/meta_categories/meta_Gone.jsonl at {COMMIT}; check"):
        raw_file(source(), "items", "Gone", QUICK)
    with pytest.raises(UserError, match=r"meta_Gone.jsonl responded with HTTP 404; check source.location"):
        raw_file(source(hub.cdn.url), "items", "Gone", QUICK)
    hub.api_faults.extend([None, hub_server.refusing(403, "GatedRepo", "Access to dataset is restricted")])
    with pytest.raises(UserError, match=r"HTTP 403 \(Access to dataset is restricted\); .*accept its terms"):
        had(source())


def test_a_hub_that_does_not_respond_is_an_error(hub: Hub, source: Callable[..., SourceParams]) -> None:
    hub.api_faults.extend([hub_server.status(503)] * 2)
    assert had(source()) == BODY
    hub.api_faults.extend([hub_server.reset] * 3)
    with pytest.raises(UserError, match=r"does not respond after 3 attempts.*check the network and HF_ENDPOINT"):
        had(source())
    stopped = run(source(), 'source.raw_file(settings, "items", "Toys")', HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    _, stderr = stopped.communicate()
    assert b"HF_HUB_OFFLINE is set; unset it" in stderr


def test_every_source_gives_the_same_bytes(
    tmp_path: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch, digests: Callable[..., object]
) -> None:
    demo = make_params(**{"source.categories": ["Demo_Toys"], "source.demo.items": 500})
    catalogue = Path(locate(demo.source, "Demo_Toys").base)
    served = {str(path.relative_to(catalogue)): path.read_bytes() for path in catalogue.rglob("*.jsonl")}
    with Hub(served) as hub:
        point_at(hub, monkeypatch)
        download.download("Demo_Toys", demo, tmp_path / "demo")
        for number, where in enumerate(
            ({"kind": "hub", "revision": COMMIT}, {"kind": "mirror", "location": hub.cdn.url}) * 2
        ):
            given = {"categories": ["Demo_Toys"], "keep_raw": number < 2, **where}
            params = make_params(**{f"source.{key}": value for key, value in given.items()})
            download.download("Demo_Toys", params, tmp_path / str(number))
            assert digests(tmp_path / str(number)) == digests(tmp_path / "demo")


def test_images_of_the_hub_are_fetched_from_their_urls(source: Callable[..., SourceParams]) -> None:
    assert locate(source(), "Toys").base == ""
