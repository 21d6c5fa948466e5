"""The image store: everything that fetching had, appended to one file a category and never lost.

In: records of what was asked and what came. Out: the latest record of a URL. Guaranteed (promise 7): a record is in the
file, whole, when `append` returns, so a killed process loses none of them; a torn last record is cut off on opening; a
damaged one is stepped over and its URL asked again; one process writes at a time.

A record in the file is MAGIC, the length and the CRC-32 of what follows (both unsigned 32 bits, little endian), and a
`Record` as msgpack. It costs the memory of an index: about 250 bytes a URL.
"""

import fcntl
import logging
import os
import struct
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

MAGIC = b"\xf1EMJ"
_HEAD = struct.Struct("<4sII")
_LONGEST = 1 << 26  # bytes of a record; what claims more is damaged
_BLOCK = 1 << 20

_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a URL."""

    url: str
    conditions: str  # fingerprint of who was asked and under which limits: a fault under other terms says nothing
    outcome: str  # a word of the images table
    status: int = 0  # HTTP, 0 without an answer
    tries: int = 0
    source_bytes: int = 0
    source_width: int = 0  # px
    source_height: int = 0
    source_sha256: str = ""
    perceptual_hash: int = 0
    image: bytes = b""  # JPEG at training size


class Journal:
    """An open image store; close it, or use it in a `with`.

    Args:
        path: the file; it is made if it does not exist.
        conditions: a fault recorded under other terms than these is left out, as if it had not been asked.
    """

    def __init__(self, path: Path, conditions: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._conditions = path, conditions
        self._index: dict[str, tuple[int, str]] = {}
        self._file: BinaryIO = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("%s is in use by another fetch; waiting for it to end", path)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._end = self._read_through()
        self._file.truncate(self._end)

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
        """Return the latest outcome of `url`, or None if it was not asked."""
        known = self._index.get(url)
        return known[1] if known else None

    def get(self, url: str) -> Record:
        """Return the latest record of `url`.

        Raises:
            KeyError: it was not asked.
        """
        offset, _ = self._index[url]
        head = os.pread(self._file.fileno(), _HEAD.size, offset)
        body = os.pread(self._file.fileno(), _HEAD.unpack(head)[1], offset + _HEAD.size)
        return msgspec.msgpack.decode(body, type=Record)

    def append(self, record: Record) -> None:
        """Add a record; when this returns the system has it, whatever happens to the process."""
        body = msgspec.msgpack.encode(record)
        data = memoryview(_HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body)
        written = 0
        while written < len(data):  # a raw write may be partial
            written += self._file.write(data[written:])
        self._index[record.url] = (self._end, record.outcome)
        self._end += len(data)

    def take(self, path: Path) -> None:
        """Append the records of another image store, and remove it."""
        with Journal(path, self._conditions) as other:
            for url in other._index:
                self.append(other.get(url))
        os.fsync(self._file.fileno())
        path.unlink()

    def close(self) -> None:
        """Flush to disk and let the next writer in."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _read_through(self) -> int:
        """Index the whole records and return where the last one ends."""
        end = offset = 0
        with self._path.open("rb", buffering=_BLOCK) as file:
            while True:
                body = _read_record(file, offset)
                if body is None:
                    found = _next(file, offset)
                    if found is None:
                        break
                    _log.warning("%s: %d damaged bytes at %d are stepped over", self._path, found - offset, offset)
                    offset = found
                    continue
                record = msgspec.msgpack.decode(body, type=Record)
                if record.outcome == "ok" or record.conditions == self._conditions:
                    self._index[record.url] = (offset, record.outcome)
                offset = end = offset + _HEAD.size + len(body)
            size = file.seek(0, os.SEEK_END)
        if size > end:
            _log.warning("%s: a torn record of %d bytes at its end is cut off", self._path, size - end)
        return end


def _read_record(file: BinaryIO, offset: int) -> bytes | None:
    """Return the body of the whole record at `offset`, or None if there is none."""
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
    """Return where the first whole record after `offset` starts, or None if there is none."""
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
