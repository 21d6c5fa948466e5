"""The concatenated blocks are the raw file, and blocks of a download are kept only until they are parsed."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prep import blocks, download
from prep.blocks import Block, cut
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params
from prep.source import PATHS, RawFile
from tests.prep.hub_server import Hub

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=30)


@pytest.fixture(params=["local", "download"])
def local(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "local")


def raw(folder: Path, content: bytes, local: bool, chunk: int) -> RawFile:
    """Return a raw file whose bytes arrive in chunks of `chunk` bytes."""
    path = folder / "Toys.jsonl"
    if local:
        path.write_bytes(content)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(content), chunk):
            yield content[start : start + chunk]

    where, arriving = (path, None) if local else (None, chunks)
    return RawFile("raw/review_categories/Toys.jsonl", len(content), where, arriving)


def content_of(block: Block) -> bytes:
    return block.path.read_bytes()[block.offset : block.offset + block.length]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=LINES,
    end=st.sampled_from([b"\n", b""]),
    chunk=st.integers(1, 70),
    block=st.integers(13, 60),
    portion=st.integers(1, 40),
)
def test_blocks_and_portions_are_the_file_split_at_line_endings(
    local: bool,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[bytes],
    end: bytes,
    chunk: int,
    block: int,
    portion: int,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "PORTION", portion)
    content = b"\n".join(lines) + (end if lines else b"")
    with TemporaryDirectory() as folder:
        made = list(cut(raw(Path(folder), content, local, chunk), Path(folder)))
        assert b"".join(map(content_of, made)) == content
        assert all(0 < one.length < block + (block if local else chunk) for one in made)
        before = b""
        for one in made:
            for portion_ in one.portions():
                before += portion_
                assert before.endswith(b"\n") or before == content
        assert before == content


def test_an_empty_file_has_no_blocks(tmp_path: Path, local: bool) -> None:
    assert list(cut(raw(tmp_path, b"", local, 7), tmp_path)) == []


def test_a_line_longer_than_a_block_is_an_error(tmp_path: Path, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 20)
    made = cut(raw(tmp_path, b"short\n" * 4 + b"x" * 60, local, 6), tmp_path)
    with pytest.raises(
        UserError, match=r"Toys.jsonl of the source: after byte 24 a line is longer than 20 bytes.*JSON lines"
    ) as it:
        list(made)
    assert "\n" not in str(it.value)


def test_a_local_file_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    source = raw(tmp_path, b"one\ntwo\n", True, 4)
    assert [(block.path, block.offset) for block in cut(source, tmp_path)] == [(source.path, 0), (source.path, 4)]
    assert list(tmp_path.iterdir()) == [source.path]


def test_a_file_that_is_truncated_or_removed_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    source = raw(tmp_path, b"one\ntwo\n", True, 4)
    (block,) = cut(source, tmp_path)
    assert source.path
    source.path.write_bytes(b"one\n")
    with pytest.raises(UserError, match=r"Toys.jsonl was truncated while it was read"):
        list(block.portions())
    source.path.unlink()
    with pytest.raises(UserError, match=r"Toys.jsonl cannot be read \(No such file"):
        list(block.portions())


def lines(count: int) -> dict[str, bytes]:
    """Return the raw files of a category by path on a mirror."""
    fields = {"rating": 4.0, "timestamp": 1, "user_id": "U", "text": "secret words"}
    rows = [json.dumps({"parent_asin": f"B{number}", **fields}).encode() for number in range(count)]
    return {name.format("Toys"): b"\n".join(rows) + b"\n" for name in PATHS.values()}


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_only_unparsed_blocks_of_a_download_are_on_disk(
    tmp_path: Path,
    make_params: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    digests: Callable[[Path], dict[str, str]],
    scheduler: str,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1 << 12)
    on_disk: list[int] = []  # number of blocks after each write
    write = Path.write_bytes

    def watched(path: Path, content: bytes) -> int:
        written = write(path, content)
        on_disk.append(sum(1 for file in path.parent.iterdir() if ".jsonl." in file.name))
        return written

    monkeypatch.setattr(Path, "write_bytes", watched)
    with Hub(lines(12_000)) as hub:
        where = {"source.kind": "mirror", "source.location": hub.cdn.url, "source.categories": ["Toys"]}
        made = partial(make_params, **where, **{"dask.scheduler": scheduler})
        download.download("Toys", made(**{"source.keep_raw": False}), tmp_path / "streamed")
        assert len(on_disk) > 30  # blocks
        assert max(on_disk) <= (1 if scheduler == "synchronous" else 10)
        assert [path for path in files.store().rglob("*") if path.is_file()] == []
        download.download("Toys", made(**{"source.keep_raw": True}), tmp_path / "kept")
    tables = {f"{table}-{number:03d}.parquet" for table in PATHS for number in range(4)}
    assert set(digests(tmp_path / "streamed/raw/Toys")) == tables | {"rejects.parquet", "report.json"}
    assert {path.name for path in (tmp_path / "streamed/raw").iterdir()} == {"Toys"}
    assert digests(tmp_path / "streamed") == digests(tmp_path / "kept")
