"""The image store: an append-only journal of all fetch results, one file per category.

Input: records of requests and their results. Output: the latest record of a URL. Guarantees: when `append` returns, the
complete record is in the file, so a killed process loses none; a truncated last record is removed on opening; a damaged
record is skipped, and its URL is requested again; one process writes at a time.

A record in the file is MAGIC, the length and the CRC-32 of what follows (both unsigned 32 bits, little endian), and a
`Record` as msgpack. The in-memory index takes about 250 bytes per URL. A later version may append fields to `Record`,
which others skip. A store that this version would misread begins with the first three bytes of MAGIC, a later letter,
the first version of EffiMini that reads it, and a line feed; it is refused and stays as it is.
"""

import logging
import os
import re
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from prep.core import files, locks
from prep.core.errors import UserError
from prep.core.formats import VERSION, version

MAGIC = b"\xf1EMJ"
_LATER = re.compile(rb"\xf1EM[K-Z](%s)\n" % VERSION.encode())
_HEAD = struct.Struct("<4sII")
_LONGEST = 1 << 26  # bytes; a record with a larger length is damaged
_BLOCK = 1 << 20

log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """The result of fetching a URL."""

    url: str
    conditions: str  # fingerprint of source and limits: a failure under other conditions is ignored
    outcome: str  # one of `prep.core.tables.images.OUTCOMES`
    status: int = 0  # HTTP status, 0 without a response
    tries: int = 0  # not in data/images, which is the same whatever the host's bad moments
    source_bytes: int = 0
    source_width: int = 0  # px
    source_height: int = 0
    source_sha256: str = ""
    perceptual_hash: int = 0
    image: bytes = b""  # JPEG at training size


class Journal:
    """An open image store; close it, or use it in a `with`.

    Args:
        path: the file; it is created if it does not exist.
        conditions: failures recorded under other conditions are ignored, as if the URL had not been requested.
    """

    def __init__(self, path: Path, conditions: str) -> None:
        self._path, self._conditions = path, conditions
        self._index: dict[str, tuple[int, str]] = {}
        with ExitStack() as opening:
            opening.enter_context(locks.hold(path))
            self._file: BinaryIO = opening.enter_context(path.open("a+b", buffering=0))
            self._end = self._read_through()
            self._file.truncate(self._end)
            self._open = opening.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of URLs."""
        return len(self._index)

    def outcome(self, url: str) -> str | None:
        """Return the latest outcome of `url`, or None if it was not requested."""
        known = self._index.get(url)
        return known[1] if known else None

    def get(self, url: str) -> Record:
        """Return the latest record of `url`.

        Raises:
            KeyError: it was not requested.
        """
        offset, _ = self._index[url]
        head = os.pread(self._file.fileno(), _HEAD.size, offset)
        body = os.pread(self._file.fileno(), _HEAD.unpack(head)[1], offset + _HEAD.size)
        return msgspec.msgpack.decode(body, type=Record)

    def append(self, record: Record) -> None:
        """Append a record; when this returns the operating system has it, even if the process is killed."""
        body = msgspec.msgpack.encode(record)
        data = memoryview(_HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body)
        written = 0
        try:
            with files.naming(self._path):
                while written < len(data):  # a raw write may be partial
                    written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(self._end)  # others may still be appended
            raise
        self._index[record.url] = (self._end, record.outcome)
        self._end += len(data)

    def take(self, path: Path) -> None:
        """Append the records of another image store, and delete that store."""
        with Journal(path, self._conditions) as other:
            for url in other._index:
                self.append(other.get(url))
        os.fsync(self._file.fileno())
        path.unlink()

    def close(self) -> None:
        """Flush to disk and release the lock."""
        with self._open:
            if not self._file.closed:
                with files.naming(self._path):
                    os.fsync(self._file.fileno())

    def _read_through(self) -> int:
        """Index the intact records; return the offset at which the last one ends."""
        end = offset = 0
        with _opened(self._path) as file:
            while True:
                body = _read_record(file, offset)
                if body is None:
                    found = _next(file, offset)
                    if found is None:
                        break
                    log.warning("%s: skipped %d damaged bytes at offset %d", self._path, found - offset, offset)
                    offset = found
                    continue
                record = msgspec.msgpack.decode(body, type=Record)
                if record.outcome == "ok" or record.conditions == self._conditions:
                    self._index[record.url] = (offset, record.outcome)
                offset = end = offset + _HEAD.size + len(body)
            size = file.seek(0, os.SEEK_END)
        if size > end:
            log.warning("%s: removed a truncated record of %d bytes at the end", self._path, size - end)
        return end


def _opened(path: Path) -> BinaryIO:
    """Open an image store to read.

    Raises:
        UserError: it is of a later format.
    """
    file = path.open("rb", buffering=_BLOCK)
    if later := _LATER.match(file.read(64)):
        file.close()
        raise UserError(
            f"{path} has a later format than EffiMini {version()} reads; install EffiMini {later[1].decode()} or "
            "newer, or fetch images into another store with EFFIMINI_STORE"
        )
    return file


def urls(path: Path) -> list[str]:
    """Return the URL of each intact record of an image store, in order, repetitions included."""
    with _opened(path) as file:
        return [msgspec.msgpack.decode(body, type=Record).url for body in _bodies(file)]


def forget(path: Path, gone: Collection[str]) -> int:
    """Write an image store again without the records of some URLs, atomically; return how many were left out.

    Damaged bytes are left out too, since they may be of such a record. A run that uses the store is waited for.
    """
    with locks.hold(path), _opened(path) as file, files.atomic_write(path) as partial:
        left_out = 0
        with partial.open("wb") as kept:
            for body in _bodies(file):
                if msgspec.msgpack.decode(body, type=Record).url in gone:
                    left_out += 1
                else:
                    kept.write(_HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body)
    return left_out


def _bodies(file: BinaryIO) -> Iterator[bytes]:
    """Yield the bodies of the intact records."""
    offset: int | None = 0
    while offset is not None:
        body = _read_record(file, offset)
        if body is None:
            offset = _next(file, offset)
        else:
            yield body
            offset += _HEAD.size + len(body)


def _read_record(file: BinaryIO, offset: int) -> bytes | None:
    """Return the body of the intact record at `offset`, or None if there is none."""
    file.seek(offset)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, length, crc = _HEAD.unpack(head)
    if magic != MAGIC or length > _LONGEST:
        return None
    body = file.read(length)
    return body if len(body) == length and zlib.crc32(body) == crc else None


def _next(file: BinaryIO, offset: int) -> int | None:
    """Return the offset of the first intact record after `offset`, or None if there is none."""
    start = offset + 1
    while True:
        file.seek(start)
        block = file.read(_BLOCK)
        at = block.find(MAGIC)
        while at >= 0:
            if _read_record(file, start + at) is not None:
                return start + at
            at = block.find(MAGIC, at + 1)
        if len(block) < _BLOCK:
            return None
        start += len(block) - len(MAGIC) + 1
