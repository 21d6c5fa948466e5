"""Progress bars on stderr, shown only in a terminal."""

import sys
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

T = TypeVar("T")


def bar(things: Iterable[T], what: str, total: float | None = None) -> Iterable[T]:
    """Yield `things` and show a progress bar labelled `what`; pass `total` if `things` has no len()."""
    console = Console(stderr=True)
    return track(things, what, total=total, console=console, transient=True, disable=not sys.stderr.isatty())


@contextmanager
def byte_bar(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar with the transfer rate, and yield the function that advances it by a number of bytes.

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
        task = progress.add_task(what, total=total, completed=done)
        yield lambda size: progress.advance(task, size)
