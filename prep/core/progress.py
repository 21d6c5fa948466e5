"""Progress bars on stderr, shown to people and not to log files."""

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
    """Yield `things` while a bar named `what` advances; `total` where their number is not known by len()."""
    console = Console(stderr=True)
    return track(things, what, total=total, console=console, transient=True, disable=not sys.stderr.isatty())


@contextmanager
def byte_bar(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar named `what` with its rate, and give the function that advances it by so many bytes.

    Args:
        what: the name, a file's.
        total: bytes of the whole.
        done: bytes that were there before.
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
