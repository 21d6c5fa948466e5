"""A raw file that is compressed or parquet has the rows of its JSON lines."""

import gzip
import http.server
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effimini.plan.survey import download_rate, survey
from prep import variants
from prep.categories import of_source
from prep.core.errors import UserError
from prep.core.params import Params
from prep.download import download
from prep.source import PATHS, raw_file
from tests.prep.test_records import ITEM, REVIEW

IMAGES = [{"hi_res": None, "large": "https://a/1.jpg"}, {"hi_res": "https://a/2.jpg", "large": None}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "items": [
        ITEM | {"parent_asin": f"B{n:03d}", "rating_number": n or None, "details": {"a": "b"}, "images": IMAGES}
        for n in range(40)
    ],
    "reviews": [
        REVIEW | {"parent_asin": f"B{n // 2 % 9:03d}", "user_id": f"U{n // 2}", "rating": 4.0} for n in range(60)
    ],
}
TABLES = ("items", "reviews")


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def parquet(content: bytes) -> bytes:
    """Return a parquet file as pandas writes it of a file of JSON lines."""
    rows = [json.loads(line) for line in content.splitlines()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=True), sink, row_group_size=16)
    return bytes(sink.getvalue())


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".jsonl": lambda content: content,
    ".jsonl.gz": gzip.compress,
    ".jsonl.zst": zst,
    ".parquet": parquet,
}


def write(folder: Path, suffix: str, rows: dict[str, list[dict[str, Any]]] = ROWS) -> Path:
    for kind, plain in PATHS.items():
        path = folder / (plain.format("Toys").removesuffix(".jsonl") + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PACK[suffix](lines(rows[kind])))
    return folder


@pytest.fixture
def settings(make_params: Callable[..., Params]) -> Callable[..., Params]:
    def of(location: Path | str, **changes: object) -> Params:
        where = {"source.kind": "mirror", "source.location": str(location), "source.categories": ["Toys"]}
        return make_params(**(where | {"download.max_bad_fraction": 0.0, "download.buckets": 1} | changes))

    return of


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves whole files; .gz files are labelled as by Apache's default."""

    def log_message(self, *_: object) -> None:
        pass

    def end_headers(self) -> None:
        if self.path.endswith(".gz"):
            self.send_header("Content-Encoding", "x-gzip")
        super().end_headers()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "m").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "m"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found(data: Path, table: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(data / f"raw/Toys/{table}-000.parquet").to_pylist()
    for row in rows:
        row.pop("line_hash", None)  # of the line as it is written
        if "details" in row:
            row["details"] = json.loads(row["details"])
    return rows


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("keep_raw", [None, False, True])
def test_the_rows_are_those_of_the_json_lines(
    tmp_path: Path,
    settings: Callable[..., Params],
    served: str,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    keep_raw: bool | None,
) -> None:
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / "store"))
    download("Toys", settings(write(tmp_path / "plain", ".jsonl")), tmp_path / "a")
    write(tmp_path / "m", suffix)
    local = keep_raw is None
    download(
        "Toys", settings(tmp_path / "m" if local else served, **{"source.keep_raw": bool(keep_raw)}), tmp_path / "b"
    )
    for table in TABLES:
        assert found(tmp_path / "b", table) == found(tmp_path / "a", table)
    hashes = [pq.read_table(tmp_path / f"{one}/raw/Toys/reviews-000.parquet")["line_hash"] for one in "ab"]
    assert len(hashes[0].unique()) == len(hashes[1].unique()) == 30  # equal reviews stay equal
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert any(path.name.endswith(suffix) for path in kept) == bool(keep_raw)
    report = json.loads((tmp_path / "b/raw/Toys/report.json").read_text())
    assert report["tables"]["items"]["rows_out"] == 40


