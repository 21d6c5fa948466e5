"""Run the work of a stage on a Dask pool: in this process, on local workers, or on a running cluster.

Input: a function and the arguments of each call.
Output: the results in the order of the calls.
Guarantees: results do not depend on the number of workers. If a worker dies, Dask repeats its call on another one, so a
function must write atomically (`prep.core.files`) or to a file that no other call writes. A call runs in the working
directory of this process, with its local store. It is an error, and never a wait without end, if the workers of a
cluster do not see the same files under the same paths or run other versions, or if the scheduler or all workers are
lost.
"""

import asyncio
import hashlib
import json
import logging
import os
import platform
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import metadata
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from prep.core import files, memory, progress
from prep.core.errors import UserError, first_sentence
from prep.core.params import DaskParams

if TYPE_CHECKING:
    from distributed import Client, Future

PATIENCE = 15.0  # seconds to wait for a scheduler that does not respond, and for a first worker
RETURN = 25.0  # seconds to wait for a worker after all were lost
_POLL = 2.0  # seconds between looks at the scheduler and the workers while a result is awaited

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
_PACKAGES = (  # they carry the calls, or determine the bytes that workers write
    *("dask", "distributed", "msgspec", "numpy", "pandas", "pillow", "pyarrow", "scipy", "simplejpeg", "tokenizers"),
    *("webdataset", "xxhash"),
)

log = logging.getLogger(__name__)


class _Site(NamedTuple):
    """Where a call must run."""

    folder: str  # the working directory
    store: str  # the local store
    seen: tuple[str, ...]  # files that a worker must see
    versions: Mapping[str, str]  # versions that a worker must run


