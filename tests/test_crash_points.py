"""After a crash at any moment, and the loss of what was not flushed, the next run ends as an undisturbed one.

`make test` tries some of the disks that a crash may leave, `make crash-points` all of them: see `tests.crash_points`.
"""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from prep.core.params import Limits, Params
from tests.effimini.conftest import ROOT, replace, small, small_text
from tests.preload import built

__all__ = ["small", "small_text"]
MOST = int(os.environ.get("CRASH_POINTS", "3"))  # points of each stage; 0: all
QUICK = ["fetch", "shard", "weights", "train", "remote shards", "raw file without a sha256"]
STAGES = (  # those first that take long
    *("train", "train on features", "evaluate", "fetch in threads", "decontaminate", "validate sample", "sample"),
    *("download", "join", "groups", "fetch", "shard", "weights", "remote shards", "raw file"),
    *("raw file without a sha256", "remove", "gc"),
)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that records changes of files."""
    return built(ROOT / "tests/crash_points.c", tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="session")
def tiny(small: Params) -> Params:
    """Parameters of a run that writes few files."""
    lenient = Limits(warn_above=1.0, fail_above=1.0)
    limits = ("near_duplicate_fraction", "drift", "mode_fraction", "long_text_fraction")
    return replace(
        small,
        source={"categories": ("Demo_Toys",), "demo": dataclasses.replace(small.source.demo, items=60)},
        download={"max_bad_fraction": 0.1, "buckets": 2},
        sample={"bands": 4, "fraction": 0.5},
        images={"max_bad_fraction": 0.5},
        decontaminate={"reasons": ("same_picture", "same_product_title")},
        train={"epochs": 2, "batch_size": 8, "save_every_steps": 2},
        validation=dict.fromkeys(limits, lenient),
    )


@pytest.mark.timeout(600 if MOST else 0)
@pytest.mark.parametrize("stages", [QUICK] if MOST else [[stage] for stage in STAGES], ids=" and ".join)
def test_after_every_crash_the_next_run_ends_as_an_undisturbed_one(
    tmp_path: Path, library: Path, tiny: Params, stages: list[str]
) -> None:
    given = tmp_path / "params.pickle"
    given.write_bytes(pickle.dumps(tiny))
    env = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.crash_points", str(given), str(tmp_path), str(MOST), *stages]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for each in found:
        print("{stage}: {operations} operations, {disks} disks, {runs} runs".format_map(each))  # noqa: T201 -- for -rP
    assert {each["stage"]: each["failed"] for each in found} == {stage: [] for stage in stages}