@pytest.mark.parametrize("remote", [False, True])
def test_json_lines_are_preferred(tmp_path: Path, settings: Callable[..., Params], served: str, remote: bool) -> None:
    for suffix in PACK:
        write(tmp_path / "m", suffix)
    source = settings(served if remote else tmp_path / "m").source
    for suffix in PACK:
        raw = raw_file(source, "items", "Toys")
        assert raw.name == f"raw/meta_categories/meta_Toys{suffix}"
        assert of_source(source, tmp_path).categories[0].metadata_bytes == raw.size
        (tmp_path / "m" / raw.name).unlink()
    with pytest.raises(UserError, match=r"meta_Toys\.jsonl"):
        raw_file(source, "items", "Toys")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("remote", [False, True])
def test_categories_and_plan_know_the_formats(
    tmp_path: Path, settings: Callable[..., Params], served: str, suffix: str, remote: bool
) -> None:
    random = Random(0)
    many = {
        kind: [row | {"title": random.randbytes(40).hex(), "user_id": f"U{n}"} for n, row in enumerate(rows * 60)]
        for kind, rows in ROWS.items()
    }
    write(tmp_path / "m", suffix, many)
    params = settings(served if remote else tmp_path / "m", **{"sample.require": [], "sample.min_chars": 0})
    listed = of_source(params.source, tmp_path).categories
    path = tmp_path / f"m/raw/meta_categories/meta_Toys{suffix}"
    assert [(one.category, one.metadata_bytes) for one in listed] == [("Toys", path.stat().st_size)]
    one = survey(params, tmp_path).categories[0]
    assert one.metadata_bytes == path.stat().st_size
    if not (remote and suffix == ".parquet"):  # this server sends no pieces, so the footer is not read
        assert 0.4 < one.items / 2400 < 2.5
        assert 0.4 < one.reviews / 3600 < 2.5
    assert one.usable > 0.9
    assert (download_rate(params, [one]) is not None) == remote


def damaged(content: bytes) -> list[bytes]:
    """Return a file that is cut, in which bytes are changed, and that is something else."""
    middle = len(content) // 2
    return [content[:middle], content[:-1], content[:middle] + b"\xff" * 40 + content[middle + 40 :], b"<html>"]


@pytest.mark.parametrize(
    ("suffix", "how"),
    # pyarrow writes zstd without the checksum that the program zstd adds, so changed bytes are other text
    [(suffix, how) for suffix in PACK for how in range(4) if suffix != ".jsonl" and (suffix, how) != (".jsonl.zst", 2)],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, settings: Callable[..., Params], suffix: str, how: int) -> None:
    path = write(tmp_path / "m", suffix) / f"raw/meta_categories/meta_Toys{suffix}"
    path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(
        UserError, match=rf"^meta_Toys{suffix} is damaged or truncated \(.*\); write or download"
    ) as error:
        download("Toys", settings(tmp_path / "m"), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "raw/Toys").exists()


def test_concatenated_archives_are_read_whole() -> None:
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        content = PACK[suffix](b"one\n") + PACK[suffix](b"two\n")
        chunks = [content[place : place + 3] for place in range(0, len(content), 3)]
        assert b"".join(variants.decompressed(f"x{suffix}", chunks)) == b"one\ntwo\n"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_bomb_is_stopped_after_a_block_in_bounded_memory(
    tmp_path: Path, settings: Callable[..., Params], suffix: str
) -> None:
    path = write(tmp_path / "m", suffix) / f"raw/meta_categories/meta_Toys{suffix}"
    path.write_bytes(PACK[suffix](bytes(1 << 28)))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(UserError, match="a line is longer than"):
        download("Toys", settings(tmp_path / "m"), tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_an_error_of_the_transfer_stays_what_it_is() -> None:
    def chunks() -> Iterator[bytes]:
        yield gzip.compress(b"x" * 9)[:5]
        raise UserError("the server is gone")

    with pytest.raises(UserError, match="^the server is gone$"):
        list(variants.decompressed("x.jsonl.gz", chunks()))
