"""Whatever bytes a file has that somebody else may have written, reading it succeeds or is one sentence.

A test changes each file thirty times, `make fuzz` ten thousand times.
"""

import asyncio
import io
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from unittest.mock import patch

import msgspec
import pytest
from huggingface_hub import close_session, constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from effimini.input_csv import INPUT_COLUMNS, csv_rows
from effimini.model import Config, read_config
from effimini.provenance import Training, read_training
from prep import demo, records, removed
from prep.core.errors import UserError
from prep.core.params import load_params
from prep.core.retry import RetryPolicy
from prep.core.tables.images import OUTCOMES
from prep.hub import newest_commit
from prep.weights import SampleWeights, read_weights
from shards.images import pixels
from shards.images.client import Client
from shards.images.journal import Journal, Record
from shards.lint import lint
from shards.loader import Loader
from shards.location import ShardLocation
from shards.manifest import Source
from shards.stream import ShardDataset
from shards.summary import summarise
from tests.prep.test_network import serving
from tests.shards import damage
from tests.shards.made import make_shards

ROOT = Path(__file__).parent.parent
EXAMPLES = int(os.environ.get("FUZZ", "30"))
PICTURES = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nETag: "ab"\r\nContent-Length: '
BRANCH = {"name": "main", "ref": "refs/heads/main", "targetCommit": "ab" * 20}
ANSWERS = {
    "image.http": bytes(200),
    "hub.http": msgspec.json.encode({"tags": [], "converts": [], "branches": [BRANCH]}),
}
CONFIG = Config(
    source="demo", image="test_efficientnet", mean=(0.5,) * 3, std=(0.5,) * 3, text={"model_type": "bert", "ids": [1]},
    hidden=(8,), dropout=0.1, size=32, fit="squash", quality=90, max_pixels=1000, fields=("title",), max_tokens=16,
)  # fmt: skip
Edits = list[tuple[str, float, int, bytes]]
Reader = Callable[["Files", str, bytes], None]
VALUES = ("-1", "0", "1e999", "9" * 30, "null", "true", '""', "[]", "{}", '"' + "x" * 300 + '"')
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "repeat", "cut", "value"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
        st.binary(min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, edits: Edits) -> bytes:
    """Return some bytes after a few edits, each at a fraction of the length."""
    for kind, fraction, number, new in edits:
        at = int(fraction * len(content))
        before, after = content[:at], content[at:]
        if kind == "flip":
            content = before + bytes(byte ^ number for byte in after[:1]) + after[1:]
        elif kind == "insert":
            content = before + new + after
        elif kind == "delete":
            content = before + after[number:]
        elif kind == "repeat":
            content = before + after[:number] + after
        elif kind == "cut":
            content = before
        else:  # another JSON value, after the next colon
            key, colon, rest = after.partition(b":")
            end = min((found for mark in b",}]\n" if (found := rest.find(mark)) >= 0), default=len(rest))
            content = before + key + colon + VALUES[number % len(VALUES)].encode() + rest[end:]
    return content


