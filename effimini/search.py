"""Search files of any kind for ids.

Input: folders, and texts such as ids. Output: which of them a file holds. Guarantees: a file is read as what its first
bytes say, whatever its name: Parquet, gzip and Zstandard are decompressed, everything else (tar, Arrow, JSON, CSV,
HTML) is searched as it is. A file that several names link to is read once. Memory: a row group, or a few megabytes.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_BLOCK = 1 << 24  # bytes
_SKIPPED = {".git", "__pycache__"}  # git's history is compressed; nothing that EffiMini commits names an item
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # by the first bytes


def all_files(roots: Iterable[Path], left_out: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield the files below some folders, sorted, each once; not those of git and of virtual environments.

    Args:
        roots: folders, which may lie in each other; one that does not exist has no files.
        left_out: files or folders that are left out.
    """
    seen = {os.path.realpath(path) for path in left_out}
    for root in roots:
        for folder, names, found in os.walk(root):
            names[:] = sorted(name for name in names if _is_searched(Path(folder, name), seen))
            for name in sorted(found):
                path = Path(folder, name)
                if (real := os.path.realpath(path)) not in seen and path.is_file():
                    seen.add(real)
                    yield path


def _is_searched(folder: Path, seen: set[str]) -> bool:
    is_left_out = folder.name in _SKIPPED or os.path.realpath(folder) in seen or (folder / "pyvenv.cfg").exists()
    return not is_left_out


def find(paths: Iterable[Path], texts: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each file that holds one of `texts`, with those that it holds, in the order of `texts`."""
    known: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        try:
            state = path.stat()
            found = known.get((state.st_dev, state.st_ino))
            if found is None:
                found = known[state.st_dev, state.st_ino] = in_file(path, texts)
        except FileNotFoundError:  # another process removed it in the meantime
            continue
        if found:
            yield path, found


def in_file(path: Path, texts: Sequence[str]) -> list[str]:
    """Return which of `texts` a file holds, in UTF-8."""
    left = {text: text.encode() for text in texts}
    for block in _blocks(path, max(map(len, left.values()), default=0)):
        for text in [text for text, content in left.items() if content in block]:
            del left[text]
        if not left:
            break
    return [text for text in texts if text not in left]


def _blocks(path: Path, overlap: int) -> Iterator[bytes]:
    """Yield the content of a file; blocks overlap by at least `overlap` - 1 bytes."""
    with path.open("rb") as file:
        first = file.read(4)
        yield from _overlapping(path, "", overlap)
    codec = next((codec for magic, codec in _CODECS.items() if first.startswith(magic)), "")
    try:
        if first == b"PAR1":
            yield from _columns(path)
        elif codec:
            yield from _overlapping(path, codec, overlap)
    except (OSError, pa.ArrowException, EOFError):  # damaged, or only similar: searched as it is
        return


def _overlapping(path: Path, codec: str, overlap: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        stream: io.BufferedIOBase | pa.CompressedInputStream = pa.CompressedInputStream(file, codec) if codec else file
        end = b""
        while block := stream.read(_BLOCK):
            yield end + block
            end = block[-overlap + 1 :] if overlap > 1 else b""


def _columns(path: Path) -> Iterator[bytes]:
    """Yield the texts and bytes of a Parquet file, a row group at a time."""
    with pq.ParquetFile(path) as table:
        for number in range(table.num_row_groups):
            for column in table.read_row_group(number).columns:
                if not pa.types.is_primitive(column.type):
                    for chunk in column.chunks:
                        values = chunk.dictionary_decode() if pa.types.is_dictionary(column.type) else chunk
                        yield from (buffer.to_pybytes() for buffer in values.buffers() if buffer)
