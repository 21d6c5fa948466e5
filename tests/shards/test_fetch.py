import dataclasses
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from effimini import cli
from prep.core import files, params, progress, writers
from prep.core.errors import UserError
from prep.core.tables.images import IMAGES
from prep.core.tables.sample import SAMPLE
from shards.fetch import fetch
from shards.images import client, pixels
from shards.images.journal import MAGIC
from tests.shards.host import Host

CORPUS = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve()
REAL = "https://m.media-amazon.com/images/I/"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / "store"))


@pytest.fixture
def host():
    with Host() as running:
        yield running


def parameters(mirror, images=None, **fetching):
    """Return the demo's parameters with another mirror and other limits."""
    base = params.load_params(ROOT / "params.yaml")
    asked = {
        "mirror": mirror,
        "connections": 4,
        "max_attempts": 2,
        "timeout": 30.0,
        "max_consecutive_refusals": 1000,
    } | fetching
    return dataclasses.replace(
        base,
        images=dataclasses.replace(base.images, **{"resolution": 32, "max_bad_fraction": 1.0} | (images or {})),
        fetch=dataclasses.replace(base.fetch, **asked),
    )


def picture(seed):
    pixels_ = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels_).resize((80, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_sample(parts):
    """Write the sample: part name -> lists of image URLs, one per item."""
    number = 0
    for name, items in parts.items():
        rows = []
        for image_urls in items:
            empty = {field.name: "" if field.type == pa.string() else 0 for field in SAMPLE}
            rows.append(empty | {"parent_asin": f"A{number:04d}", "category": "C", "image_urls": image_urls})
            number += 1
        writers.write_table(Path("data/sample/C") / f"{name}.parquet", pa.Table.from_pylist(rows, SAMPLE))


def had():
    """Return the rows of the images table, all parts in order."""
    return [row for path in sorted(Path("data/images/C").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def outcomes():
    return [row["outcome"] for row in had()]


def hashes():
    return {path.name: files.sha256(path) for path in sorted(Path("data/images/C").iterdir())}


def serve(host, count):
    for n in range(count):
        host.files[f"/images/I/{n}.jpg"] = picture(n)


def test_every_item_has_its_image_in_the_same_row(host):
    serve(host, 7)
    write_sample({"train-00": [[f"{REAL}{n}.jpg"] for n in (3, 1, 4)], "train-01": [], "test": [[f"{REAL}6.jpg"]]})
    fetch("C", parameters(host.url))
    table = pq.read_table("data/images/C/train-00.parquet")
    assert table.schema.equals(IMAGES)
    assert sorted(path.name for path in Path("data/images/C").iterdir()) == [
        "report.json",
        "test.parquet",
        "train-00.parquet",
        "train-01.parquet",
    ]
    assert [row["parent_asin"] for row in had()] == ["A0003", "A0000", "A0001", "A0002"]
    for row, n in zip(had(), (6, 3, 1, 4), strict=True):
        data = picture(n)
        made = pixels.to_training(data, pixels.Preparation(32, "squash", 90, 10**6))
        assert row == {
            "parent_asin": row["parent_asin"],
            "outcome": "ok",
            "url": f"{REAL}{n}.jpg",
            "status": 200,
            "source_bytes": len(data),
            "source_width": 80,
            "source_height": 60,
            "source_sha256": row["source_sha256"],
            "perceptual_hash": made.perceptual_hash,
            "image": made.image,
        }
    assert json.loads(Path("data/images/C/report.json").read_text()) == {
        "stage": "fetch",
        "category": "C",
        "before": [],
        "tables": {"images": {"rows_in": 4, "rows_out": 4, "dropped": {}}},
    }


def nasty(host):
    """Configure every kind of failure on the host; return the expected outcome of each URL."""
    serve(host, 1)
    good = picture(0)
    host.files |= {
        "/images/I/html.jpg": b"<html>Sorry</html>",
        "/images/I/empty.jpg": b"",
        "/images/I/large.jpg": good + bytes(60_000),
        "/images/I/half.jpg": good[: len(good) // 2],
        "/images/I/dot.gif": b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02L\x01\0;",
        "/images/I/bomb.gif": b"GIF89a\x60\xea\x60\xea\0\0\0,\0\0\0\0\x60\xea\x60\xea\0\x02\x01\x01\0;",
    }
    host.faults |= {
        "/images/I/429.jpg": lambda request, _: request.answer(429),
        "/images/I/503.jpg": lambda request, _: request.answer(503),
        "/images/I/403.jpg": lambda request, _: request.answer(403),
        "/images/I/hang.jpg": lambda request, _: request.hang(),
        "/images/I/reset.jpg": lambda request, _: request.reset(),
        "/images/I/cut.jpg": lambda request, _: request.truncate(good),
        "/images/I/loop.jpg": lambda request, _: request.answer(302, headers={"Location": request.path}),
        "/images/I/text.jpg": lambda request, _: request.answer(200, good, {"Content-Type": "text/html"}),
        "/images/I/inside.jpg": lambda request, _: request.answer(302, headers={"Location": "http://10.0.0.1/a"}),
    }
    return {
        "0.jpg": "ok",
        "text.jpg": "ok",
        "html.jpg": "not_an_image",
        "empty.jpg": "not_an_image",
        "large.jpg": "too_large",
        "half.jpg": "corrupt",
        "dot.gif": "too_small",
        "bomb.gif": "too_many_pixels",
        "429.jpg": "refused",
        "503.jpg": "server_error",
        "403.jpg": "refused",
        "hang.jpg": "timeout",
        "reset.jpg": "unreachable",
        "cut.jpg": "unreachable",
        "loop.jpg": "bad_url",
        "inside.jpg": "bad_url",
        "absent.jpg": "gone",
    }


def test_every_kind_of_failure_has_its_outcome(host):
    expected = nasty(host)
    write_sample({"test": [[], ["ftp://host/a.jpg"], *([REAL + name] for name in expected)]})
    fetch("C", parameters(host.url, timeout=1.5, max_attempts=1, max_bytes=50_000))
    assert outcomes() == ["no_url", "bad_url", *expected.values()]
    assert all(bool(row["image"]) == (row["outcome"] == "ok") for row in had())
    report = json.loads(Path("data/images/C/report.json").read_text())
    funnel = report["tables"]["images"]
    assert (funnel["rows_in"], funnel["rows_out"]) == (len(expected) + 2, 2)
    assert funnel["dropped"]["not_an_image"] == 2


def test_all_images_are_fetched_from_a_host_that_restarts(host):
    serve(host, 30)
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(30)]})
    again, closed = [], threading.Event()

    def die(request, _):
        request.close_connection = True  # otherwise the thread of the connection would keep running
        if re.search(r"/29\.jpg$", request.path):  # under way when the host goes: they get no answer
            closed.wait(10)
            return
        request.serve()
        if request.path.endswith("/9.jpg"):  # with others under way
            threading.Thread(target=come_back).start()

    def come_back():
        host.shutdown()
        host.server_close()
        closed.set()
        time.sleep(0.5)
        again.append(Host(host.server_port))
        again[0].files = host.files
        again[0].__enter__()

    host.faults = {f"/images/I/{n}.jpg": die for n in range(30)}
    fetch("C", parameters(host.url, connections=3, max_attempts=8))
    assert outcomes() == ["ok"] * 30
    assert again[0].asked
    again[0].__exit__()


def test_a_second_run_retries_only_transient_failures(host):
    expected = nasty(host)
    write_sample({"test": [[REAL + name] for name in expected]})
    settings = parameters(host.url, timeout=1.5, max_attempts=1, max_bytes=50_000)
    fetch("C", settings)
    before = hashes()
    host.asked.clear()
    fetch("C", settings)
    passing = {"refused", "timeout", "server_error", "unreachable"}
    assert set(host.asked) == {f"/images/I/{name}" for name, outcome in expected.items() if outcome in passing}
    assert hashes() == before


def test_a_transient_failure_is_fetched_by_the_next_run(host):
    serve(host, 3)
    host.faults["/images/I/1.jpg"] = lambda request, number: request.answer(503) if number <= 2 else request.serve()
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(3)]})
    fetch("C", parameters(host.url))
    assert outcomes() == ["ok", "server_error", "ok"]
    fetch("C", parameters(host.url))
    assert outcomes() == ["ok", "ok", "ok"]
    assert host.asked["/images/I/0.jpg"] == 1


