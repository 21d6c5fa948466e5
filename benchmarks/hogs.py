"""Processes that keep cores busy beside a measurement."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hogs(number: int, *, apart: bool = False) -> Iterator[None]:
    """Run a number of processes that use all the time they get, in sessions of their own if `apart`."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command, start_new_session=apart) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()