class DaskPool:
    """Runs calls in this process, or on the workers of a Dask client."""

    def __init__(self, client: "Client | None", site: _Site | None = None, cluster: str = "") -> None:
        """Set where the calls run.

        Args:
            client: None for this process.
            site: None for this process.
            cluster: the scheduler of a cluster; "" for local workers.
        """
        self._client, self._site, self._cluster = client, site, cluster
        self._name = f"dask.scheduler {cluster}" if cluster else "the pool of local workers"

    @property
    def count(self) -> int:
        """Number of calls that run at the same time."""
        return max(1, sum(self._threads().values())) if self._client else 1

    def imap(
        self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], what: str = ""
    ) -> Iterator[Result]:
        """Call `function` with each tuple of arguments and yield the results in order.

        `calls` is consumed lazily, a few calls ahead of the workers, so it may be a generator.

        Args:
            function: importable, with picklable arguments and result.
            calls: the arguments of each call.
            what: label of the progress bar; no bar if empty.

        Raises:
            UserError: the scheduler or all workers are lost, or a worker cannot do a call.
        """
        results = self._submit(function, calls) if self._client else (function(*call) for call in calls)
        total = len(calls) if isinstance(calls, list) else None
        yield from progress.bar(results, what, total) if what else results

    def map(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], what: str = "") -> list[Result]:
        """Call `function` with each tuple of arguments and return the results in order; see `imap`."""
        return list(self.imap(function, calls, what))

    def check(self) -> None:
        """Wait for a worker, then check that the scheduler and all workers can do the calls.

        Raises:
            UserError: there is no worker, or some cannot do the calls; it names them.
        """
        assert self._client is not None
        assert self._site is not None
        self._await_worker(PATIENCE)
        try:
            answers = {
                "the scheduler": self._ask(self._client.run_on_scheduler, _problem, self._site._replace(seen=()))
            }
        except (ImportError, AttributeError, TypeError) as error:  # it has another version of this module, or none
            answers = {"the scheduler": error}
        answers |= self._ask(self._client.run, _problem, self._site, on_error="return")
        places = defaultdict(list)
        for place, answer in answers.items():
            if isinstance(answer, OSError):  # this worker has just died
                continue
            problem = f"cannot import this version of EffiMini ({answer})" if isinstance(answer, Exception) else answer
            places[problem].append(place)
        places.pop("", None)
        if places:
            found = "; ".join(f"{', '.join(found)} {problem}" for problem, found in sorted(places.items()))
            raise UserError(f"{self._name}: {found}; {_REMEDY}")

    def _submit(self, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        assert self._client is not None
        max_pending = _PENDING_PER_WORKER * self.count
        waiting: deque[Future] = deque()
        for call in calls:
            if len(waiting) == max_pending:
                yield self._result(waiting.popleft())
            waiting.append(self._client.submit(_call, self._site, function, *call, pure=False))
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, future: "Future") -> Any:
        """Wait for the result of a call as long as the scheduler responds and there are workers."""
        from distributed import CancelledError, KilledWorker  # noqa: PLC0415 -- see `dask_pool`

        while True:
            try:
                return future.result(timeout=_POLL)
            except KilledWorker as error:
                if self._cluster:
                    self.check()  # a worker dies of a call that it cannot import
                raise UserError(
                    f"{self._name}: a call was stopped because its worker died {error.allowed_failures + 1} times, at "
                    f"last {error.last_worker.address}; most often memory is short: lower dask.workers, raise "
                    "download.buckets, or give the workers more memory (--memory-limit)"
                ) from error
            except CancelledError as error:
                raise self._lost() from error
            except TimeoutError:
                if future.status == "error":  # it is the call's own
                    raise
                self._await_worker(RETURN)
            except UserError:
                raise
            except Exception:
                if self._cluster:
                    self.check()  # a worker that has just come may have other versions
                raise

    def _threads(self) -> dict[str, int]:
        """Return the number of threads of each worker that works, by address."""
        assert self._client is not None
        workers = self._ask(self._client.scheduler.identity)["workers"]
        return {  # one that is short of memory is paused: it starts no call
            address: worker["nthreads"]
            for address, worker in workers.items()
            if worker["status"] == "running" or worker["metrics"].get("task_counts", {}).get("executing")
        }

    def _await_worker(self, limit: float) -> None:
        """Wait for a worker if there is none, at most `limit` seconds."""
        end, told = time.monotonic() + limit, False
        while not self._threads():
            if time.monotonic() > end:
                raise UserError(
                    f"{self._name} has no worker that accepts calls, and none came in {limit:.0f} s; start workers, "
                    "with more memory if they were killed or paused for it, and run again"
                )
            if not told:
                log.warning("%s has no worker that accepts calls; waiting %.0f s for one", self._name, limit)
            told = True
            time.sleep(_POLL / 10)

    def _ask(self, ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a method of the client that asks the scheduler, which may have died or not respond."""
        assert self._client is not None
        if self._client.status not in {"running", "connecting"}:
            raise self._lost()
        try:
            return self._client.sync(ask, *arguments, callback_timeout=PATIENCE, **options)
        except OSError as error:  # also TimeoutError
            raise self._lost(error) from error

    def _lost(self, error: Exception | None = None) -> UserError:
        reason = f" ({first_sentence(error) or type(error).__name__})" if error else ""
        return UserError(f"{self._name} does not respond any more{reason}; start it and its workers, and run again")


_REMEDY = (
    "start the scheduler and the workers in the environment of this project, on machines that have its folder under "
    "the same path, or set dask.scheduler: processes"
)


@cache
def _versions() -> dict[str, str]:
    """Return the versions in this process; a worker computes its own when it imports this module."""
    root, code = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted(path for package in ("prep", "shards") for path in (root / package).rglob("*.py")):
        code.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    installed = {package: metadata.version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), "code of prep and shards": code.hexdigest()[:8], **installed}


def _problem(site: _Site) -> str:
    """Return why this process cannot do calls of a client, or "" if it can."""
    here = _versions() if site.versions else {}
    others = [
        f"{name} {here[name]} instead of {version}" for name, version in site.versions.items() if here[name] != version
    ]
    if others:
        return f"runs {', '.join(others)}"
    folders = [
        str(path.parent) for path in map(Path, site.seen) if not (path.exists() and os.access(path.parent, os.W_OK))
    ]
    return f"cannot write to the folder {' or '.join(folders)} of this machine" if folders else ""


def _call(site: _Site, function: Callable[..., Result], *call: Any) -> Result:
    """Run a call on a worker."""
    if problem := _problem(site):
        from distributed import get_worker  # noqa: PLC0415 -- see `dask_pool`

        raise UserError(f"the Dask worker {get_worker().address} {problem}; {_REMEDY}")
    os.chdir(site.folder)
    os.environ["EFFIMINI_STORE"] = site.store
    return function(*call)


def _start_server() -> None:
    """Start the fork server, which imports the workers' modules once and in parallel with this process."""
    os.environ.update(_ENVIRONMENT)
    ours = [name for name in sys.modules if name.startswith(("prep.", "shards."))]
    forkserver.set_forkserver_preload(["distributed", *ours])
    resource_tracker.ensure_running()  # when it starts, it unblocks the signal
    # Ctrl-C goes to every process of a terminal; workers end with this one, without a traceback of their own. They
    # inherit the mask; this process gets a signal that came meanwhile when it is unblocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_server() -> None:
    """End the fork server, which would start the workers that it was asked for when this process no longer waits."""
    if pid := getattr(forkserver, "_forkserver")._forkserver_pid:  # noqa: B009 -- there is no public name
        os.kill(pid, signal.SIGKILL)


@contextmanager
def dask_pool(settings: DaskParams, folder: Path | None = None) -> Iterator[DaskPool]:
    """Open the Dask pool of a stage; workers that it starts end with it.

    Args:
        settings: ``scheduler`` is synchronous (this process), threads or processes (``workers`` of them on this
            machine), or the address (tcp://host:port, tls://host:port, or another protocol of Dask) or the scheduler
            file (*.json) of a running scheduler.
        folder: where the calls write, besides the local store.

    Raises:
        UserError: the scheduler cannot be reached, or workers are missing or unfit.
    """
    if settings.scheduler == "synchronous":
        yield DaskPool(None)
        return
    if settings.scheduler == "processes":
        _start_server()
    import dask  # noqa: PLC0415 -- takes a second, which a stage in one process need not spend
    import distributed  # noqa: PLC0415

    # Dask logs every connection, its workers log the exceptions of calls, which the caller reports anyway, and asyncio
    # reports a wait for a result that ended when its time was up.
    for name in ("distributed", "distributed.client", "distributed.worker", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)  # `check` names the versions
    site = _Site(str(Path.cwd()), str(files.store()), (), {})
    with ExitStack() as stack:
        stack.push(lambda kind, *_: _end_server() if kind is KeyboardInterrupt else None)  # last, when workers are told
        stack.enter_context(dask.config.set(_SETTINGS))
        if settings.scheduler in {"threads", "processes"}:
            yield DaskPool(stack.enter_context(_local(settings, stack)), site)
            return
        client = stack.enter_context(_connected(settings.scheduler))
        seen = tuple(stack.enter_context(_token(place)) for place in (files.store(), folder) if place)
        pool = DaskPool(client, site._replace(seen=seen, versions=_versions()), settings.scheduler)
        pool.check()
        yield pool


def _local(settings: DaskParams, stack: ExitStack) -> "Client":
    """Start local workers, which end with `stack`."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 -- see `dask_pool`

    processes = settings.scheduler == "processes"
    cluster = LocalCluster(
        n_workers=settings.workers if processes else 1,
        threads_per_worker=1 if processes else settings.workers,
        processes=processes,
        silence_logs=logging.CRITICAL,  # the same for workers in other processes
        memory_limit=0,  # stages bound their own memory; a limit would only pause or kill workers
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        worker_dashboard_address="127.0.0.1:0",
    )
    return Client(stack.enter_context(cluster))


def _connected(scheduler: str) -> "Client":
    """Connect to a running scheduler."""
    from distributed import Client, Security  # noqa: PLC0415 -- see `dask_pool`
    from distributed.comm import connect  # noqa: PLC0415

    address, remedy = scheduler, "start `dask scheduler` and workers, and check the address"
    if scheduler.endswith(".json"):
        remedy = f"start `dask scheduler --scheduler-file {scheduler}` and workers"
        try:
            address = str(json.loads(Path(scheduler).read_bytes())["address"])
        except FileNotFoundError:
            raise UserError(f"dask.scheduler {scheduler} does not exist; {remedy}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"dask.scheduler {scheduler} is not a scheduler file ({error}); {remedy}") from error

    async def greet() -> None:  # for which Client has no timeout
        comm = await connect(address, timeout=PATIENCE, **Security().get_connection_args("client"))
        comm.abort()

    try:
        asyncio.run(asyncio.wait_for(greet(), PATIENCE))
        return Client(address, timeout=PATIENCE)
    except Exception as error:  # each protocol has its own; they are all about the address
        at = "" if address == scheduler else f" ({address})"
        reason = first_sentence(error) or type(error).__name__
        raise UserError(f"dask.scheduler {scheduler}{at} cannot be reached: {reason}; {remedy}") from error


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """Write a file that workers must see in a folder, and remove it at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".seen-", suffix=".partial") as token:
        yield token.name
