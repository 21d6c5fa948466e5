"""Split a raw file into blocks of whole lines, which workers parse independently.

Input: a file on disk, or the bytes of a file that is being downloaded.
Output: blocks.
Guarantees: the concatenated blocks are the file. A file on disk is read once, by the workers that parse its blocks. Of
a download, only the blocks that are not parsed yet are on disk.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from prep.core import progress
from prep.core.errors import UserError
from prep.source import RawFile

BLOCK = 1 << 25  # approximate size of a block, bytes
PORTION = 1 << 20  # bytes parsed at once; larger portions do not fit into the CPU cache


class Block(NamedTuple):
    """Complete lines of a raw file; only the last line of the file may lack a line ending."""

    path: Path
    offset: int  # of the first line in `path`, bytes
    length: int  # bytes

    def portions(self) -> Iterator[bytes]:
        """Yield the lines in portions of about `PORTION` bytes.

        Raises:
            UserError: the file cannot be read, or has been truncated.
        """
        try:
            with self.path.open("rb") as file:
                for begin, end in _spans(file, self.offset, self.offset + self.length, PORTION):
                    content = os.pread(file.fileno(), end - begin, begin)
                    if len(content) < end - begin:
                        raise UserError(f"{self.path} was truncated while it was read; run again when it is complete")
                    yield content
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); check the file and its disk") from error


def _spans(file: BinaryIO, begin: int, end: int, size: int, limit: int = -1) -> Iterator[tuple[int, int]]:
    """Yield the begin and end of spans of whole lines, `size` bytes plus the rest of a line (at most `limit` bytes).

    Only the line at each boundary is read.
    """
    while begin < end:
        file.seek(begin + size - 1)
        file.readline(limit)
        boundary = min(file.tell(), end)
        yield begin, boundary
        begin = boundary


def cut(raw: RawFile, scratch: Path) -> Iterator[Block]:
    """Yield the blocks of a raw file.

    Args:
        raw: the file.
        scratch: a folder for the blocks of a file that is being downloaded; the caller removes each parsed block.

    Raises:
        UserError: a line is longer than a block, so the file is not JSON lines; or the file cannot be read.
    """
    if raw.path:
        return _cut_local(raw, raw.path)
    assert raw.arriving
    return _cut_download(raw, raw.arriving(), scratch)


def _cut_local(raw: RawFile, path: Path) -> Iterator[Block]:
    """Find line endings near the multiples of `BLOCK`, without reading anything else."""
    with path.open("rb") as file, progress.byte_bar(path.name, raw.size) as advance:
        for begin, end in _spans(file, 0, raw.size, BLOCK, BLOCK + 1):
            if end - begin >= 2 * BLOCK:
                raise _line_too_long(raw, begin)
            yield Block(path, begin, end - begin)
            advance(end - begin)


def _cut_download(raw: RawFile, chunks: Iterable[bytes], scratch: Path) -> Iterator[Block]:
    begin, buffer = 0, bytearray()

    def block(length: int) -> Block:
        nonlocal begin
        path = scratch / f"{Path(raw.name).name}.{begin}"
        path.write_bytes(memoryview(buffer)[:length])
        begin += length
        del buffer[:length]
        return Block(path, 0, length)

    for chunk in chunks:
        buffer += chunk
        if len(buffer) >= BLOCK:
            end = buffer.rfind(b"\n") + 1
            if not end:
                raise _line_too_long(raw, begin)
            yield block(end)
    if buffer:
        yield block(len(buffer))


def _line_too_long(raw: RawFile, begin: int) -> UserError:
    return UserError(
        f"{raw.name} of the source: after byte {begin:,} a line is longer than {BLOCK:,} bytes, so the file is not "
        "JSON lines (a JSON array may be one long line); inspect the file, and check source.location and "
        "source.categories"
    )
