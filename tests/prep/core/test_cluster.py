"""The bytes do not depend on the number of workers, local or on a cluster, or on workers that die."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from prep import blocks
from prep.core.cluster import dask_pool
from prep.core.params import DaskParams, Params
from prep.download import download
from prep.groups import groups
from prep.join import join
from prep.sample import sample
from tests.cluster import Cluster

TOYS = "Demo_Toys"
STAGES: dict[str, tuple[Callable[[Params, Path], None], str]] = {
    "download": (lambda params, data: download(TOYS, params, data), f"raw/{TOYS}"),
    "join": (lambda params, data: join(TOYS, params, data), f"items/{TOYS}"),
    "groups": (groups, "groups"),
    "sample": (lambda params, data: sample(TOYS, params, data), f"sample/{TOYS}"),
}
LARGE = {"source.categories": [TOYS], "source.demo.items": 2000, "download.buckets": 16}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> Path:
    """Run a large catalogue up to the sample stage in one process; return the folder of the data and the store."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder / "store"))
        run_to(make_params(**LARGE), folder / "data", "sample")
    return folder


def test_bytes_do_not_depend_on_the_scheduler(
    tmp_path: Path,
    make_params: Callable[..., Params],
    run_to: Callable[..., None],
    digests: Callable[[Path], dict[str, str]],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {}
    for scheduler in ("synchronous", "threads", "processes", cluster.address):
        name = scheduler.split(":")[0]
        monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / f"store-{name}"))
        run_to(make_params(**{"dask.scheduler": scheduler, "source.categories": [TOYS]}), tmp_path / name)
        made[name] = digests(tmp_path / name)
    assert len(made["synchronous"]) > 15
    assert made["synchronous"] == made["threads"] == made["processes"] == made["tcp"]


def test_workers_may_have_another_working_directory(
    tmp_path: Path,
    make_params: Callable[..., Params],
    run_to: Callable[..., None],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EFFIMINI_STORE")
    run_to(make_params(**{"dask.scheduler": cluster.address, "source.categories": [TOYS]}), Path("data"), "shard")
    assert (tmp_path / "data/shards" / TOYS / "report.json").exists()


def when_it_writes(out: Path, files: int, act: Callable[[], None]) -> tuple[threading.Thread, list[bool]]:
    """Call `act` in a thread when the stage has written `files` files; the list says if the stage was still running."""
    in_the_middle: list[bool] = []

    def watch() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with suppress(OSError):  # files appear and disappear
                for partial in out.parent.glob(f".{out.name}.new-*.partial"):
                    if sum(1 for path in partial.rglob("*") if path.suffix in {".arrow", ".parquet"}) >= files:
                        act()
                        in_the_middle.append(partial.exists())
                        return
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, in_the_middle


@pytest.mark.parametrize("files", [1, 12])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_survives_a_killed_cluster_worker(
    tmp_path: Path,
    make_params: Callable[..., Params],
    digests: Callable[[Path], dict[str, str]],
    cluster: Cluster,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    files: int,
) -> None:
    monkeypatch.setenv("EFFIMINI_STORE", str(undisturbed / "store"))
    cluster.client().close()  # wait until both workers are connected
    doomed = cluster.workers.pop(0)

    def kill() -> None:
        doomed.kill()
        doomed.wait()
        cluster.workers.append(cluster.start_worker())

    monkeypatch.setattr(blocks, "BLOCK", 1 << 18)  # several blocks per file
    survives(stage, files, make_params(**LARGE, **{"dask.scheduler": cluster.address}), kill, undisturbed, tmp_path)
    assert digests(tmp_path / "data") == digests(undisturbed / "data")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_survives_a_killed_local_worker(
    tmp_path: Path,
    make_params: Callable[..., Params],
    digests: Callable[[Path], dict[str, str]],
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    monkeypatch.setenv("EFFIMINI_STORE", str(undisturbed / "store"))

    def kill() -> None:
        forking = [child for child in psutil.Process().children() if "forkserver" in str(child.cmdline())]
        workers = [worker for server in forking for worker in server.children()]
        assert len(workers) == 2
        workers[0].kill()

    survives(stage, 2, make_params(**LARGE, **{"dask.scheduler": "processes"}), kill, undisturbed, tmp_path)
    assert digests(tmp_path / "data") == digests(undisturbed / "data")


def survives(stage: str, files: int, params: Params, kill: Callable[[], None], whole: Path, folder: Path) -> None:
    """Run one stage on the data of an undisturbed run, and kill a worker in the middle."""
    run, name = STAGES[stage]
    shutil.copytree(whole / "data", folder / "data")
    out = folder / "data" / name
    shutil.rmtree(out)
    thread, in_the_middle = when_it_writes(out, files, kill)
    run(params, folder / "data")
    thread.join()
    assert in_the_middle == [True]
    assert not list(folder.rglob("*.partial"))


def dask_setting(key: str) -> object:
    import dask

    return dask.config.get(key)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_the_dask_profiler_is_disabled(scheduler: str) -> None:
    with dask_pool(DaskParams(scheduler=scheduler, workers=1)) as pool:
        assert pool.map(dask_setting, [("distributed.worker.profile.enabled",)]) == [False]


INTERRUPTED = """
import os
import signal
import sys
import time
from multiprocessing import forkserver

import psutil

from prep.core import cluster
from prep.core.params import DaskParams

start = forkserver.ensure_running

def interrupted(*_):
    start()
    os.kill(os.getpid(), signal.SIGINT)

def server_ends():
    server, = psutil.Process().children()[-1:]
    until = time.monotonic() + 30
    while server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    return server.status() == psutil.STATUS_ZOMBIE

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1] == "interrupted":
        forkserver.ensure_running = interrupted
    if sys.argv[1] == "asked for workers":
        cluster._local = interrupted
    try:
        with cluster.dask_pool(DaskParams(scheduler="processes", workers=1)) as pool:
            print(pool.map(signal.pthread_sigmask, [(signal.SIG_BLOCK, [])]))
    except KeyboardInterrupt:
        print("stopped", sys.argv[1] == "interrupted" or server_ends())
"""


@pytest.mark.parametrize(
    ("moment", "printed"),
    [
        ("interrupted", "stopped True"),
        ("asked for workers", "stopped True"),  # which the server, while it imports, would start too late
        ("never", "[{<Signals.SIGINT: 2>}]"),
    ],
)
def test_an_interrupt_ends_a_stage_that_starts_workers_and_leaves_workers_alone(
    tmp_path: Path, moment: str, printed: str
) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED)
    command = [sys.executable, str(tmp_path / "script.py"), moment]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": "."})
    assert (done.stdout.strip(), done.stderr) == (printed, "")
