"""Read raw files that are compressed, or parquet, as JSON lines.

Input: a file in one of the formats of `SUFFIXES`.
Output: its JSON lines.
Guarantees: the bytes are whole, or there is an error message. Memory is bounded by a portion, and for parquet by a row
group; nothing is written to disk.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from prep.core import progress
from prep.core.errors import UserError, first_sentence
from prep.core.tables.raw import Kind
from prep.rewritten import FIELDS

PLAIN, PARQUET = ".jsonl", ".parquet"
_CODECS = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
SUFFIXES = (PLAIN, *_CODECS, PARQUET)  # of the formats of a raw file; of several files the first one is read
_PORTION = 1 << 20  # bytes
_ROWS = 1000  # of a parquet file that are in memory at once


def names(plain: str) -> list[str]:
    """Return the names that a raw file may have, the preferred one first, given that of its JSON lines."""
    return [plain.removesuffix(PLAIN) + suffix for suffix in SUFFIXES]


def file_chunks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file on this machine, with a progress bar.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as file, progress.byte_bar(path.name, path.stat().st_size) as advance:
            while chunk := file.read(_PORTION):
                advance(len(chunk))
                yield chunk
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the file and its disk") from error


def decompressed(name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what a compressed file contains, in portions.

    Args:
        name: the file's name, for its suffix and for messages.
        chunks: the file's bytes.

    Raises:
        UserError: the file is damaged or truncated.
    """
    codec = next(codec for suffix, codec in _CODECS.items() if name.endswith(suffix))
    stream = pa.PythonFile(_Stream(iter(chunks)), "r")
    try:
        with pa.CompressedInputStream(stream, codec) as content:
            while portion := content.read(_PORTION):
                yield portion
    except (pa.ArrowException, OSError) as error:
        raise UserError(_damaged(name, error)) from error


def parquet_lines(kind: Kind, path: Path) -> Iterator[bytes]:
    """Yield the rows of a parquet file as JSON lines.

    Args:
        kind: items, of which the fields that are used are read, or reviews, which are compared as a whole.
        path: the file.

    Raises:
        UserError: the file is damaged or no parquet file.
    """
    encoder = msgspec.json.Encoder(enc_hook=str)
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            columns = [
                column.name
                for column in file.schema_arrow
                if column.name in FIELDS[kind] or (kind == "reviews" and not column.name.startswith("__index_level_"))
            ]
            for batch in file.iter_batches(_ROWS, columns=columns):
                yield from (encoder.encode(row) + b"\n" for row in batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(_damaged(path.name, error)) from error


def _damaged(name: str, error: Exception) -> str:
    return f"{name} is damaged or truncated ({first_sentence(error)}); write or download it again"


class _Stream(io.RawIOBase):
    """A file of chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # the only kind that it is called with
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
