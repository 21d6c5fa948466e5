"""Check what only a GPU can show, in ten minutes: speed, memory and exact resume on the device, as one table.

    make device-check                 # or: python3 -m benchmarks.device_check [--size full] [--checks training resume]

Input: none; data and encoders are synthetic, with the shapes of the paper's (EfficientNet-B0 at 224 px, MiniLM with 160
tokens, random weights). Output: a Markdown table, also in build/device-check with the measurements. Guarantees: nothing
is downloaded or installed; a check that lacks a package or a GPU is a row with that reason; each check has a time limit
and all of them together have ten minutes. The exit code is 1 if two things that must be equal are not, or if a check
fails in a way that is not foreseen; a target of speed or memory that is missed is told in its row.

Without a GPU the sizes are small, and the rows show only that the program runs. The checks, in `CHECKS`, run in one
process beside this one, so that one that hangs or crashes costs only its own rows.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/device-check"
BUSY = 4  # times its limit that a check may take without a GPU, where it is no measurement and others may compute
TOTAL = 570.0  # seconds for all checks; the rest of the ten minutes is for the start and the end
GRACE = 20.0  # seconds that a check may take longer than its limit, to end by itself
CUDA_TESTS = "tests/test_cuda.py"
SKIPPED = "skipped: "


class Size(NamedTuple):
    """How much is measured, with encoders of which size."""

    image: str  # timm's name
    px: int
    text: tuple[tuple[str, int], ...]  # what differs from the configuration of MiniLM in effimini/minilm
    tokens: int  # of each text
    batches: tuple[int, ...]
    shard: int  # samples of the training shard
    links: int  # names of that shard: so many times the samples in an epoch
    few: int  # samples of the trainings that are compared byte by byte
    workers: int
    repeats: int
    turn: float  # seconds of a turn, at least
    steps: int  # of a turn, at least


_NARROW = (("hidden_size", 32), ("num_hidden_layers", 2), ("num_attention_heads", 2), ("intermediate_size", 64))
_SMALL = Size("test_efficientnet", 32, _NARROW, 24, (8, 32), 512, 4, 64, 1, 5, 0.3, 3)
SIZES = {
    "full": Size("efficientnet_b0", 224, (), 160, (32, 256, 1024), 4096, 16, 256, 8, 5, 0.8, 4),
    "small": _SMALL,
    "tiny": _SMALL._replace(batches=(4,), shard=64, few=16, repeats=2, turn=0.02, steps=1),
}


class Row(NamedTuple):
    """One line of the table."""

    check: str
    setting: str
    measured: str
    value: str  # a figure, or the reason why there is none
    target: str = ""
    failed: bool = False  # whether it makes the exit code 1


class Check(NamedTuple):
    """A check: the function of its name in `benchmarks.device_checks` yields its rows."""

    seconds: float  # its limit
    gpu: bool = False  # whether it makes sense only on a GPU


# The last one may compile for longer than it should, so that it can take the time of no other.
CHECKS = {
    "cuda_tests": Check(60, gpu=True),
    "matrix_products": Check(20),
    "precision": Check(60),  # it makes the data
    "resume": Check(60),
    "training": Check(170),
    "readers": Check(45),
    "two_processes": Check(60, gpu=True),
    "onnx": Check(60, gpu=True),
    "launches": Check(150, gpu=True),
}


def cuda_tests(seconds: float) -> Row:
    """Run the tests that need a GPU, for so long at most."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", CUDA_TESTS]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Row("cuda_tests", "", "pytest -m cuda", f"{SKIPPED}stopped after its limit of {seconds:.0f} s")
    text = done.stdout + done.stderr
    if done.returncode and (missing := re.search(r"No module named '?([\w.]+)", text)):
        return Row("cuda_tests", "", "pytest -m cuda", f"{SKIPPED}{missing[1]} is not installed")
    print(text, file=sys.stderr)
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "no output").strip("= ")
    return Row("cuda_tests", "", "pytest -m cuda", last, failed=done.returncode != 0)


def device() -> tuple[str, bool]:
    """Return what computes, in words, and whether it is a GPU."""
    import torch  # noqa: PLC0415 -- only the process that runs the checks needs it

    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else f"{platform.machine()} without a GPU"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}", gpu


