"""A Dask cluster of separate processes, like that of a user."""

import os
import subprocess
import sys
from pathlib import Path

from distributed import Client


class Cluster:
    """A scheduler and workers, each a separate process, that start in another folder."""

    def __init__(self, folder: Path, workers: int = 2, protocol: str = "tcp") -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--port", "0", "--no-dashboard", "--protocol", protocol)
        self.workers = [self.start_worker() for _ in range(workers)]
        with self.client(workers) as client:
            self.address: str = client.scheduler.address

    def client(self, workers: int = 2) -> Client:
        """Return a client once so many workers are connected."""
        client = Client(scheduler_file=str(self.file), timeout=60)
        if workers:
            client.wait_for_workers(workers, timeout=60)
        return client

    def start_worker(self, *options: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker with an environment; the words `before` start the command line."""
        given = options or ("--nthreads", "1", "--no-nanny")
        return self._start("worker", "--no-dashboard", *given, before=before, environment=environment)

    def _start(
        self, what: str, *options: str, before: tuple[str, ...] = (), environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--scheduler-file", str(self.file), *options]
        process = subprocess.Popen(
            [*before, *command], stderr=subprocess.DEVNULL, cwd=self.folder, env={**os.environ, **(environment or {})}
        )
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:  # it is stopped, or waits for a scheduler that is gone
                process.kill()
                process.wait()