def test_a_host_with_bad_moments_gives_the_same_bytes(host, monkeypatch):
    serve(host, 3)
    host.faults["/images/I/1.jpg"] = lambda request, number: request.answer(503) if number <= 2 else request.serve()
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(3)]})
    fetch("C", parameters(host.url, max_attempts=4))
    assert host.asked["/images/I/1.jpg"] == 3
    disturbed = hashes()
    host.faults.clear()
    monkeypatch.setenv("EFFIMINI_STORE", "undisturbed")
    fetch("C", parameters(host.url, max_attempts=4))
    assert hashes() == disturbed


def test_a_url_is_requested_once(host):
    serve(host, 1)
    host.faults["/images/I/0.jpg"] = lambda request, _: (time.sleep(0.1), request.serve())
    write_sample({"train-00": [[f"{REAL}0.jpg"]] * 20, "test": [[f"{REAL}0.jpg"]] * 5})
    fetch("C", parameters(host.url))
    assert outcomes() == ["ok"] * 25
    assert host.asked.total() == 1


def test_the_next_candidate_is_requested_after_a_permanent_failure_only(host):
    serve(host, 2)
    host.faults["/images/I/busy.jpg"] = lambda request, _: request.answer(503)
    host.files["/images/I/html.jpg"] = b"<html>"
    write_sample(
        {
            "test": [
                [f"{REAL}absent.jpg", f"{REAL}0.jpg"],
                [f"{REAL}html.jpg", "no url", f"{REAL}0.jpg"],
                [f"{REAL}busy.jpg", f"{REAL}1.jpg"],
                [f"{REAL}absent.jpg", f"{REAL}html.jpg"],
                [f"{REAL}0.jpg", f"{REAL}never.jpg"],
            ]
        }
    )
    fetch("C", parameters(host.url))
    assert [(row["outcome"], row["url"]) for row in had()] == [
        ("ok", f"{REAL}0.jpg"),
        ("ok", f"{REAL}0.jpg"),
        ("server_error", f"{REAL}busy.jpg"),
        ("not_an_image", f"{REAL}html.jpg"),
        ("ok", f"{REAL}0.jpg"),
    ]
    assert not host.asked["/images/I/1.jpg"] + host.asked["/images/I/never.jpg"]


