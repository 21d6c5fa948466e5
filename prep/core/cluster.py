"""The work inside a category, spread by Dask: on this machine's processes or on a running cluster.

In: a function and the arguments of each call. Out: the results in the order of the calls, so that nothing
downstream can see how many workers there were (promise 1). The workers of a cluster see the same files under the
same paths. A call whose worker died is made again elsewhere, so whatever a function writes it writes aside
(`prep.core.files`) or to a file of its own.
"""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver
from typing import TYPE_CHECKING, Any, TypeVar

from prep.core import memory, progress
from prep.core.params import DaskParams

if TYPE_CHECKING:
    from distributed import Client

Result = TypeVar("Result")
_PENDING_PER_WORKER = 4  # calls a worker that are drawn before they are needed
_SETTINGS = {
    # Its profiler can stop a worker for ever on older Pythons, where the garbage collector runs at a wrong moment
    # of sys._current_frames (python/cpython#106883).
    "distributed.worker.profile.enabled": False,
    "distributed.worker.multiprocessing-method": "forkserver",
}
_ENVIRONMENT = {
    # Dask's own setting gives memory back at every chance, which takes half of a worker's time.
    **memory.ENVIRONMENT,
    # As Dask sets them: whoever forks has no threads.
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
}


class DaskPool:
    """Those who make the calls: this process, or what a Dask client leads to."""

    def __init__(self, client: "Client | None") -> None:
        self._client = client

    @property
    def count(self) -> int:
        """How many calls are made at a time."""
        return max(1, sum(self._client.nthreads().values())) if self._client else 1

    def imap(
        self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], what: str = ""
    ) -> Iterator[Result]:
        """Call `function` with each tuple of arguments and yield the results in order.

        `calls` are drawn as workers become free, a few ahead, so they may be made while others run.

        Args:
            function: importable, with picklable arguments and result.
            calls: the arguments of each call.
            what: names the work in a progress bar.
        """
        results = self._submit(function, calls) if self._client else (function(*call) for call in calls)
        total = len(calls) if isinstance(calls, list) else None
        yield from progress.bar(results, what, total) if what else results

    def map(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], what: str = "") -> list[Result]:
        """Call `function` with each tuple of arguments and return the results in order."""
        return list(self.imap(function, calls, what))

    def _submit(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        assert self._client is not None
        max_pending = _PENDING_PER_WORKER * self.count
        waiting: deque[Any] = deque()
        for call in calls:
            if len(waiting) == max_pending:
                yield waiting.popleft().result()
            waiting.append(self._client.submit(function, *call, pure=False))
        while waiting:
            yield waiting.popleft().result()


def _start_server() -> None:
    """Start the process that workers are forked from, which imports once, beside this one, what they all need."""
    os.environ.update(_ENVIRONMENT)
    forkserver.set_forkserver_preload(["distributed", *(name for name in sys.modules if name.startswith("prep."))])
    forkserver.ensure_running()


@contextmanager
def dask_pool(settings: DaskParams) -> Iterator[DaskPool]:
    """Give the workers of a stage; those started here end with it.

    Args:
        settings: ``scheduler`` is synchronous (this process), threads or processes (``dask_pool`` of them, here), or
            the address of a running scheduler (tcp://host:port).
    """
    if settings.scheduler == "synchronous":
        yield DaskPool(None)
        return
    processes = settings.scheduler == "processes"
    if processes:
        _start_server()
    import dask  # noqa: PLC0415 -- a second that a stage in one process does not pay
    from distributed import Client, LocalCluster  # noqa: PLC0415

    # It tells of every connection, and its workers of what a call raises, which who called tells.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        address: Any = settings.scheduler
        if not address.startswith("tcp://"):
            address = stack.enter_context(
                LocalCluster(
                    n_workers=settings.workers if processes else 1,
                    threads_per_worker=1 if processes else settings.workers,
                    processes=processes,
                    silence_logs=logging.CRITICAL,  # of workers in processes of their own, likewise
                    memory_limit=0,  # stages bound their memory themselves; a worker stopped by a limit helps nobody
                    dashboard_address=None,
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    worker_dashboard_address="127.0.0.1:0",
                )
            )
        yield DaskPool(stack.enter_context(Client(address)))
