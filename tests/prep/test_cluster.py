"""Promise 1: the same bytes on any number of workers, here and on a cluster of separate processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed import Client

from prep.params import Params


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a scheduler and two workers, each a process of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker"]
    file = folder / "scheduler.json"
    env = os.environ | {"EFFIMINI_STORE": str(folder / "store")}
    common = {"stderr": subprocess.DEVNULL, "cwd": folder, "env": env}
    processes = [subprocess.Popen([*dask, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], **common)]
    for _ in range(2):
        command = [*worker, "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        processes.append(subprocess.Popen(command, **common))
    with Client(scheduler_file=str(file), timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        yield client.scheduler.address
    for process in reversed(processes):
        process.terminate()
        process.wait(timeout=20)


def test_the_bytes_are_the_same_on_any_workers_and_on_a_cluster(
    tmp_path: Path,
    make_params: Callable[..., Params],
    run_to: Callable[..., None],
    digests: Callable[[Path], dict[str, str]],
    cluster: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    made = {}
    for scheduler in ("synchronous", "processes", cluster):
        name = scheduler.split(":")[0]
        monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / f"store-{name}"))
        run_to(make_params(**{"dask.scheduler": scheduler, "source.categories": ["Demo_Toys"]}), tmp_path / name)
        made[name] = digests(tmp_path / name)
    assert len(made["synchronous"]) > 15
    assert made["synchronous"] == made["processes"] == made["tcp"]