def test_the_given_size_is_requested(host):
    host.files["/images/I/a._SL64_.jpg"] = picture(0)
    write_sample({"test": [["https://m.media-amazon.com/images/W/T/images/I/a._AC_SX9_.jpg"]]})
    fetch("C", parameters(host.url, images={"request": 64}))
    assert [(row["outcome"], row["url"]) for row in had()] == [("ok", f"{REAL}a._SL64_.jpg")]


def test_a_larger_sample_requests_only_new_urls_and_keeps_the_old_parts(host):
    serve(host, 6)
    parts = {"train-00": [[f"{REAL}0.jpg"], [f"{REAL}1.jpg"]], "test": [[f"{REAL}2.jpg"]]}
    write_sample(parts)
    fetch("C", parameters(host.url))
    before = hashes()
    write_sample(parts | {"train-01": [[f"{REAL}3.jpg"], [f"{REAL}1.jpg"]]})
    host.asked.clear()
    fetch("C", parameters(host.url))
    assert set(host.asked) == {"/images/I/3.jpg"}
    assert {name: value for name, value in hashes().items() if name in {"train-00.parquet", "test.parquet"}} == {
        name: value for name, value in before.items() if name != "report.json"
    }
    Path("data/sample/C/train-01.parquet").unlink()
    fetch("C", parameters(host.url))
    assert hashes() == before


def test_the_result_does_not_depend_on_arrival_order_or_connections(host, monkeypatch):
    serve(host, 30)
    for n in range(0, 30, 3):
        host.faults[f"/images/I/{n}.jpg"] = lambda request, _: (time.sleep(0.03), request.serve())
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(32)]})
    seen = []
    for connections in (1, 16):
        monkeypatch.setenv("EFFIMINI_STORE", f"store{connections}")
        fetch("C", parameters(host.url, connections=connections))
        seen.append(hashes())
    assert seen[0] == seen[1]


