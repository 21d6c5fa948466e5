"""Prefetching of values by threads."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.prefetch import DEPTH, prefetch

ROOT = Path(__file__).parents[2]


def maker(name: int, made: list[tuple[int, int, str]]) -> Callable[[int], int]:
    """Return a function that computes squares; a smaller name makes it slower."""

    def make(step: int) -> int:
        time.sleep(0.002 / (name + 1))
        made.append((name, step, threading.current_thread().name))
        return step * step

    return make


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_values_are_yielded_in_order_and_computed_round_robin(threads: int) -> None:
    made: list[tuple[int, int, str]] = []
    steps = range(3, 40)
    assert list(prefetch([maker(name, made) for name in range(threads)], steps)) == [step * step for step in steps]
    assert sorted(step for _, step, _ in made) == list(steps)
    assert all((step - 3) % threads == name for name, step, _ in made)
    assert len({thread for *_, thread in made}) == len({(name, thread) for name, _, thread in made}) == threads


def test_no_thread_computes_further_ahead_than_allowed() -> None:
    made: list[tuple[int, int, str]] = []
    values = prefetch([maker(0, made), maker(1, made)], range(100))
    for taken in range(10):
        next(values)
        time.sleep(0.02)
        assert len(made) == taken + 2 * DEPTH


def test_an_error_is_raised_in_place_of_its_value() -> None:
    def make(step: int) -> int:
        if step == 5:
            raise ValueError("five")
        return step

    values = prefetch([make, make], range(9))
    assert [next(values) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(values)


def test_threads_end_with_the_iteration() -> None:
    before = threading.active_count()
    values = prefetch([maker(0, []), maker(1, [])], range(100))
    next(values)
    assert threading.active_count() == before + 2
    values.close()
    assert threading.active_count() == before


def test_a_blocked_thread_does_not_keep_the_process_alive() -> None:
    script = """
import threading
from shards.prefetch import prefetch
values = prefetch([lambda step: step and threading.Event().wait()], range(9))
print(next(values))
"""
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
