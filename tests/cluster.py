"""A Dask cluster of separate processes, like that of a user."""

import subprocess
import sys
from pathlib import Path

from distributed import Client


class Cluster:
    """A scheduler and workers, each a separate process, that start in another folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "scheduler.json"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("scheduler", "--port", "0", "--no-dashboard")
        self.workers = [self.start_worker() for _ in range(2)]
        with self.client() as client:
            self.address: str = client.scheduler.address

    def client(self) -> Client:
        """Return a client once two workers are connected."""
        client = Client(scheduler_file=str(self._file), timeout=60)
        client.wait_for_workers(2, timeout=60)
        return client

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._start("worker", "--nthreads", "1", "--no-dashboard", "--no-nanny")

    def _start(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self._file), *options]
        self._processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=self._folder))
        return self._processes[-1]

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(timeout=20)