def test_other_image_parameters_use_another_store_and_other_limits_retry_failures(host):
    serve(host, 1)
    host.files["/images/I/large.jpg"] = picture(0) + bytes(60_000)
    write_sample({"test": [[f"{REAL}0.jpg"], [f"{REAL}large.jpg"]]})
    fetch("C", parameters(host.url, max_bytes=50_000))
    assert outcomes() == ["ok", "too_large"]
    fetch("C", parameters(host.url, max_bytes=90_000))
    assert outcomes() == ["ok", "ok"]
    assert host.asked["/images/I/0.jpg"] == 1
    fetch("C", parameters(host.url, images={"resolution": 48}))
    assert pixels.decode(had()[0]["image"]).shape == (48, 48, 3)
    assert host.asked["/images/I/0.jpg"] == 2


def test_a_directory_replaces_the_host(tmp_path):
    folder = tmp_path / "mirror/images/I"
    folder.mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    (folder / "0.jpg").write_bytes(picture(0))
    (folder / "html.jpg").write_bytes(b"<html>")
    (folder / "large.jpg").write_bytes(bytes(60_000))
    (folder / "folder.jpg").mkdir()
    names = ["0.jpg", "absent.jpg", "html.jpg", "large.jpg", "folder.jpg", "%2e%2e/%2e%2e/%2e%2e/secret.jpg", "0.jpg/a"]
    write_sample({"test": [[REAL + name] for name in names]})
    settings = parameters(str(tmp_path / "mirror"), max_bytes=50_000)
    fetch("C", settings)
    assert outcomes() == ["ok", "gone", "not_an_image", "too_large", "gone", "bad_url", "gone"]
    assert had()[0]["status"] == 0
    before = hashes()
    shutil.rmtree(tmp_path / "mirror/images")
    fetch("C", settings)
    assert hashes() == before


def test_a_missing_mirror_is_an_error():
    write_sample({"test": [[f"{REAL}0.jpg"]]})
    with pytest.raises(UserError, match="mirror nowhere is not a folder"):
        fetch("C", parameters("nowhere"))


def test_the_demo_catalogue_has_its_images():
    settings = parameters("")
    settings = dataclasses.replace(
        settings,
        source=dataclasses.replace(
            settings.source, categories=("C",), demo=dataclasses.replace(settings.source.demo, items=30)
        ),
    )
    write_sample({"test": [[]]})
    fetch("C", settings)
    found = sorted(Path("store/demo").glob("*/images/I/*.jpg"))
    write_sample({"test": [[REAL + path.name] for path in found]})
    fetch("C", settings)
    assert outcomes().count("ok") > 20


def test_too_many_missing_images_are_an_error_and_keep_the_old_tables(host):
    serve(host, 4)
    write_sample({"test": [[], [f"{REAL}0.jpg"], [f"{REAL}1.jpg"], [f"{REAL}2.jpg"], [f"{REAL}absent.jpg"]]})
    fetch("C", parameters(host.url, images={"max_bad_fraction": 0.25}))
    before = hashes()
    write_sample({"test": [[], [f"{REAL}gone.jpg"], [f"{REAL}1.jpg"], [f"{REAL}2.jpg"], [f"{REAL}absent.jpg"]]})
    with pytest.raises(UserError, match=r"2 of 4 images of C are unusable \(gone 2\), over the budget of 25.0%"):
        fetch("C", parameters(host.url, images={"max_bad_fraction": 0.25}))
    assert hashes() == before


def test_a_host_that_refuses_all_requests_is_an_error_and_fetched_images_are_kept(host, monkeypatch):
    monkeypatch.setattr(client, "BREAK", 0.2)
    serve(host, 30)
    for n in range(5, 30):
        host.faults[f"/images/I/{n}.jpg"] = lambda request, _: request.answer(403)
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(30)]})
    with pytest.raises(UserError, match="refused 11 requests in a row"):
        fetch("C", parameters(host.url, max_consecutive_refusals=8, connections=1))
    assert not Path("data/images/C").exists()
    host.faults.clear()
    host.asked.clear()
    fetch("C", parameters(host.url, max_consecutive_refusals=8))
    assert outcomes() == ["ok"] * 30
    assert not any(host.asked[f"/images/I/{n}.jpg"] for n in range(5))


