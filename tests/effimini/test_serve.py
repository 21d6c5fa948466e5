"""The service, in a process of its own, asked over the loopback interface."""

import asyncio
import base64
import csv
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from effimini import serve_request
from effimini.batcher import Batcher, Full
from effimini.input_csv import INPUT_COLUMNS
from effimini.predict import ITEMS_PER_BATCH, Item, predict, read_items
from effimini.train import train
from prep.core.errors import UserError
from prep.core.params import Params
from tests.clone import ROOT
from tests.conftest import CHROMIUM

from .conftest import replace
from .test_calibration import INTERVAL
from .test_predict import COUNTED, config_of, raw_rows, row, scores, with_interval, write_csv

READY = re.compile(r"is served at (\S+);")
FIELDS = [name for name in COUNTED if name != "image_paths"]


class Server:
    """A running service."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        words = [sys.executable, "-m", "effimini.cli", "serve", "--model", str(model), "--port", "0", *options]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(words, stderr=file, stdout=file, env=env, cwd=log.parent)
        while not (found := READY.search(log.read_text())):
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.client = httpx.Client(base_url=found[1], timeout=60)

    def post(self, **content: Any) -> httpx.Response:
        return self.client.post("/predict", json=content)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/health").json()
        return found

    def wait_for(self, items: int) -> None:
        """Return when `items` items wait to be scored."""
        while self.health()["waiting"] != items:
            time.sleep(0.01)

    def end(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a service, which ends with the module."""
    started: list[Server] = []

    def start_one(model: Path, *options: str) -> Server:
        started.append(Server(model, tmp_path_factory.mktemp("service") / "log", *options))
        return started[-1]

    yield start_one
    for server in started:
        server.client.close()
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's best model with an interval of ratings that scatter."""
    return with_interval(run, tmp_path_factory.mktemp("served") / "model", INTERVAL)


@pytest.fixture(scope="module")
def server(model: Path, start: Start) -> Server:
    return start(model, "--wait-ms", "200", "--max-items", "70", "--max-mb", "1")


def encoded(picture: Path | bytes) -> str:
    return base64.b64encode(picture if isinstance(picture, bytes) else picture.read_bytes()).decode()


def png(width: int, height: int) -> bytes:
    """Return a PNG that claims a size, whatever it contains."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 90, 90)).save(out, "PNG")
    return out.getvalue()


def test_scores_are_those_of_predict(
    run_params: Params, run: Path, model: Path, server: Server, tmp_path: Path
) -> None:
    """Cells as the CSV file has them and pictures as base64; in the batches of `predict`."""
    rows = [cells | {"rating_number": str(n)} for n, cells in enumerate(raw_rows(run_params, run))]
    pictures = run / "data/pictures"
    predict(model, write_csv(tmp_path / "in.csv", rows, COUNTED), pictures, tmp_path / "out.csv", interval=0.9)
    with (tmp_path / "out.csv").open(newline="") as file:
        expected = [{name: line[name] for name in ("item_id", "score", "low", "high")} for line in csv.DictReader(file)]
    assert len(expected) > ITEMS_PER_BATCH
    assert len({line["score"] for line in expected}) > 10  # else equal scores would prove nothing

    items = [{name: cells[name] for name in FIELDS} for cells in rows]
    names = [cells["image_paths"].partition(";")[0] for cells in rows]
    for item, name in zip(items, names, strict=True):
        if name:
            item["image"] = encoded(pictures / name)
    found = server.post(items=items, interval=0.9).json()["scores"]
    assert [{name: v if name == "item_id" else f"{v:.2f}" for name, v in line.items()} for line in found] == expected

    for item, name, cells, line in list(zip(items, names, rows, expected, strict=True))[:6]:
        alone = server.client.post("/predict", json=item | {"interval": 0.9}).json()
        assert alone == pytest.approx({n: v if n == "item_id" else float(v) for n, v in line.items()}, abs=0.0101)
        files = {"image": (name, (pictures / name).read_bytes() if name else b"")}
        fields = {name: cells[name] for name in FIELDS} | {"interval": "0.9"}
        assert server.client.post("/predict", data=fields, files=files).json() == alone


def test_values_of_json_are_those_of_cells(run: Path) -> None:
    """As in the dataset's own rows."""
    config = config_of(run)
    values = {
        "features": ["one", None, "two"], "details": {"Color": "red"}, "price": 12.5, "images": [{"large": "u"}],
        "videos": [], "categories": ["a", "b"], "rating_number": 7,
    }  # fmt: skip
    cells = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    options = {"interval": 0.9}
    found, same = (
        serve_request.read_items(serve_request.of_json(json.dumps(content | options).encode()), config)
        for content in (values, cells)
    )
    assert found == same
    assert found[0].ratings == 7
    assert "two" in found[0].text
    absent = serve_request.of_json(b'{"title": "NA", "price": null, "features": ["nan"]}')
    assert absent.rows[0]["title"] == absent.rows[0]["price"] == ""


