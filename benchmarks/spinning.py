"""Measure a training step with OpenMP threads that spin while they wait, and with threads that sleep.

    python -m benchmarks.spinning [--steps 6] [--repeats 5]

Input: ``data/`` of the demo, as `make repro` leaves it. Output: a table of seconds per step, alone and beside as many
other processes as half the cores. Guarantees: each measurement is a process of its own; they alternate.

libgomp, which torch uses, lets a thread that has finished its part spin until the others have finished theirs. Where
another process keeps a core busy, the threads that spin take the other core from the thread that they wait for.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks.hogs import hogs
from benchmarks.tables import median_range, table

POLICIES = {"spin (default)": None, "sleep": "PASSIVE"}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(seconds_per_step(options.steps))
        return
    cores = len(os.sched_getaffinity(0))
    sides = list(product(POLICIES, (0, max(1, cores // 2))))
    found: dict[tuple[str, int], list[float]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            found[side].append(measure(*side, options.steps))
    rows = [(policy, str(others), median_range(values, ".2f")) for (policy, others), values in found.items()]
    title = f"Python {platform.python_version()}, {cores} cores; {options.repeats} times {options.steps} steps"
    table(title, ["OpenMP threads that wait", "other busy processes", "seconds per step"], rows)


def measure(policy: str, others: int, steps: int) -> float:
    """Return the seconds per step of a process."""
    environment = dict(os.environ)
    environment.pop("OMP_WAIT_POLICY", None)
    if value := POLICIES[policy]:
        environment["OMP_WAIT_POLICY"] = value
    command = [sys.executable, "-m", "benchmarks.spinning", "--worker", "--steps", str(steps)]
    with hogs(others):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def seconds_per_step(steps: int) -> float:
    """Return the median of the seconds of some steps of a training of the demo."""
    import effimini.torchvision_shim  # noqa: F401, PLC0415 -- must come before what imports torchvision
    from effimini.distributed import init_distributed  # noqa: PLC0415 -- so that others start fast
    from effimini.train import Trainer  # noqa: PLC0415
    from prep.core.params import load_params  # noqa: PLC0415

    params = load_params(Path("params.yaml"))
    params = replace(params, model=replace(params.model, hashed_ngrams=0, tabular=()))
    with init_distributed() as dist:
        trainer = Trainer(params, Path("data/shards"), None, dist)
        trainer.network.train()
        seconds = []
        for number, batch in zip(range(steps), trainer.loader, strict=False):
            start = time.perf_counter()
            trainer.step(0, number, batch)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