def from_anywhere(monkeypatch, **fetching):
    """Return parameters that fetch from the hosts of the URLs, of which loopback is public."""
    monkeypatch.setattr(client, "is_public", lambda _: True)
    settings = parameters("", **fetching)
    return dataclasses.replace(settings, source=dataclasses.replace(settings.source, kind="hub", revision="a" * 40))


@pytest.mark.parametrize("through", ["directly", "a redirect"])
def test_a_dead_host_costs_only_its_own_images(host, monkeypatch, caplog, through):
    """The other hosts are asked; the next run asks the dead host again, and only it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    lost = [f"{dead}/{n}.jpg" for n in range(30)]
    if through == "a redirect":
        for n in range(30):
            host.faults[f"/to/{n}.jpg"] = lambda request, _, to=lost[n]: request.answer(302, headers={"Location": to})
        lost = [f"{host.url}/to/{n}.jpg" for n in range(30)]
    serve(host, 30)
    found = [f"{host.url}/images/I/{n}.jpg" for n in range(30)]
    write_sample({"test": [[url] for url in lost + found]})
    settings = from_anywhere(monkeypatch, max_consecutive_refusals=5, connections=2)
    for run in range(2):
        host.asked.clear()
        caplog.clear()
        fetch("C", settings)
        assert outcomes() == ["unreachable"] * 30 + ["ok"] * 30
        (given_up,) = re.findall(r"(\d+) x \S+ was given up in this run", caplog.text)
        assert int(given_up) >= 15
        assert [n for n in range(30) if host.asked[f"/images/I/{n}.jpg"]] == ([] if run else list(range(30)))
        assert len([line for line in caplog.messages if "not requested in this run" in line]) == 1
    strict = dataclasses.replace(settings, images=dataclasses.replace(settings.images, max_bad_fraction=0.4))
    with pytest.raises(UserError, match=r"30 of 60 images of C are unusable .*refused 5 requests in a row"):
        fetch("C", strict)


def test_a_single_host_that_refuses_all_ends_the_run_with_an_error(host, monkeypatch):
    monkeypatch.setattr(client, "BREAK", 0.2)
    for n in range(30):
        host.faults[f"/{n}.jpg"] = lambda request, _: request.answer(403)
    write_sample({"test": [[f"{host.url}/{n}.jpg"] for n in range(30)]})
    with pytest.raises(UserError, match="refused 11 requests in a row.*also after a pause"):
        fetch("C", from_anywhere(monkeypatch, max_consecutive_refusals=8, connections=1))
    assert host.asked.total() == 11
    assert not Path("data/images/C").exists()


@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
def test_a_dead_proxy_ends_the_run_with_an_error(monkeypatch, caplog, scheduler):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"http://user:s3cret@127.0.0.1:{taken.getsockname()[1]}"
    write_sample({part: [[f"http://pictures.test/{part}{n}.jpg"] for n in range(9)] for part in ("test", "train-00")})
    settings = from_anywhere(monkeypatch, proxy=proxy)
    settings = dataclasses.replace(settings, dask=dataclasses.replace(settings.dask, scheduler=scheduler, workers=2))
    with pytest.raises(UserError, match=r"the proxy http://127.0.0.1:\d+ \(fetch.proxy\) cannot be reached") as raised:
        fetch("C", settings)
    assert "s3cret" not in str(raised.value) + caplog.text
    assert not Path("data/images/C").exists()


def test_what_is_wrong_with_an_image_is_counted_by_its_type(host, caplog):
    for n in range(3):
        host.files[f"/images/I/{n}.jpg"] = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(3)]})
    with pytest.raises(UserError, match="not_an_image 3"):
        fetch("C", parameters(host.url, images={"max_bad_fraction": 0.5}))
    assert "fetch C: 3 x not_an_image: HEIC, which is not read" in caplog.messages


def test_only_the_given_outcomes_are_retried(host):
    serve(host, 2)
    host.faults["/images/I/503.jpg"] = lambda request, _: request.answer(503)
    write_sample({"test": [[REAL + name] for name in ("0.jpg", "absent.jpg", "503.jpg")]})
    settings = parameters(host.url, max_attempts=1)
    fetch("C", settings)
    host.asked.clear()
    host.files["/images/I/absent.jpg"] = picture(9)
    fetch("C", settings, retry={"gone", "timeout"})
    assert host.asked == {"/images/I/absent.jpg": 1}
    assert outcomes() == ["ok", "ok", "server_error"]


def test_the_command_retries_outcomes_by_name_and_rejects_others(host, monkeypatch, capsys):
    serve(host, 1)
    write_sample({"test": [[f"{REAL}0.jpg"], [f"{REAL}absent.jpg"]]})
    text = (ROOT / "params.yaml").read_text()
    text = re.sub(r"categories: .*", "categories: [C]", text).replace("mirror: ''", f"mirror: {host.url}")
    Path("params.yaml").write_text(text.replace("max_bad_fraction: 0.1", "max_bad_fraction: 0.9"))
    for retry, asked in (("", 1), ("timeout", 0), ("gone,timeout", 1)):
        host.asked.clear()
        monkeypatch.setattr(sys, "argv", ["effimini", "fetch", "C", *(["--retry", retry] if retry else [])])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        assert host.asked["/images/I/absent.jpg"] == asked
    monkeypatch.setattr(sys, "argv", ["effimini", "fetch", "C", "--retry", "gone,lost"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "--retry lost is not an outcome; choose from bad_url, corrupt, gone" in capsys.readouterr().err


@pytest.mark.parametrize("scheduler", ["threads", "processes", "tcp"])
def test_several_workers_give_the_bytes_of_one_within_the_same_connections(host, scheduler, monkeypatch, request):
    address = request.getfixturevalue("cluster").address if scheduler == "tcp" else scheduler
    expected = nasty(host)
    serve(host, 40)
    slow = lambda asked, _: (time.sleep(0.05), asked.serve())  # noqa: E731
    host.faults |= {f"/images/I/{n}.jpg": slow for n in range(40)}
    shared = [f"{REAL}7.jpg", f"{REAL}8.jpg"]
    parts = {f"train-{n:02d}": [[f"{REAL}{k}.jpg"] for k in range(n, 40, 5)] + [shared] for n in range(5)}
    write_sample(parts | {"test": [[REAL + name, f"{REAL}1.jpg"] for name in expected]})
    settings = parameters(host.url, connections=3, timeout=1.5, max_attempts=1, max_bytes=50_000)
    monkeypatch.setenv("EFFIMINI_STORE", str(Path("alone").absolute()))
    fetch("C", settings)
    alone = hashes()
    host.most_under_way = 0
    host.asked.clear()
    monkeypatch.setenv("EFFIMINI_STORE", str(Path("together").absolute()))
    pool = dataclasses.replace(settings.dask, scheduler=address, workers=2)
    fetch("C", dataclasses.replace(settings, dask=pool))
    assert hashes() == alone
    assert host.most_under_way <= 3
    host.asked.clear()
    fetch("C", settings, retry=())  # all of it is in the store
    assert not host.asked
    assert [path.suffix for path in Path("together").rglob("*") if path.is_file()] == [".journal"]


def test_images_fetched_by_workers_before_a_kill_are_not_requested_again(host):
    serve(host, 6)
    write_sample({"train-00": [[f"{REAL}{n}.jpg"] for n in range(6)]})
    settings = parameters(host.url)
    fetch("C", settings)
    (store,) = Path("store/images").glob("*/C.journal")
    expected = hashes()
    spools = store.with_suffix(".spools")
    spools.mkdir()
    store.rename(spools / "0000.journal")  # as a run that was killed before it took them leaves it
    host.asked.clear()
    fetch("C", settings)
    assert hashes() == expected
    assert not host.asked
    assert not spools.exists()


def test_a_missing_sample_is_an_error_with_the_command_to_run():
    with pytest.raises(UserError, match="data/sample/C has no part files"):
        fetch("C", parameters("http://127.0.0.1:9"))


@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
def test_the_outcomes_and_the_most_frequent_errors_are_logged_once(host, scheduler, caplog, monkeypatch):
    serve(host, 6)
    for n in (2, 5):
        host.faults[f"/images/I/{n}.jpg"] = lambda request, _: request.answer(403)
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(3)], "train-00": [[f"{REAL}{n}.jpg"] for n in (3, 4, 5)]})
    settings = parameters(host.url)
    pool = dataclasses.replace(settings.dask, scheduler=scheduler, workers=2)
    warnings = []  # pytest shares caplog's handler with Dask's loggers, so a LocalCluster silences it
    monkeypatch.setattr(
        logging.getLogger("shards.fetch"), "warning", lambda words, *values: warnings.append(words % values)
    )
    with caplog.at_level(logging.INFO):
        fetch("C", dataclasses.replace(settings, dask=pool))
    assert "fetch C: ok 4 (66.7 %)" in caplog.messages
    assert warnings == ["fetch C: 2 x HTTP 403"]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_a_slow_fetch_says_how_far_it_is(host, scheduler, caplog, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.1)
    serve(host, 6)
    told = threading.Event()
    host.faults |= {f"/images/I/{n}.jpg": lambda asked, _: (told.wait(60), asked.serve()) for n in (1, 4)}
    for n in (2, 5):
        host.faults[f"/images/I/{n}.jpg"] = lambda request, _: request.answer(403)
    write_sample({"test": [[f"{REAL}{n}.jpg"] for n in range(3)], "train-00": [[f"{REAL}{n}.jpg"] for n in (3, 4, 5)]})
    settings = parameters(host.url)
    pool = dataclasses.replace(settings.dask, scheduler=scheduler, workers=2)
    found = []

    def line(words, *values):
        found.append(words % values)
        if "4 of 6" in found[-1]:
            told.set()

    monkeypatch.setattr(logging.getLogger("prep.core.progress"), "info", line)
    fetch("C", dataclasses.replace(settings, dask=pool))
    line = next(line for line in found if "4 of 6" in line)
    assert line.startswith("fetch C: images: 4 of 6 (66.7 %), ")
    assert " left, " in line
    assert line.endswith("50.0 % of images ok, refused 2, most frequent error: HTTP 403 (2 times)")


SCRIPT = """
import signal, sys
from pathlib import Path
import msgspec
from prep.core import params
from shards.fetch import fetch
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[2] == "background" else signal.default_int_handler)
fetch("C", msgspec.json.decode(sys.argv[1], type=params.Params))
"""


@pytest.mark.parametrize(
    ("with_signal", "job"),
    [
        (signal.SIGKILL, "foreground"),
        (signal.SIGTERM, "foreground"),
        (signal.SIGINT, "foreground"),
        (signal.SIGTERM, "background"),  # where a shell has interrupts ignored
    ],
)
def test_a_killed_fetch_resumes(host, monkeypatch, with_signal, job):
    count = 40
    serve(host, count)
    write_sample({"train-00": [[f"{REAL}{n}.jpg"] for n in range(count)], "test": [[f"{REAL}0.jpg"]]})
    monkeypatch.setenv("EFFIMINI_STORE", "undisturbed")
    fetch("C", parameters(host.url))
    undisturbed = hashes()
    shutil.rmtree("data/images")

    monkeypatch.setenv("EFFIMINI_STORE", "killed")
    host.asked.clear()
    settings = parameters(host.url, connections=2)
    for n in range(20, count):
        host.faults[f"/images/I/{n}.jpg"] = lambda request, _: request.hang(20)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, msgspec.json.encode(settings).decode(), job]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while host.asked["/images/I/21.jpg"] + host.asked["/images/I/20.jpg"] < 2:
        assert process.poll() is None
        time.sleep(0.01)
    while next(Path("killed").rglob("C.journal")).read_bytes().count(MAGIC) < 20:
        time.sleep(0.01)
    process.send_signal(with_signal)
    assert process.wait(30) != 0
    assert not Path("data/images/C").exists()

    host.faults.clear()
    host.asked.clear()
    fetch("C", settings)
    assert set(host.asked) == {f"/images/I/{n}.jpg" for n in range(20, count)}
    assert hashes() == undisturbed


def test_real_images_are_fetched(host):
    paths = sorted((CORPUS / "movies/images/I").glob("*.jpg"))[:60] + sorted((CORPUS / "photos").glob("*.jpg"))[:20]
    if not paths:
        pytest.skip(f"no pictures in {CORPUS}; set EFFIMINI_CORPUS")
    host.files = {f"/images/I/{path.name}": path.read_bytes() for path in paths}
    write_sample({"train-00": [[REAL + path.name] for path in paths]})
    fetch("C", parameters(host.url, images={"max_bad_fraction": 0.0}))
    assert outcomes() == ["ok"] * len(paths)
