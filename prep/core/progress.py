"""How far a long stage is: a bar on a terminal, and a line in the log once per `INTERVAL` elsewhere.

Input: what is counted, and how much of it there is.
Output: on stderr, count, total, rate, time left, and what the stage adds.
Guarantees: a stage shorter than `INTERVAL` logs nothing; a longer one logs a line even while nothing advances.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from prep.core.errors import printable

INTERVAL = 60.0  # seconds between lines
_REFRESH = 0.2  # seconds between updates of a bar

T = TypeVar("T")

log = logging.getLogger(__name__)


def bar(things: Iterable[T], what: str, total: float | None = None, done: float = 0) -> Iterator[T]:
    """Yield `things` and show how many of them are done.

    Args:
        things: what is counted.
        what: label.
        total: number of things; by default their len(), if they have one.
        done: number of things that an earlier run did; `total` contains them.
    """
    if total is None and isinstance(things, Sized):
        total = len(things)
    with counted(what, total, done) as advance:
        for thing in things:
            yield thing
            advance(1)


@contextmanager
def byte_bar(what: str, total: int, done: int = 0) -> Iterator[Callable[[float], None]]:
    """Show how many bytes of a file are transferred, and yield the function that adds a number of bytes.

    Args:
        what: label, the name of the file.
        total: size of the file, bytes.
        done: bytes that an earlier run transferred.
    """
    with counted(what, total, done, "MB") as advance:
        yield advance


@contextmanager
def counted(what: str, total: float | None, done: float = 0, unit: str = "") -> Iterator[Callable[[float], None]]:
    """As `shown`, for a count that this process keeps; yield the function that adds to it."""
    count = done

    def advance(more: float) -> None:
        nonlocal count
        count += more

    with shown(what, total, lambda: (count, ""), done, unit):
        yield advance


@contextmanager
def shown(
    what: str, total: float | None, look: Callable[[], tuple[float, str]], done: float = 0, unit: str = ""
) -> Iterator[None]:
    """Show how far a stage is, as long as the context lasts.

    Args:
        what: label.
        total: the count at the end; None if it is not known.
        look: returns the count, and what else there is to say; called by another thread.
        done: the count at the beginning.
        unit: "MB" if bytes are counted, else "".
    """
    what, on_terminal = printable(what), sys.stderr.isatty()
    line = _Line(total, done, unit)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[line]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        disable=not on_terminal,
    ) as progress:
        task = progress.add_task(what, total=total, line="")

        def show() -> None:
            count, more = look()
            text = line.text(count, more)
            if on_terminal:
                progress.update(task, completed=count, line=printable(text))
            else:
                log.info("%s: %s", what, text)

        with every(_REFRESH if on_terminal else INTERVAL, show):
            yield


@contextmanager
def every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in another thread every `seconds`, as long as the context lasts."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            act()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Line:
    """Count, total, rate and time left, as text."""

    def __init__(self, total: float | None, done: float, unit: str) -> None:
        self._total, self._done, self._unit = total, done, unit
        self._scale = 1e6 if unit else 1
        self._last, self._begin = done, time.monotonic()
        self._advanced = self._begin  # when the count last changed

    def text(self, count: float, more: str) -> str:
        now = time.monotonic()
        if count != self._last:
            self._last, self._advanced = count, now
        rate = (count - self._done) / max(now - self._begin, 1e-9)
        words = [self._amount(count), self._per_time(rate)]
        if self._total is not None:
            words[0] = f"{words[0]} of {self._amount(self._total)} ({100 * count / max(self._total, 1):.1f} %)"
            if rate > 0:
                words.append(f"{duration(max(self._total - count, 0) / rate)} left")
        if self._unit:
            words[0] = words[0].replace(" (", f" {self._unit} (")
        if now - self._advanced > INTERVAL:
            words.append(f"none for {duration(now - self._advanced)}")
        return ", ".join([*words, more] if more else words)

    def _amount(self, count: float) -> str:
        return f"{count / self._scale:,.1f}" if self._unit else f"{count:,.0f}"

    def _per_time(self, rate: float) -> str:
        rate /= self._scale
        name, seconds = next(
            ((name, seconds) for name, seconds in (("s", 1), ("min", 60)) if rate * seconds >= 1 or not rate),
            ("h", 3600),
        )
        return f"{rate * seconds:,.1f}{self._unit and f' {self._unit}'}/{name}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 45 s, 12 min, 3 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
