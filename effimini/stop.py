"""Stops a training on SIGTERM and SIGINT at a point from which it can resume.

Input: signals. Output: `Stopped`, raised where the training allows it. Guarantees: nothing is raised during a step; the
signal is handled when the step is complete.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal stopped the training; the exit code is 128 + the signal number, as in a shell."""


class Stop:
    """Handles the signals that stop a training.

    Attributes:
        requested: the signal received, None if none.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Install the signal handlers, and restore the previous ones on exit."""
        if current_thread() is not main_thread():  # only the main thread may set handlers
            yield
            return
        previous = [signal.signal(number, self._handle) for number in SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, previous, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Do not raise on a signal; the caller checks `requested`."""
        previous, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = previous

    def raise_stopped(self) -> None:
        """Stop the training.

        Raises:
            Stopped: always.
        """
        raise Stopped(128 + (self.requested or signal.SIGTERM))

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.requested = number
        if not self._deferred:
            self.raise_stopped()