def serve(pipe: Connection, folder: Path) -> None:
    """Send what `device` returns, then for each (name, size, seconds) that comes the rows of that check, and None."""
    pipe.send(device())
    while job := pipe.recv():
        name, size, seconds = job
        try:
            if name == "cuda_tests":
                pipe.send(cuda_tests(seconds))
            else:
                checks: Any = importlib.import_module("benchmarks.device_checks")
                for row in getattr(checks, name)(size, folder, time.monotonic() + seconds):
                    pipe.send(row)
        except Exception as error:  # noqa: BLE001 -- the other checks are still worth running
            traceback.print_exc()
            pipe.send(reason(name, error))
        pipe.send(None)


def reason(name: str, error: Exception) -> Row:
    """Return the row of a check that ended with an error: a package is missing, or it failed."""
    if isinstance(error, ModuleNotFoundError) and error.name and not (ROOT / error.name.partition(".")[0]).is_dir():
        return Row(name, "", "", f"{SKIPPED}{error.name.partition('.')[0]} is not installed")
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Row(name, "", "", f"failed: {text[:200]}", failed=True)


class Worker:
    """The process that runs the checks; another one takes over from one that hangs or crashes.

    Attributes:
        device: what `device` returns there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._folder))
        self._process.start()
        theirs.close()  # so that its end is noticed
        try:
            self.device: tuple[str, bool] = self._pipe.recv()
        except EOFError:
            sys.exit("device_check: torch cannot be imported, or cannot start; its error is above")

    def rows(self, name: str, size: Size, seconds: float) -> Iterator[Row]:
        """Yield the rows of a check, which has so many seconds."""
        self._pipe.send((name, size, seconds))
        end = time.monotonic() + seconds + GRACE
        try:
            while self._pipe.poll(max(0.0, end - time.monotonic())):
                if (row := self._pipe.recv()) is None:
                    return
                yield row
            self._process.kill()
            yield Row(name, "", "", f"{SKIPPED}stopped after its limit of {seconds:.0f} s")
        except EOFError:
            self._process.join()
            text = f"failed: its process ended with code {self._process.exitcode}"
            yield Row(name, "", "", text, failed=True)
        self._process.join()
        self._start()

    def stop(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = ["| check | setting | measured | value | target |", "|---|---|---|---|---|"]
    for row in rows:
        value = f"**{row.value}**" if row.failed else row.value
        lines.append("| " + " | ".join(text.replace("|", "/") for text in (*row[:3], value, row.target)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the checks, print the table, and return the exit code."""
    parser = argparse.ArgumentParser("python3 -m benchmarks.device_check", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), help="full with a GPU, otherwise small")
    parser.add_argument("--checks", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--out", type=Path, default=BUILD)
    chosen = parser.parse_args()
    start = time.monotonic()
    rows: list[Row] = []
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=chosen.out) as folder:
        os.environ |= {
            "EFFIMINI_STORE": f"{folder}/store",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",  # the plain loop forks its workers
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # torch's deterministic mode asks for it
        }
        worker = Worker(Path(folder))
        words, gpu = worker.device
        name = chosen.size or ("full" if gpu else "small")
        for check in chosen.checks:
            left = TOTAL - GRACE - (time.monotonic() - start)
            if CHECKS[check].gpu and not gpu:
                found = iter([Row(check, "", "", f"{SKIPPED}there is no GPU")])
            elif left <= 0:
                found = iter([Row(check, "", "", f"{SKIPPED}no time is left of {TOTAL:.0f} s")])
            else:
                found = worker.rows(check, SIZES[name], min(CHECKS[check].seconds * (1 if gpu else BUSY), left))
            for row in found:
                rows.append(row)
                print(*filter(None, row[:4]), sep=", ", file=sys.stderr, flush=True)
        worker.stop()
    seconds = time.monotonic() - start
    text = f"{words}; size {name}, {os.cpu_count()} cores, {seconds:.0f} s.\n\n{table(rows)}\n"
    (chosen.out / "table.md").write_text(text)
    (chosen.out / "results.json").write_text(json.dumps([row._asdict() for row in rows], indent=1))
    print(text)
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