@pytest.mark.parametrize(
    "changes",
    [
        [{"features": "[1, 2]"}],
        [{}, {"parent_asin": "A2", "description": "['a' ... 'z']"}],
        [{"rating_number": "many"}],
        [{}, {}],
    ],
)
def test_what_predict_refuses_is_refused(run: Path, tmp_path: Path, changes: list[dict[str, str]]) -> None:
    config, rows = config_of(run), [row() | {"rating_number": "1"} | change for change in changes]
    with pytest.raises(UserError):
        read_items(write_csv(tmp_path / "items.csv", rows, COUNTED), tmp_path, config, counts=True)
    items = [{name: cells[name] for name in FIELDS} for cells in rows]
    asked = serve_request.of_json(json.dumps({"items": items, "interval": 0.9}).encode())
    with pytest.raises(UserError, match=rf"\b(item|items 1 and) {len(rows)}\b"):
        serve_request.read_items(asked, config)


def test_the_fields_are_the_columns_of_predict() -> None:
    assert {*INPUT_COLUMNS} - {"image_paths"} <= {*serve_request._Fields.__struct_fields__}


def test_concurrent_requests_share_a_batch(server: Server) -> None:
    before, count = server.health(), 24
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda n: server.post(title="sturdy " * (1 + n % 3)), range(count)))
    after = server.health()
    assert {answer.status_code for answer in answers} == {200}
    assert after["items"] - before["items"] == count
    assert after["batches"] - before["batches"] < count
    scores: list[set[float]] = [{answer.json()["score"] for answer in answers[n::3]} for n in range(3)]
    assert [len(found) for found in scores] == [1, 1, 1], "each request gets the score of its own item"


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body is not JSON (Input data was truncated); correct it"),
        (b"\xff", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "it nests too deeply"),
        (b"[]", 422, "Expected `object`, got `array`"),
        (b'{"titel": "a"}', 422, "unknown field `titel`"),
        (b'{"image_paths": "a.jpg"}', 422, "unknown field `image_paths`"),
        (b'{"title": 3}', 422, "Expected `str | null`, got `int` - at `$.title`"),
        (b'{"items": [{}, {"features": [1]}]}', 422, "at `$.items[1].features[0]`"),
        (b'{"items": []}', 422, "the request has 0 items; send 1 to 70 at once"),
        (json.dumps({"items": [{}] * 71}).encode(), 413, "the request has 71 items; send 1 to 70 at once"),
        (b'{"title": "' + bytes(1 << 20) + b'"}', 413, "the body is larger than 1048576 bytes"),
        (b'{"interval": 1}', 422, "interval is 1; give a fraction from 0.5 to 0.99"),
        (b'{"ratings": 3}', 422, "ratings is 3 but there is no interval; add interval 0.9, or leave it out"),
        (b'{"image": "%"}', 422, "the image of item 1 is not base64"),
        (b'{"image": "\xc3\xa9"}', 422, "the image of item 1 is not base64"),
        (b'{"items": [{}, {"image": "aGVsbG8="}]}', 422, "the image of item 2 cannot be read (not_an_image"),
        (json.dumps({"image": encoded(png(40, 30))}).encode(), 422, "cannot be read (corrupt: PNG); send another file"),
        (json.dumps({"image": encoded(png(30_000, 30_000))}).encode(), 422, "(too_many_pixels: "),
    ],
)  # fmt: skip
def test_bad_json_gets_a_sentence(server: Server, body: bytes, status: int, sentence: str) -> None:
    found = server.client.post("/predict", content=body, headers=JSON)
    assert found.status_code == status
    assert set(found.json()) == {"error"}
    assert sentence in found.json()["error"]
    assert "\n" not in found.json()["error"]
    assert server.health()["waiting"] == 0


