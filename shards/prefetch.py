"""Values made by threads ahead of their use, in order.

In: functions of a step, one a thread, so that what a function keeps open is its thread's own. Out: the value of each
step. Guaranteed: the order is that of the steps, whatever thread is faster; an error comes where its value would.

Threads, not processes: decoding a JPEG, reading and downloading leave the interpreter lock, and a batch that a process
sends costs more than decoding it, for its memory is mapped anew in both.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

DEPTH = 2  # steps that a thread is ahead
ENDING = 1.0  # seconds that a thread is given to end the step at hand

Value = TypeVar("Value")


def prefetch(makers: Sequence[Callable[[int], Value]], steps: Iterable[int]) -> Iterator[Value]:
    """Yield the value of each step.

    Args:
        makers: of values, at least one; each is called by one thread alone.
        steps: taken by the makers in turn.
    """
    asked: list[SimpleQueue[tuple[int, Future[Value]] | None]] = [SimpleQueue() for _ in makers]
    # daemons, so that one that waits for a silent host does not keep the process from ending
    threads = [Thread(target=_work, args=pair, daemon=True) for pair in zip(makers, asked, strict=True)]
    for thread in threads:
        thread.start()
    waiting: deque[Future[Value]] = deque()
    try:
        for turn, step in enumerate(steps):
            waiting.append(Future())
            asked[turn % len(asked)].put((step, waiting[-1]))
            if len(waiting) == DEPTH * len(makers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for queue in asked:
            queue.put(None)
        for thread in threads:
            thread.join(ENDING)


def _work(make: Callable[[int], Value], asked: "SimpleQueue[tuple[int, Future[Value]] | None]") -> None:
    while (job := asked.get()) is not None:
        step, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(make(step))
            except BaseException as error:  # noqa: BLE001 -- it is raised where the value is asked for
                future.set_exception(error)
