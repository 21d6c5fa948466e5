"""Where the time of a training goes, by what it is spent on.

In: the moments at which one thing ends and the next begins. Out: seconds by name. Guaranteed: nothing waits for the
accelerator: there the moments are events of its own queue, so that "data" is the time in which it had nothing to do.
"""

import time

import torch

Moment = float | torch.cuda.Event


class Clock:
    """A stopwatch with names: `start` says what begins, and what was before it has ended.

    Attributes:
        seconds: by name, of all that has ended and was read.
    """

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        """Start at nothing.

        Args:
            device: that computes.
            seconds: by name, of before; they are added to in place.
        """
        self.seconds = seconds
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Moment]] = []

    def start(self, name: str) -> None:
        """Begin `name`, now, or where the accelerator will be when it has done what it was given so far."""
        if not self._cuda:
            self._marks.append((name, time.perf_counter()))
            return
        moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        moment.record()
        self._marks.append((name, moment))

    def read(self) -> None:
        """Add up what has ended, but for the newest things that the accelerator has yet to do."""
        while len(self._marks) > 1:
            (name, begun), (_, ended) = self._marks[:2]
            if isinstance(begun, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
                if not ended.query():  # type: ignore[no-untyped-call]
                    return
                spent = begun.elapsed_time(ended) / 1000
            else:
                assert isinstance(begun, float), begun
                assert isinstance(ended, float), ended
                spent = ended - begun
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            self._marks.pop(0)

    def stop(self) -> None:
        """End what runs, and wait until the accelerator has done it."""
        if self._marks:
            self.start("")
            if self._cuda:
                torch.cuda.synchronize()
            self.read()
            self._marks.clear()
