"""Open files: at a low limit, and with any number of threads and processes, no command runs out of descriptors."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prep.core import open_files
from tests.shards.host import Host
from tests.shards.made import make_shards

ROOT = Path(__file__).parents[2]
SHARDS = 130  # of each category, so that more are read than are mapped at once
READ = """
import json, os, sys
from shards.loader import Loader
from shards.stream import ShardDataset
where, workers, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
most = 0
train = Loader(ShardDataset(where, ["One", "Two"], "train"), batch_size=batch, seed=1, workers=workers)
for epoch in range(2):
    for step, _ in enumerate(train):
        if step % 5 == 0:  # validation beside it
            held_out = ShardDataset(where, ["One", "Two"], "validation")
            for _ in Loader(held_out, batch_size=batch, seed=None, workers=workers):
                most = max(most, len(os.listdir("/proc/self/fd")))
        most = max(most, len(os.listdir("/proc/self/fd")))
print(json.dumps(most))
"""
PROCESSES = """
import json, os, sys
from torch.utils.data import DataLoader
from shards.stream import ShardDataset
def count(samples):
    return len(os.listdir("/proc/self/fd"))
dataset = ShardDataset(sys.argv[1], ["One", "Two"], "train")
batches = DataLoader(dataset, batch_size=int(sys.argv[3]), shuffle=True, num_workers=int(sys.argv[2]), collate_fn=count)
print(json.dumps(max(found for _ in range(2) for found in batches)))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for category in ("One", "Two"):
        make_shards(folder, {"train": [2] * SHARDS, "validation": [1] * SHARDS}, category)
    return folder


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(script: str, limit: int, *words: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300, preexec_fn=limited(limit, limit),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("workers", [0, *(pytest.param(workers, marks=pytest.mark.slow) for workers in (1, 8))])
def test_threads_that_read_many_shards_keep_none_open(made: Path, workers: int) -> None:
    assert run(READ, 256, made, workers, 64) < 64


@pytest.mark.slow
def test_processes_that_read_many_shards_keep_none_open(made: Path) -> None:
    assert run(PROCESSES, 256, made, 4, 16) < 64


def test_remote_shards_are_read_at_a_low_limit(made: Path) -> None:
    with Host() as host:
        host.files = {f"/{path.relative_to(made)}": path.read_bytes() for path in made.rglob("*") if path.is_file()}
        assert run(READ, 256, host.url, 8, 64) < 128


def test_the_limit_is_raised_as_far_as_allowed() -> None:
    script = (
        "import json, resource; from prep.core import open_files; open_files.raise_limit();"
        "print(json.dumps([*resource.getrlimit(resource.RLIMIT_NOFILE), open_files.limit()]))"
    )
    for soft, hard in ((256, 256), (64, 1024)):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT,
            preexec_fn=limited(soft, hard),
        )  # fmt: skip
        assert json.loads(done.stdout) == [hard, hard, hard]
    assert open_files.limit() > 0
