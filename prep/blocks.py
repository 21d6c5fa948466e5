"""A raw file cut into blocks of whole lines, which workers type each on its own.

In: the bytes of a file, as they lie or as they arrive. Out: blocks, each with the number of its first line.
Guaranteed: the blocks are the file, in order; a file that lies here is not copied; of one that arrives only the
blocks that are not yet typed are kept.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prep.faults import UserError
from prep.source import RawFile

BLOCK = 1 << 25  # bytes, about
PORTION = 1 << 20  # bytes typed at once: more of them leave the processor's cache


class Block(NamedTuple):
    """Whole lines of a raw file, but for the file's last line, which may lack its end."""

    path: Path
    offset: int  # where they begin in `path`, bytes
    length: int  # bytes
    first: int  # the number of the first line in the raw file, from 1

    def portions(self) -> Iterator[tuple[bytes, int]]:
        """Yield the lines about `PORTION` at a time, with the number of the first of them."""
        number, rest = self.first, b""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, self.length, PORTION):
                content = rest + file.read(min(PORTION, self.length - start))
                end = content.rfind(b"\n") + 1
                rest = content[end:]
                if end:
                    yield content[:end], number
                    number += content.count(b"\n")
        if rest:
            yield rest, number


def cut(raw: RawFile, scratch: Path) -> Iterator[Block]:
    """Yield the blocks of a raw file.

    Args:
        raw: the file.
        scratch: a folder for blocks of a file that does not lie here; whoever has typed one removes it.

    Raises:
        UserError: a line is longer than a block, so that the file holds no JSON lines.
    """
    offset, first = 0, 1
    held = bytearray()

    def block(length: int) -> Block:
        nonlocal offset, first
        if raw.path:
            made = Block(raw.path, offset, length, first)
        else:
            path = scratch / f"{Path(raw.name).name}.{offset}"
            path.write_bytes(memoryview(held)[:length])
            made = Block(path, 0, length, first)
        offset, first = offset + length, first + held.count(b"\n", 0, length)
        del held[:length]
        return made

    for chunk in raw.chunks():
        held += chunk
        if len(held) >= BLOCK:
            end = held.rfind(b"\n") + 1
            if not end:
                raise UserError(
                    f"{raw.name} of the source: line {first} is longer than {len(held):,} bytes, so this is no file of "
                    "JSON lines; look at the file, and check source.location and source.categories"
                )
            yield block(end)
    if held:
        yield block(len(held))
