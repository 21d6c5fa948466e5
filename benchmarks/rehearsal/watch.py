"""Watch a command: its time, and the memory and disk of its processes, by stage.

Input: a command in a project. Output: `Watched`. Guarantees: memory is resident minus shared memory, sampled every
INTERVAL seconds; time and CPU time of a stage are exact (`benchmarks.rehearsal.stage`), those of DVC between the
stages are what is left.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.rehearsal.stage import stage_of

INTERVAL = 0.5  # seconds
DVC = "dvc"  # the stage of DVC's own work
PROGRAMS = ("effimini", "stage.py")


class Usage(msgspec.Struct):
    """What a stage used, over all its calls."""

    calls: int = 0
    wall: float = 0.0  # seconds
    cpu: float = 0.0  # seconds
    process: float = 0.0  # peak memory of its largest process, MB
    together: float = 0.0  # peak memory of its processes at the same time, MB
    disk: float = 0.0  # growth of the used disk while it ran, MB; of the whole disk, so others' files count


class Watched(msgspec.Struct):
    """The result of a command."""

    wall: float
    status: int
    stages: dict[str, Usage]


def _install(folder: Path) -> None:
    """Write the program that takes the place of `effimini`."""
    path = folder / "effimini"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{Path(__file__).with_name("stage.py")}" "$@"\n')
    path.chmod(0o755)


def run(words: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path, kill_after: float | None = None) -> Watched:
    """Run a command, its output appended to a log.

    Args:
        words: the command.
        cwd: its working directory.
        env: its environment.
        log: the file for its output; the figures of its stages are in a file beside it.
        kill_after: seconds after which the whole process group is killed.
    """
    figures = log.with_suffix(".jsonl")
    before = figures.stat().st_size if figures.exists() else 0
    real = str(Path(sys.executable).with_name("effimini"))
    _install(log.parent / "bin")
    path = os.pathsep.join((str(log.parent / "bin"), env["PATH"]))
    env = {**env, "PATH": path, "REHEARSAL_COMMAND": real, "REHEARSAL_LOG": str(figures)}
    begin = time.monotonic()
    with log.open("a") as output:
        process = subprocess.Popen(words, cwd=cwd, env=env, stdout=output, stderr=output, start_new_session=True)
        sampler = _Sampler(process.pid)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            sampler.stop()
    wall = time.monotonic() - begin
    lines = figures.read_bytes()[before:].splitlines() if figures.exists() else []
    return Watched(wall, process.returncode, _summary([json.loads(line) for line in lines], sampler, wall))


class _Sampler(threading.Thread):
    """Samples the processes below a process until it is stopped."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.stages: defaultdict[str, Usage] = defaultdict(Usage)
        self._root = psutil.Process(root)
        self._stopped = threading.Event()
        self._cpu = 0.0
        self.start()

    def run(self) -> None:
        used, last = _disk(), DVC
        while not self._stopped.wait(INTERVAL):
            memory = self._memory()
            for stage, sizes in memory.items():
                usage = self.stages[stage]
                usage.process, usage.together = max(usage.process, *sizes), max(usage.together, sum(sizes))
            now, stage = _disk(), next((stage for stage in memory if stage != DVC), DVC)
            self.stages[last].disk += now - used
            used, last = now, stage

    def stop(self) -> None:
        """Stop, and wait for the last sample."""
        self._stopped.set()
        self.join()

    @property
    def dvc_cpu(self) -> float:
        """CPU time of the root process alone when it was last seen, seconds."""
        return self._cpu

    def _memory(self) -> dict[str, list[float]]:
        """Return the sizes of the processes of each stage, MB."""
        found: dict[str, list[float]] = {}
        stages: dict[int, str] = {}
        for process in _tree(self._root):
            try:
                with process.oneshot():
                    stage = stages.get(process.ppid(), DVC)
                    words = process.cmdline()
                    program = next((n for n, word in enumerate(words[:4]) if Path(word).name in PROGRAMS), -1)
                    if stage == DVC and program >= 0 and len(words) > program + 1:
                        stage = stage_of(words[program + 1 :])
                    memory = process.memory_info()
                    if process == self._root:
                        times = process.cpu_times()
                        self._cpu = times.user + times.system
                stages[process.pid] = stage
                found.setdefault(stage, []).append((memory.rss - memory.shared) / 1e6)
            except psutil.Error:  # it has ended
                continue
        return found


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]  # parents come before their children
    except psutil.Error:
        return []


def _disk() -> float:
    return shutil.disk_usage(".").used / 1e6


def _summary(lines: list[dict[str, Any]], sampler: _Sampler, wall: float) -> dict[str, Usage]:
    """Return the usage of each stage, DVC's own last."""
    stages = dict(sampler.stages)
    own = stages.pop(DVC, Usage())
    found: dict[str, Usage] = {}
    for line in lines:
        usage = found.setdefault(line["stage"], stages.get(line["stage"], Usage()))
        usage.calls, usage.wall, usage.cpu = usage.calls + 1, usage.wall + line["wall"], usage.cpu + line["cpu"]
    for stage in stages.keys() - found.keys():  # killed before it could log
        found[stage] = stages[stage]
    own.calls, own.cpu = 1, sampler.dvc_cpu
    own.wall = wall - sum(usage.wall for usage in found.values())
    return found | {DVC: own}
