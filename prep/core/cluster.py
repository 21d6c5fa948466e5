"""Run the work of a stage on a Dask pool: in this process, on local workers, or on a running cluster.

Input: a function and the arguments of each call.
Output: the results in the order of the calls.
Guarantees: results do not depend on the number of workers. The workers of a cluster must see the same files under the
same paths. If a worker dies, Dask repeats its call on another one, so a function must write atomically
(`prep.core.files`) or to a file that no other call writes.
"""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prep.core import memory, progress
from prep.core.errors import UserError
from prep.core.params import DaskParams

if TYPE_CHECKING:
    from distributed import Client

Result = TypeVar("Result")
_PENDING_PER_WORKER = 4  # calls submitted ahead, per worker
_SETTINGS = {
    # On older Pythons Dask's profiler can deadlock a worker, if the garbage collector runs inside sys._current_frames
    # (python/cpython#106883).
    "distributed.worker.profile.enabled": False,
    "distributed.worker.multiprocessing-method": "forkserver",
}
_ENVIRONMENT = {
    # Dask's default makes malloc return freed memory eagerly, which takes half of a worker's time.
    **memory.ENVIRONMENT,
    # As Dask sets them: a process that forks must have no threads.
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
}


class DaskPool:
    """Runs calls in this process, or on the workers of a Dask client."""

    def __init__(self, client: "Client | None") -> None:
        self._client = client

    @property
    def count(self) -> int:
        """Number of calls that run at the same time."""
        return max(1, sum(self._client.nthreads().values())) if self._client else 1

    def imap(
        self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], what: str = ""
    ) -> Iterator[Result]:
        """Call `function` with each tuple of arguments and yield the results in order.

        `calls` is consumed lazily, a few calls ahead of the workers, so it may be a generator.

        Args:
            function: importable, with picklable arguments and result.
            calls: the arguments of each call.
            what: label of the progress bar; no bar if empty.
        """
        results = self._submit(function, calls) if self._client else (function(*call) for call in calls)
        total = len(calls) if isinstance(calls, list) else None
        yield from progress.bar(results, what, total) if what else results

    def map(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], what: str = "") -> list[Result]:
        """Call `function` with each tuple of arguments and return the results in order; see `imap`."""
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
    """Start the fork server, which imports the workers' modules once and in parallel with this process."""
    os.environ.update(_ENVIRONMENT)
    ours = [name for name in sys.modules if name.startswith(("prep.", "shards."))]
    forkserver.set_forkserver_preload(["distributed", *ours])
    forkserver.ensure_running()


@contextmanager
def dask_pool(settings: DaskParams) -> Iterator[DaskPool]:
    """Open the Dask pool of a stage; workers that it starts end with it.

    Args:
        settings: ``scheduler`` is synchronous (this process), threads or processes (``workers`` of them on this
            machine), or the address (tcp://host:port) or the scheduler file (*.json) of a running scheduler.

    Raises:
        UserError: the scheduler file does not exist.
    """
    if settings.scheduler == "synchronous":
        yield DaskPool(None)
        return
    file = Path(settings.scheduler) if settings.scheduler.endswith(".json") else None
    if file and not file.exists():  # Dask would wait for it for ever
        raise UserError(
            f"dask.scheduler {file} does not exist; start `dask scheduler --scheduler-file {file}` and workers"
        )
    processes = settings.scheduler == "processes"
    if processes:
        _start_server()
    import dask  # noqa: PLC0415 -- takes a second, which a stage in one process need not spend
    from distributed import Client, LocalCluster  # noqa: PLC0415

    # Dask logs every connection, and its workers log the exceptions of calls, which the caller reports anyway.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        address: Any = settings.scheduler
        if file is None and not address.startswith("tcp://"):
            address = stack.enter_context(
                LocalCluster(
                    n_workers=settings.workers if processes else 1,
                    threads_per_worker=1 if processes else settings.workers,
                    processes=processes,
                    silence_logs=logging.CRITICAL,  # the same for workers in other processes
                    memory_limit=0,  # stages bound their own memory; a limit would only pause or kill workers
                    dashboard_address=None,
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    worker_dashboard_address="127.0.0.1:0",
                )
            )
        client = Client(scheduler_file=str(file)) if file else Client(address)
        yield DaskPool(stack.enter_context(client))
