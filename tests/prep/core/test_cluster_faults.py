"""A cluster that cannot do the work is an error of one sentence, and never a wait without end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from prep.core import cluster as module
from prep.core.cluster import dask_pool
from prep.core.errors import UserError
from prep.core.params import DaskParams, Params
from tests.cluster import Cluster

ROOT = Path(__file__).parents[3]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 3.0)
    monkeypatch.setattr(module, "_POLL", 0.2)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Start a cluster of the test's own, with a number of workers."""
    started: list[Cluster] = []

    def start(workers: int, protocol: str = "tcp") -> Cluster:
        folder = tmp_path / "cluster"
        folder.mkdir()
        started.append(Cluster(folder, workers, protocol))
        return started[-1]

    yield start
    for one in started:
        one.scheduler.send_signal(signal.SIGCONT)
        one.stop()


def used(scheduler: str, folder: Path | None = None) -> list[int]:
    with dask_pool(DaskParams(scheduler=scheduler, workers=2), folder) as pool:
        return pool.map(after, [(0.0, number) for number in range(8)])


def after(seconds: float, result: int) -> int:
    time.sleep(seconds)
    return result


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def too_late() -> None:
    raise TimeoutError("of the call itself")


def the_error(scheduler: str, folder: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        used(scheduler, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the address ---


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff", None])
def test_a_broken_scheduler_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "scheduler.json"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert f"dask.scheduler {file} is not a scheduler file (" in the_error(str(file))


@pytest.mark.usefixtures("_impatient")
def test_a_scheduler_that_is_gone_or_does_not_answer_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tcp://127.0.0.1:9"}))
    assert f"dask.scheduler {file} (tcp://127.0.0.1:9) cannot be reached: " in the_error(str(file))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert f"dask.scheduler {address} cannot be reached: " in the_error(address)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("address", ["tcp://nowhere.invalid:1", "other://127.0.0.1:1", "tls://127.0.0.1:1", "tcp://:"])
def test_an_address_that_cannot_be_used_is_an_error(address: str) -> None:
    assert f"dask.scheduler {address} cannot be reached: " in the_error(address)


def test_another_protocol_is_accepted(own: Callable[..., Cluster]) -> None:
    started = own(1, "ws")
    assert started.address.startswith("ws://")
    assert used(started.address) == list(range(8))


# --- no worker, or none left ---


@pytest.mark.usefixtures("_impatient")
def test_a_cluster_without_workers_is_an_error(own: Callable[..., Cluster], caplog: pytest.LogCaptureFixture) -> None:
    started = own(0)
    assert "has no worker that accepts calls, and none came in 3 s" in the_error(str(started.file))
    assert "has no worker that accepts calls; waiting 3 s" in caplog.text


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_stage_waits_for_a_worker_if_all_are_lost(
    own: Callable[..., Cluster], comes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETURN", 60.0 if comes_back else 3.0)
    monkeypatch.setattr(module, "_POLL", 0.2)
    started, got = own(2), []
    with dask_pool(DaskParams(scheduler=started.address, workers=2)) as pool:
        results = pool.imap(after, [(0.1, number) for number in range(40)])
        got.append(next(results))
        for worker in started.workers:
            worker.kill()
            worker.wait()
        if comes_back:
            started.start_worker()
            assert got + list(results) == list(range(40))
        else:
            with pytest.raises(UserError, match="has no worker that accepts calls, and none came in 3 s; start"):
                got.extend(results)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_scheduler_that_dies_during_a_stage_is_an_error(own: Callable[..., Cluster], how: signal.Signals) -> None:
    started = own(1)
    with (
        pytest.raises(UserError, match="does not respond any more.*; start it and its workers, and run again"),
        dask_pool(DaskParams(scheduler=started.address, workers=2)) as pool,
    ):
        results = pool.imap(after, [(0.1, number) for number in range(1000)])
        next(results)
        started.scheduler.send_signal(how)
        list(results)


@pytest.mark.parametrize("where", ["cluster", "processes"])
def test_a_call_that_kills_every_worker_is_an_error(own: Callable[..., Cluster], where: str) -> None:
    scheduler = where
    if where == "cluster":
        started = own(0)
        scheduler = started.address
        started.start_worker("--nworkers", "2", "--nthreads", "1")
        started.client(2).close()
    with (
        pytest.raises(UserError, match=r"a call was stopped because its worker died 4 times.*--memory-limit"),
        dask_pool(DaskParams(scheduler=scheduler, workers=2)) as pool,
    ):
        pool.map(dies, [()])


def test_a_timeout_of_the_call_itself_is_not_that_of_a_worker(cluster: Cluster) -> None:
    for scheduler in ("threads", cluster.address):
        with (
            pytest.raises(TimeoutError, match="of the call itself"),
            dask_pool(DaskParams(scheduler=scheduler, workers=2)) as pool,
        ):
            pool.map(too_late, [()])


# --- workers that cannot do the work ---


def other_code(folder: Path) -> str:
    for package in ("prep", "shards"):
        shutil.copytree(ROOT / package, folder / package)
    with (folder / "shards/tar.py").open("a") as file:
        file.write("# another version\n")
    return r"runs code of prep and shards [0-9a-f]{8} instead of [0-9a-f]{8}; start"


def no_code(folder: Path) -> str:
    (folder / "prep").mkdir(parents=True)
    (folder / "prep/__init__.py").write_text("")
    return r"cannot import this version of EffiMini \(.*No module named 'prep.core'.*\); start"


def old_code(folder: Path) -> str:
    (folder / "prep/core").mkdir(parents=True)
    for name in ("prep/__init__.py", "prep/core/__init__.py", "prep/core/cluster.py"):
        (folder / name).write_text("")
    return r"cannot import this version of EffiMini \(.*cluster.*\); start"


def other_package(folder: Path) -> str:
    (folder / "pyarrow-1.0.dist-info").mkdir(parents=True)
    (folder / "pyarrow-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 1.0\n")
    return r"runs pyarrow 1.0 instead of \d+[\d.]+; start"


def other_python(folder: Path) -> str:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import platform\nplatform.python_version = lambda: '3.9.1'\n")
    return r"runs python 3.9.1 instead of 3[\d.]+; start"


@contextmanager
def joined(cluster: Cluster, folder: Path, make: Callable[[Path], str]) -> Iterator[str]:
    """Add a worker with other versions to a cluster of two; yield what the error says about it."""
    message = make(folder / "other")
    cluster.client(2).close()
    worker = cluster.start_worker(PYTHONPATH=os.pathsep.join([str(folder / "other"), str(ROOT)]))
    cluster.client(3).close()
    try:
        yield message
    finally:
        worker.kill()
        worker.wait()
    with cluster.client(2) as client:
        while len(client.nthreads()) > 2:
            time.sleep(0.1)


@pytest.mark.parametrize("make", [other_code, no_code, old_code, other_package, other_python])
def test_a_worker_with_other_versions_is_named(cluster: Cluster, tmp_path: Path, make: Callable[[Path], str]) -> None:
    with joined(cluster, tmp_path, make) as message:
        assert re.search(rf"^dask.scheduler {cluster.address}: tcp://[\d.:]+ {message}", the_error(cluster.address))


@pytest.mark.parametrize("make", [other_code, other_package, other_python])
def test_a_worker_that_comes_later_is_checked(cluster: Cluster, tmp_path: Path, make: Callable[[Path], str]) -> None:
    with (
        dask_pool(DaskParams(scheduler=cluster.address, workers=2)) as pool,
        joined(cluster, tmp_path, make) as message,
        pytest.raises(UserError, match=rf"^the Dask worker tcp://[\d.:]+ {message}"),
    ):
        pool.map(after, [(0.1, number) for number in range(200)])


@pytest.mark.parametrize("make", [no_code, old_code])
def test_a_worker_that_comes_later_and_cannot_import_a_call_does_no_harm(
    cluster: Cluster, tmp_path: Path, make: Callable[[Path], str]
) -> None:
    with (
        dask_pool(DaskParams(scheduler=cluster.address, workers=2)) as pool,
        joined(cluster, tmp_path, make),  # Dask ends it at its first call, which another worker then does
    ):
        assert pool.map(after, [(0.1, number) for number in range(50)]) == list(range(50))


@pytest.mark.parametrize("hidden", ["store", "data"])
def test_a_worker_without_the_shared_folders_is_named(
    own: Callable[..., Cluster], tmp_path: Path, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no mount namespaces")
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / "store"))
    for name in ("store", "data"):
        (tmp_path / name).mkdir()
    started = own(1)
    elsewhere = f'mount -t tmpfs tmpfs {tmp_path / hidden} && exec "$@"'
    started.start_worker(before=("unshare", "--mount", "sh", "-c", elsewhere, "sh"))
    started.client(2).close()
    message = the_error(started.address, tmp_path / "data")
    assert message.count("tcp://") == 2  # the scheduler's and that of one worker
    assert f" cannot write to the folder {tmp_path / hidden} of this machine; start" in message


def test_workers_elsewhere_use_the_relative_paths_of_the_client(
    tmp_path: Path,
    make_params: Callable[..., Params],
    run_to: Callable[..., None],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EFFIMINI_STORE", "store")
    shutil.copytree(ROOT / "effimini/minilm", "encoder")
    given = {"dask.scheduler": cluster.address, "source.categories": ["Demo_Toys"], "model.text.name": "encoder"}
    run_to(make_params(**given), Path("data"), "shard")
    assert list(Path("store/shards").glob("*.tar"))
    assert not list(cluster.folder.rglob("*.tar"))


def test_the_command_ends_with_one_line(tmp_path: Path) -> None:
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    params["dask"]["scheduler"] = "other://127.0.0.1:1"
    (tmp_path / "other.yaml").write_text(json.dumps(params))
    command = [sys.executable, "-m", "effimini.cli", "download", "Demo_Toys", "--params", "other.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("effimini: dask.scheduler other://127.0.0.1:1 cannot be reached")
    assert done.stderr.count("\n") == 1