def test_a_body_of_unknown_length_is_limited(server: Server) -> None:
    chunks = (b" " * 100_000 for _ in range(20))
    found = server.client.post("/predict", content=chunks, headers=JSON)
    assert (found.status_code, found.json()["error"][:23]) == (413, "the body is larger than")


@pytest.mark.parametrize(
    ("parts", "status", "sentence"),
    [
        ([("titel", (None, "a"))], 422, "unknown field `titel`"),
        ([("interval", (None, "most"))], 422, "Expected `float | null`, got `str` - at `$.interval`"),
        ([("title", (None, "a")), ("title", (None, "b"))], 422, "a field is repeated"),
        ([("photo", b"a")], 422, "the form has a file in the field photo; upload it as image"),
        ([("image", b"text")], 422, "the image of item 1 cannot be read (not_an_image"),
        ([("image", png(30_000, 30_000))], 422, "(too_many_pixels: "),
        ([("image", bytes(1 << 20))], 413, "the body is larger than 1048576 bytes"),
        ([("image", b"a"), ("image", b"b")], 400, "Too many files"),
    ],
)
def test_a_bad_form_gets_a_sentence(server: Server, parts: list[Any], status: int, sentence: str) -> None:
    found = server.client.post("/predict", files=parts)
    assert (found.status_code, set(found.json())) == (status, {"error"})
    assert sentence in found.json()["error"]


def test_other_requests_get_a_sentence(server: Server) -> None:
    found = server.client.post("/predict", data={"title": "a"})
    assert (found.status_code, found.json()["error"][-52:]) == (
        415, "urlencoded; send application/json or multipart/form-data"[-52:],
    )  # fmt: skip
    for path, status in (("/none", 404), ("/predict", 405)):
        found = server.client.get(path)
        assert (found.status_code, "POST to /predict" in found.json()["error"]) == (status, True)


def test_an_image_that_cannot_be_read_is_left_out_if_asked(server: Server) -> None:
    bare = server.post(title="sturdy").json()
    found = server.post(title="sturdy", image=encoded(b"text"), strict=False).json()
    assert found.pop("image_fault").startswith("not_an_image")
    assert found == bare
    form = {"title": (None, "sturdy"), "strict": (None, "false"), "image": b"text"}
    assert server.client.post("/predict", files=form).json()["score"] == bare["score"]


@pytest.mark.slow
def test_a_model_without_an_interval_says_so(run: Path, start: Start, tmp_path: Path) -> None:
    server = start(with_interval(run, tmp_path / "old", None))
    assert "has no interval" in server.post(title="a", interval=0.9).json()["error"]
    assert "interval" not in server.client.get("/").text.partition("<script>")[0].partition("<form")[2]
    assert server.health()["source"] == "demo"


@pytest.mark.slow
def test_a_full_queue_says_when_to_come_back_and_sigterm_lets_requests_finish(model: Path, start: Start) -> None:
    server = start(model, "--queue", "2", "--max-items", "2", "--wait-ms", "1000")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, items=[{"title": "a"}, {"title": "b"}])
        server.wait_for(2)
        refused = server.post(title="c")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "busy" in refused.json()["error"]
        assert first.result().status_code == 200
        assert server.post(title="c").status_code == 200

        last = pool.submit(server.post, title="d")
        server.wait_for(1)
        assert server.end() == 0
        assert last.result().status_code == 200
    log = server.log.read_text()
    assert log.endswith("ended\n")
    assert "Traceback" not in log


@pytest.mark.slow
def test_more_bodies_than_memory_is_set_aside_for_are_refused(model: Path, start: Start) -> None:
    server = start(model, "--max-mb", "1")
    host, port = server.client.base_url.host, server.client.base_url.port
    half = [socket.create_connection((host, port)) for _ in range(4)]
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {1 << 20}\r\n\r\n"
    for one in half:
        one.sendall(head.encode() + b" " * ((1 << 20) - 1))  # all but the last byte
    while (refused := server.post(title="a")).status_code == 200:  # they have not arrived yet
        time.sleep(0.05)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    for one in half:
        one.close()
    while server.post(title="a").status_code != 200:  # their memory is free again
        time.sleep(0.05)


