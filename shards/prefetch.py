"""Compute values in threads before they are needed, and yield them in order.

Input: functions of a step, one per thread, so that each thread may have its own state. Output: the value of each step.
Guarantees: values are yielded in the order of the steps, independently of thread speed; an error is raised in place of
its value.

Threads instead of processes: decoding a JPEG, reading and downloading release the interpreter lock, and sending a batch
between processes costs more than decoding it, because its memory must be mapped again in both.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

DEPTH = 2  # steps that a thread computes ahead
ENDING = 1.0  # seconds to wait for a thread to finish its current step

Value = TypeVar("Value")


def prefetch(makers: Sequence[Callable[[int], Value]], steps: Iterable[int]) -> Iterator[Value]:
    """Yield the value of each step.

    Args:
        makers: functions that compute a value, at least one; each is called in its own thread only.
        steps: assigned to the makers round-robin.
    """
    queues: list[SimpleQueue[tuple[int, Future[Value]] | None]] = [SimpleQueue() for _ in makers]
    # daemons, so that a thread that waits for an unresponsive host does not keep the process alive
    threads = [Thread(target=_work, args=pair, daemon=True) for pair in zip(makers, queues, strict=True)]
    for thread in threads:
        thread.start()
    waiting: deque[Future[Value]] = deque()
    try:
        for number, step in enumerate(steps):
            waiting.append(Future())
            queues[number % len(queues)].put((step, waiting[-1]))
            if len(waiting) == DEPTH * len(makers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for queue in queues:
            queue.put(None)
        for thread in threads:
            thread.join(ENDING)


def _work(make: Callable[[int], Value], queue: "SimpleQueue[tuple[int, Future[Value]] | None]") -> None:
    while (job := queue.get()) is not None:
        step, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(make(step))
            except BaseException as error:  # noqa: BLE001 -- it is raised where the value is read
                future.set_exception(error)