class Files:
    """Valid files: their bytes by name, and the folder in which changed ones are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_shards(folder / "shards", {"train": [6, 5], "test": [2]})
        self.made = folder / "shards/Made"
        demo.write_catalogue(folder / "demo", ["Toys"], 5, 0)
        with Journal(folder / "journal", "t") as journal:
            for number in range(4):
                journal.append(Record(f"https://h/{number}", "t", "ok", 200, 1, image=bytes(number * 20)))
        picture = Image.frombytes("RGB", (24, 16), Random(0).randbytes(24 * 16 * 3))
        weights = SampleWeights("rating_number", 2.5, 5.0, 10)
        source = Source("hub", "ab")
        training = Training(
            categories=("A",),
            samples=9,
            shards="ab",
            source=source,
            parameters={"train": {"epochs": 3}},
            weights=weights,
        )
        header, row = ",".join(INPUT_COLUMNS), 'B1,Toys,"a ""good"" one","[\'a\', \'b\']",[],a.jpg;b.jpg'
        self.valid = {
            **{path.name: path.read_bytes() for path in self.made.iterdir()},
            **{kind: _saved(picture, kind) for kind in PICTURES},
            "items": (folder / "demo/raw/meta_categories/meta_Toys.jsonl").read_bytes(),
            "reviews": (folder / "demo/raw/review_categories/Toys.jsonl").read_bytes()[:4000],
            "journal": (folder / "journal").read_bytes(),
            "items.csv": f"{header}\n{row}\nB2,,,,,\n".encode(),
            "params.yaml": (ROOT / "params.yaml").read_bytes(),
            "weights.json": msgspec.json.encode(weights),
            "training.json": msgspec.json.encode(training),
            **{name: ANSWER + b"%d\r\n\r\n%b" % (len(body), body) for name, body in ANSWERS.items()},
            "config.json": msgspec.json.encode(CONFIG),
            "removed.csv": b"item,images,stratum,split,order,slot,group\n12,3 4,5,0.25,6,7,8\n13,,5,0.5,6,7,9\n",
        }

    def restore(self) -> None:
        """Write the valid shards again."""
        for path in self.made.iterdir():
            damage.write(path, self.valid[path.name])


def _shards(files: Files, name: str, content: bytes) -> None:
    """Read shards in which one file was changed; their manifest states its hash, as a stranger's would."""
    damage.write(files.made / name, content)
    try:
        if name != "manifest.json":
            damage.reseal(files.made)
        location = ShardLocation(files.folder / "shards")
        for read in (
            lambda: summarise(location),
            lambda: [found.violations for found in lint(location, ["Made"])],
            lambda: list(Loader(ShardDataset(files.folder / "shards", ["Made"], "train"), batch_size=4, seed=0)),
        ):
            with suppress(UserError):
                read()
    finally:
        files.restore()


def _lines(files: Files, name: str, content: bytes) -> None:
    table, rejects = records.parse_lines("items" if name == "items" else "reviews", content, 1)
    assert table.num_rows + len(rejects) == len(io.BytesIO(content.replace(b"\r\n", b"\n")).readlines())


def _journal(files: Files, name: str, content: bytes) -> None:
    (files.folder / name).write_bytes(content)
    with Journal(files.folder / name, "t") as journal:
        for number in range(4):
            if journal.outcome(f"https://h/{number}") is not None:
                journal.get(f"https://h/{number}")


def _picture(files: Files, name: str, content: bytes) -> None:
    with suppress(pixels.Unusable):
        pixels.to_training(content, pixels.Preparation(16, "squash", 90, 1_000_000))


def _file(read: Callable[[Path], object]) -> Reader:
    def of(files: Files, name: str, content: bytes) -> None:
        folder = files.folder / "removed"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        read(folder / name)

    return of


def _saved(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def _answer(read: Callable[[str], object]) -> Reader:
    """Return a reader of what a server answers on loopback, whose URL `read` is given."""

    def of(files: Files, name: str, content: bytes) -> None:
        def answer(connection: socket.socket, request: bytes) -> None:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_RDWR)

        with serving(answer) as host:
            read(f"http://{host}")

    return of


def _image_host(url: str) -> None:
    limits = replace(load_params(ROOT / "params.yaml").fetch, max_attempts=1, timeout=5)

    async def get() -> None:
        async with Client(limits, url) as client:
            assert (await client.get(f"{url}/a.jpg")).outcome in OUTCOMES

    asyncio.run(get())


def _hub(url: str) -> None:
    with patch.object(constants, "ENDPOINT", url):
        close_session()
        newest_commit(RetryPolicy(max_attempts=1))


READERS: dict[str, Reader] = {
    "image.http": _answer(_image_host),
    "hub.http": _answer(_hub),
    **dict.fromkeys(["manifest.json", "train-000.arrow", "train-000.tar"], _shards),
    **dict.fromkeys(PICTURES, _picture),
    "items": _lines,
    "reviews": _lines,
    "journal": _journal,
    "items.csv": _file(lambda path: list(csv_rows(path))),
    "params.yaml": _file(load_params),
    "weights.json": _file(read_weights),
    "training.json": _file(lambda path: read_training(path.parent)),
    "config.json": _file(lambda path: read_config(path, "a configuration", "train again")),
    "removed.csv": _file(lambda path: removed.read_removed(path.parent.parent / "data", path.stem)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("name", READERS)
def test_a_valid_file_is_read(files: Files, name: str) -> None:
    READERS[name](files, name, files.valid[name])


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(edits=EDITS)
def test_a_changed_file_is_read_or_one_sentence(files: Files, name: str, edits: Edits) -> None:
    try:
        READERS[name](files, name, changed(files.valid[name], edits))
    except UserError as error:
        assert str(error)
        assert "\n" not in str(error)
