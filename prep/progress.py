"""Progress bars on stderr, shown to people and not to log files."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def bar(things: Iterable[T], what: str, total: float | None = None) -> Iterable[T]:
    """Yield `things` while a bar named `what` advances; `total` where their number is not known by len()."""
    console = Console(stderr=True)
    return track(things, what, total=total, console=console, transient=True, disable=not sys.stderr.isatty())
