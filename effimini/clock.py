"""Measures where a training spends its time, by activity.

Input: the moments at which one activity ends and the next starts. Output: seconds by name. Guarantees: never blocks on
the GPU: on CUDA the moments are events in its stream, so that "data" is the time that the GPU was idle.
"""

import time

import torch

Moment = float | torch.cuda.Event


class Clock:
    """A stopwatch with named activities: `start` begins one and ends the one before.

    Attributes:
        seconds: total time by name of the activities that have ended and were read.
    """

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        """Create a stopwatch with nothing running.

        Args:
            device: the device that computes.
            seconds: earlier totals by name; updated in place.
        """
        self.seconds = seconds
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Moment]] = []

    def start(self, name: str) -> None:
        """Start `name` now, or on CUDA when the work queued so far is done."""
        if not self._cuda:
            self._marks.append((name, time.perf_counter()))
            return
        moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        moment.record()
        self._marks.append((name, moment))

    def read(self) -> None:
        """Add the activities that have ended to the totals, except those that the GPU has not finished."""
        while len(self._marks) > 1:
            (name, start), (_, end) = self._marks[:2]
            if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                if not end.query():  # type: ignore[no-untyped-call]
                    return
                elapsed = start.elapsed_time(end) / 1000
            else:
                assert isinstance(start, float), start
                assert isinstance(end, float), end
                elapsed = end - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
            self._marks.pop(0)

    def stop(self) -> None:
        """End the current activity, and wait until the GPU has finished it."""
        if self._marks:
            self.start("")
            if self._cuda:
                torch.cuda.synchronize()
            self.read()
            self._marks.clear()