@pytest.fixture(scope="module")
def with_columns(run_params: Params, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose kernel compares columns too."""
    folder = tmp_path_factory.mktemp("columns")
    params = replace(
        run_params, model={"kernel": 16, "tabular": ("price",)}, train={"epochs": 1, "freeze_encoders": True}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder / "store"))
        patch.chdir(folder)
        train(params, data / "shards", data / "weights.json")
    return folder / "models/best"


@pytest.mark.slow
def test_a_model_with_columns_reads_them(with_columns: Path, start: Start, tmp_path: Path) -> None:
    items = write_csv(tmp_path / "in.csv", [row() | {"price": "9.5"}], (*INPUT_COLUMNS, "price"))
    predict(with_columns, items, tmp_path, tmp_path / "out.csv")
    found = start(with_columns).post(title="sturdy", price=9.5).json()
    assert found["score"] == float(scores(tmp_path / "out.csv")["A1"])


def serve_words(*words: str, code: str = "from effimini.cli import main; main()") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, "serve", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_keeps_it_from_starting_is_one_sentence(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = serve_words("--model", str(model), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot be listened on" in done.stderr.splitlines()[-1]
    done = serve_words("--model", "none")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = serve_words("--model", "none", "--queue", "5")
    assert "--max-items 256 is more than --queue 5" in done.stderr
    halt = "import sys; sys.modules['uvicorn'] = None; from effimini.cli import main; main()"
    done = serve_words("--model", str(model), code=halt)
    assert (
        done.stderr == "effimini: uvicorn is not installed and is needed to serve; run `pip install effimini[serve]`\n"
    )


def test_an_error_in_a_batch_reaches_only_its_items() -> None:
    def score(items: Sequence[Item]) -> Any:
        if any(item.id == "bad" for item in items):
            raise RuntimeError("of the model")
        return np.arange(len(items), dtype=np.float32)

    async def ask() -> list[Any]:
        batcher = Batcher(score, places=40, wait=0.0)
        running = asyncio.create_task(batcher.run())
        items = [Item(str(n), "", None) for n in range(ITEMS_PER_BATCH)]
        with batcher.reserve(40), pytest.raises(Full), batcher.reserve(1):
            pass
        found = await asyncio.gather(
            batcher.score(items), batcher.score([Item("bad", "", None)]), return_exceptions=True
        )
        found.append(await batcher.score(items[:2]))
        running.cancel()
        return [*found, batcher.batches, batcher.taken]

    first, second, third, batches, taken = asyncio.run(ask())
    assert first.tolist() == list(range(ITEMS_PER_BATCH))
    assert str(second) == "of the model"
    assert third.tolist() == [0, 1]
    assert (batches, taken) == (3, 0)


@pytest.fixture
def browse(server: Server) -> Iterator[tuple[Page, list[str]]]:
    """The service's page in a narrow window, and the URLs that it requests."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path; `.ci/run` installs it")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 500, "height": 800}).new_page()
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(str(server.client.base_url))
        yield page, requested
        browser.close()


def test_the_page_shows_the_stars_of_a_dropped_image_and_a_title(
    server: Server, browse: tuple[Page, list[str]], picture: bytes
) -> None:
    page, requested = browse
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    expected = server.post(title="sturdy refined", image=encoded(picture), interval=0.9).json()
    drop = """([target, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
        const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
        document.querySelector(target).dispatchEvent(event);
    }"""
    page.evaluate(drop, [".drop", list(picture)])
    assert page.locator(".drop img").is_visible()
    page.fill("[name=title]", "sturdy refined")
    page.click("[type=submit]")
    page.wait_for_selector(".result:not([hidden])")
    assert page.inner_text("[data-score]") == f"{expected['score']:.2f}"
    assert page.inner_text("[data-low]") == f"{expected['low']:.2f}"
    assert page.inner_text("[data-high]") == f"{expected['high']:.2f}"
    assert "DEMO DATA" in page.inner_text(".banner")
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    page.evaluate(drop, [".drop", list(b"text")])
    page.click("[type=submit]")
    page.wait_for_selector(".result.failed")
    assert "the image of item 1 cannot be read" in page.inner_text("[data-error]")
    page.click("[type=reset]")
    page.wait_for_selector(".result", state="hidden")
    assert all(url.startswith((str(server.client.base_url), "blob:")) for url in requested)
    assert [text for text in errors if "422" not in text] == []
