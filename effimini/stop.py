"""SIGTERM and SIGINT end a training at a place it can go on from.

In: signals. Out: `Stopped`, raised where the training says it may be. Guaranteed: while it computes a step nothing is
raised; the signal is kept until the step is done.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """The training was asked to end; the exit code is 128 and the signal's number, as a shell gives it."""


class Stop:
    """Whether the training was asked to end.

    Attributes:
        asked: the signal, None before one came.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._waits = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over, and give them back on leaving."""
        if current_thread() is not main_thread():  # only the main thread may set handlers
            yield
            return
        before = [signal.signal(number, self._come) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keep a signal instead of raising; who holds it back looks at `asked`."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before

    def raise_stopped(self) -> None:
        """End the training.

        Raises:
            Stopped: always.
        """
        raise Stopped(128 + (self.requested or signal.SIGTERM))

    def _come(self, number: int, _: FrameType | None) -> None:
        self.requested = number
        if not self._waits:
            self.raise_stopped()
