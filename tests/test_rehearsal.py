"""The rehearsal's synthetic data, its servers, and how it watches a command."""

import asyncio
import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import pytest
from PIL import Image

from benchmarks.rehearsal import figures, hub, images, pictures, source, twin, watch
from prep import records
from prep.core.params import Params, load_params
from prep.source import PATHS, raw_file
from shards.images import pixels
from shards.images.client import Client
from tests.prep.test_source import point_at

BOOKS = "Books"
STORED = msgspec.json.decode(figures.STORED.read_bytes(), type=figures.Figures)


@pytest.fixture
def without_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFIMINI_CORPUS", str(tmp_path))


@contextmanager
def running(server: str, *arguments: str) -> Iterator[str]:
    """Run a server as a process and yield its address."""
    command = [sys.executable, "-m", f"benchmarks.rehearsal.{server}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def rows(lines: Iterator[bytes]) -> list[dict]:
    return [json.loads(line) for line in b"".join(lines).splitlines()]


def test_the_stored_figures_are_those_of_the_corpus() -> None:
    folder = figures.corpus()
    if folder is None:
        pytest.skip("the corpus does not exist; set EFFIMINI_CORPUS to its folder")
    assert figures.fit(folder) == STORED


def test_rows_do_not_depend_on_the_part_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    made = twin.Twin(STORED, 2000)
    whole = b"".join(made.item_lines(BOOKS)), b"".join(made.review_lines(BOOKS))
    monkeypatch.setattr(twin, "ROWS", 17)
    assert (b"".join(made.item_lines(BOOKS)), b"".join(made.review_lines(BOOKS))) == whole


def test_rows_have_the_layout_and_the_defects_of_the_real_ones() -> None:
    made = twin.Twin(STORED, 40_000)
    items, reviews = rows(made.item_lines("Electronics")), b"".join(made.review_lines("Electronics"))
    for kind, content in (("items", json.dumps(items[0]).encode()), ("reviews", reviews)):
        assert records.parse_lines(kind, content, 1)[1] == []
    passing = sum(bool(item["features"] and item["description"]) for item in items) / len(items)
    wanted = figures.CATEGORIES["Electronics"]
    assert passing == pytest.approx(wanted.features * wanted.description, abs=0.04)
    titles = Counter((item["title"].lower(), item["store"]) for item in items)
    assert 0.005 < sum(count for count in titles.values() if count > 1) / len(items) < 0.06
    assert {type(item["price"]).__name__ for item in items} == {"float", "NoneType", "str"}
    assert any(not item["title"].isascii() for item in items)
    assert any(image["hi_res"] is None for item in items for image in item["images"])
    elsewhere = {item["parent_asin"] for item in rows(made.item_lines("Unknown"))}
    assert any(item["parent_asin"] in elsewhere for item in items)
    lines = Counter(reviews.splitlines())
    assert 0.005 < 1 - len(lines) / lines.total() < 0.02
    stars = Counter(json.loads(line)["rating"] for line in lines)
    assert stars[0.0] == 1
    assert stars[5.0] > stars[3.0] > 0


def test_a_complete_file_is_not_written_again(tmp_path: Path, without_corpus: None) -> None:
    counts = source.write_source(tmp_path, 1000)
    paths = sorted(path for path in tmp_path.rglob("*.jsonl"))
    assert len(paths) == 2 * len(figures.CATEGORIES)
    assert counts["items"] == sum(path.read_bytes().count(b"\n") for path in paths if path.name.startswith("meta_"))
    books = tmp_path / PATHS["reviews"].format(BOOKS)
    content = books.read_bytes()
    books.with_name(f"{books.name}.sha256").unlink()
    times = {path: path.stat().st_mtime_ns for path in paths}
    assert source.write_source(tmp_path, 1000) == counts
    assert [path for path in paths if path.stat().st_mtime_ns != times[path]] == [books]
    assert books.read_bytes() == content


def test_pictures_differ_but_for_the_shared_ones(without_corpus: None) -> None:
    pool = pictures.Pool(per_shape=6)
    found = [pool.picture(number) for number in range(600)]
    assert found[:50] == [pictures.Pool(per_shape=6).picture(number) for number in range(50)]
    assert len(set(found)) > 580
    decoded = [pixels.to_training(body, pixels.Preparation(64, "squash", 90, 10**6)) for body in found]
    assert {(each.width, each.height) for each in decoded} == set(pictures.SHAPES)
    assert len({each.perceptual_hash for each in decoded}) > 550
    assert Image.open(io.BytesIO(found[0])).mode == "RGB"


def test_the_faults_of_the_image_host_follow_from_addresses_and_attempts(without_corpus: None) -> None:
    paths = [b"/images/I/71%08xL._SL256_.jpg" % number for number in range(0, 16 * 8000, 16)]
    pool = pictures.Pool(per_shape=3)
    one, other = images.Host(pool), images.Host(pool)
    first = [one.answer(path) for path in paths]
    assert first == [other.answer(path) for path in paths]
    statuses = Counter(status for status, _, _ in first)
    assert 0.005 < statuses[404] / len(paths) < 0.015
    assert 0.001 < statuses[503] / len(paths) < 0.015
    assert 0 < sum(is_cut for *_, is_cut in first) < 30
    again = {path: one.answer(path)[0] for path, (status, *_) in zip(paths, first, strict=True) if status == 404}
    assert set(again.values()) <= {404, 503}
    bursts = "".join("x" if status == 503 else "." for status, *_ in first).replace(".", " ").split()
    assert max(map(len, bursts)) >= images.BURST


def test_the_client_gets_every_picture_that_is_there(without_corpus: None) -> None:
    with running("images", "--per-shape", "3") as url:

        async def all_of() -> list[str]:
            settings = replace(load_params(Path("params/base.yaml")).fetch, max_attempts=5)
            async with Client(settings, url) as client:
                wanted = (f"{url}/images/I/71{number:08x}L._SL256_.jpg" for number in range(600))
                answers = await asyncio.gather(*map(client.get, wanted))
                return [answer.outcome for answer in answers if answer.outcome != "gone"]

        assert set(asyncio.run(all_of())) == {"ok"}
        with pytest.raises(HTTPError):
            urlopen(f"{url}/other")
        assert json.load(urlopen(f"{url}/stats"))["ok"] > 500


def test_the_source_is_read_from_the_hub_despite_its_faults(
    tmp_path: Path, without_corpus: None, monkeypatch: pytest.MonkeyPatch, make_params: Callable[..., Params]
) -> None:
    source.write_source(tmp_path, 1000)
    settings = make_params(
        **{"source.kind": "hub", "source.revision": hub.COMMIT, "source.categories": [BOOKS], "source.keep_raw": False}
    ).source
    with hub.FaultyHub(tmp_path, 0, hub.COMMIT) as served:
        point_at(served, monkeypatch)
        for _ in range(6):
            arriving = raw_file(settings, "items", BOOKS).arriving
            assert arriving
            assert b"".join(arriving()) == (tmp_path / PATHS["items"].format(BOOKS)).read_bytes()
        assert len(served.ranges()) > 6  # a response broke off, or was refused


def test_the_hub_is_a_process_that_lists_the_files(tmp_path: Path, without_corpus: None) -> None:
    source.write_source(tmp_path, 1000)
    with running("hub", str(tmp_path)) as url:
        tree = json.load(urlopen(f"{url}{hub.API}tree/{hub.COMMIT}/raw/meta_categories"))
        assert len(tree) == len(figures.CATEGORIES)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., watch.Watched]:
    """Return a function that watches a shell command in which `effimini` is a program that works for a while."""
    folder = tmp_path / "real"
    folder.mkdir()
    busy = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"
    child = f"import os\nif os.fork() == 0:\n  {busy.format(0.3).replace(chr(10), chr(10) + '  ')}\n  os._exit(0)\n"
    program = folder / "effimini"
    program.write_text(f"#!{sys.executable}\n{child}{busy.format(0.2)}\nx = bytearray(60_000_000)\ntime.sleep(0.6)\n")
    program.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(watch.sys, "executable", str(folder / "python"))
    monkeypatch.setattr(watch, "INTERVAL", 0.05)

    def run(command: str, kill_after: float | None = None) -> watch.Watched:
        return watch.run(["sh", "-c", command], tmp_path, dict(os.environ), tmp_path / "log.txt", kill_after)

    return run


def test_a_stage_is_charged_for_all_its_processes(stage: Callable[..., watch.Watched]) -> None:
    done = stage("effimini download Books && effimini validate raw && effimini download Toys")
    assert done.status == 0
    assert {name: usage.calls for name, usage in done.stages.items()} == {"download": 2, "validate_raw": 1, "dvc": 1}
    assert done.stages["validate_raw"].cpu > 0.45  # the process that outlives it has 0.3 of it
    assert done.stages["download"].cpu > 0.9
    assert done.stages["download"].process > 55
    assert sum(usage.wall for usage in done.stages.values()) == pytest.approx(done.wall)


def test_a_kill_reaches_the_whole_group(stage: Callable[..., watch.Watched], tmp_path: Path) -> None:
    begin = time.monotonic()
    done = stage(f"sleep 60 & echo $! > {tmp_path}/pid; effimini download Books; sleep 60", kill_after=0.4)
    assert done.status == -9
    assert time.monotonic() - begin < 30
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process of the group survived")
