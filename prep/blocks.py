"""A raw file cut into blocks of whole lines, which workers type each on its own.

In: the bytes of a file, as they lie or as they arrive. Out: blocks. Guaranteed: the blocks are the file, in order; a
file that lies here is read once, by whoever types a block; of one that arrives only the blocks that are not yet typed
are kept.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from prep.core import progress
from prep.core.errors import UserError
from prep.source import RawFile

BLOCK = 1 << 25  # bytes, about
PORTION = 1 << 20  # bytes typed at once: more of them leave the processor's cache


class Block(NamedTuple):
    """Whole lines of a raw file, but for the file's last line, which may lack its end."""

    path: Path
    offset: int  # where they begin in `path`, bytes
    length: int  # bytes

    def portions(self) -> Iterator[bytes]:
        """Yield the lines, about `PORTION` at a time.

        Raises:
            UserError: the file cannot be read, or has become shorter.
        """
        try:
            with self.path.open("rb") as file:
                for begin, end in _spans(file, self.offset, self.offset + self.length, PORTION):
                    content = os.pread(file.fileno(), end - begin, begin)
                    if len(content) < end - begin:
                        raise UserError(f"{self.path} changed while it was read; run again when it is whole")
                    yield content
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}); check the file and its disk") from error


def _spans(file: BinaryIO, begin: int, end: int, size: int, limit: int = -1) -> Iterator[tuple[int, int]]:
    """Yield where whole lines begin and end, `size` bytes of them and what ends a line (at most `limit` bytes more).

    Nothing is read but the line at each cut.
    """
    while begin < end:
        file.seek(begin + size - 1)
        file.readline(limit)
        here = min(file.tell(), end)
        yield begin, here
        begin = here


def cut(raw: RawFile, scratch: Path) -> Iterator[Block]:
    """Yield the blocks of a raw file.

    Args:
        raw: the file.
        scratch: a folder for blocks of a file that does not lie here; whoever has typed one removes it.

    Raises:
        UserError: a line is longer than a block, so that the file holds no JSON lines; or the file cannot be read.
    """
    if raw.path:
        return _cut_here(raw, raw.path)
    assert raw.arriving
    return _cut_arriving(raw, raw.arriving(), scratch)


def _cut_here(raw: RawFile, path: Path) -> Iterator[Block]:
    """Look for line ends near the multiples of `BLOCK`, and read nothing else."""
    with path.open("rb") as file, progress.byte_bar(path.name, raw.size) as advance:
        for begin, end in _spans(file, 0, raw.size, BLOCK, BLOCK + 1):
            if end - begin >= 2 * BLOCK:
                raise _no_lines(raw, begin)
            yield Block(path, begin, end - begin)
            advance(end - begin)


def _cut_arriving(raw: RawFile, chunks: Iterable[bytes], scratch: Path) -> Iterator[Block]:
    begin, held = 0, bytearray()

    def block(length: int) -> Block:
        nonlocal begin
        path = scratch / f"{Path(raw.name).name}.{begin}"
        path.write_bytes(memoryview(held)[:length])
        begin += length
        del held[:length]
        return Block(path, 0, length)

    for chunk in chunks:
        held += chunk
        if len(held) >= BLOCK:
            end = held.rfind(b"\n") + 1
            if not end:
                raise _no_lines(raw, begin)
            yield block(end)
    if held:
        yield block(len(held))


def _no_lines(raw: RawFile, begin: int) -> UserError:
    return UserError(
        f"{raw.name} of the source: after byte {begin:,} a line is longer than {BLOCK:,} bytes, so this is no file of "
        "JSON lines; look at the file, and check source.location and source.categories"
    )
