"""The SLURM recipe: `runs/slurm.sh`, with an `srun` that starts its tasks on this machine."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clone import SMALL, commit_project

TABLES = ("raw", "items", "groups", "sample")
SRUN = """#!/bin/bash
for task in $(seq "$SLURM_NTASKS"); do "$@" & done
wait
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_recipe_gives_the_same_bytes_and_leaves_no_process(
    tmp_path: Path, digests: Callable[[Path], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = commit_project(tmp_path / "one", SMALL | {"dask.scheduler": ".dask/scheduler.json"})
    refused = clone.run("effimini", "download", "Demo_Toys", check=False)
    assert refused.returncode == 2
    assert "dask.scheduler .dask/scheduler.json does not exist; start `dask scheduler" in refused.stderr

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)
    for name, value in (("SLURM_NTASKS", "2"), ("SLURM_CPUS_PER_TASK", "1")):
        monkeypatch.setenv(name, value)
    here = clone.run("sh", "-c", f"PATH={tmp_path / 'bin'}:$PATH exec bash runs/slurm.sh -q sample", check=False)
    log = clone.folder / ".dask/workers.log"
    assert here.returncode == 0, here.stderr + (log.read_text() if log.exists() else "")
    assert not log.parent.exists()
    assert clone.run("pgrep", "-f", str(clone.folder), check=False).stdout == ""
    of_cluster = {table: digests(clone.folder / "data" / table) for table in TABLES}

    params = clone.folder / "params.yaml"
    params.write_text(re.sub(r"scheduler: \S+", "scheduler: synchronous", params.read_text()))
    for table in TABLES:
        shutil.rmtree(clone.folder / "data" / table)
    for stage in ("download Demo_Toys", "join Demo_Toys", "groups", "sample Demo_Toys"):
        clone.run("effimini", *stage.split())
    assert {table: digests(clone.folder / "data" / table) for table in TABLES} == of_cluster
    assert all(map(len, of_cluster.values()))
