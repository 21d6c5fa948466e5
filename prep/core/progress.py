"""Progress bars on stderr in a terminal, and lines in the log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

from prep.core.errors import printable

QUIET = 30.0  # seconds between lines about a transfer, where no bar is shown

T = TypeVar("T")

log = logging.getLogger(__name__)


def bar(things: Iterable[T], what: str, total: float | None = None) -> Iterable[T]:
    """Yield `things` and show a progress bar labelled `what`; pass `total` if `things` has no len()."""
    console = Console(stderr=True)
    return track(things, printable(what), total=total, console=console, transient=True, disable=not sys.stderr.isatty())


@contextmanager
def byte_bar(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar with the transfer rate, and yield the function that advances it by a number of bytes.

    Without a terminal, a transfer that takes long is logged every `QUIET` seconds.

    Args:
        what: label, the name of the file.
        total: size of the file, bytes.
        done: bytes that an earlier run transferred.
    """
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task(printable(what), total=total, completed=done)
        begin = told = time.monotonic()
        got = 0

        def advance(size: int) -> None:
            nonlocal got, told
            progress.advance(task, size)
            got, now = got + size, time.monotonic()
            if progress.disable and now - told >= QUIET:
                told = now
                log.info("%s: %d of %d bytes, %.3f MB/s", what, done + got, total, got / 1e6 / (now - begin))

        yield advance
