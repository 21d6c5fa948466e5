"""The messages of a stage: the same with every scheduler, and one error for a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOYS = "Demo_Toys"
NEEDS = {
    f"join {TOYS}": ("raw/Demo_Toys has 0 buckets of items", f"download@{TOYS}"),
    "groups": ("items/Demo_Kitchen has 0 buckets of items", "join@Demo_Kitchen"),
    f"sample {TOYS}": ("items/Demo_Toys has 0 buckets of items", f"join@{TOYS}"),
    f"fetch {TOYS}": ("sample/Demo_Toys has no part files", f"sample@{TOYS}"),
    "decontaminate": ("sample/Demo_Kitchen has no part files", "sample@Demo_Kitchen"),
    f"shard {TOYS}": ("sample/Demo_Toys has no part files", f"sample@{TOYS}"),
    "weights": ("sample/Demo_Kitchen has no part files", "sample@Demo_Kitchen"),
}


def run(stage: str, folder: Path, scheduler: str = "synchronous") -> subprocess.CompletedProcess[str]:
    params = folder / "params.yaml"
    text = (ROOT / "params.yaml").read_text().replace("scheduler: synchronous", f"scheduler: {scheduler}")
    params.write_text(text)
    command = [sys.executable, "-m", "effimini.cli", *stage.split(), "--params", str(params)]
    env = os.environ | {"EFFIMINI_STORE": str(folder / "store")}
    return subprocess.run(
        [*command, "--data", str(folder / "data")], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("stage", NEEDS)
def test_a_stage_without_its_upstream_stage_names_the_one_to_run(stage: str, tmp_path: Path) -> None:
    lacks, before = NEEDS[stage]
    ended = run(stage, tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("effimini: ")
    assert ended.stderr.count("\n") == 1
    assert lacks in ended.stderr
    assert f"run `dvc repro {before}`" in ended.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_logs_nothing_between_the_messages_of_a_stage(scheduler: str, tmp_path: Path) -> None:
    runs = [run(f"{stage} {TOYS}", tmp_path, scheduler) for stage in ("download", "join")]
    for stage, ended in zip(("download", "join"), runs, strict=True):
        assert ended.returncode == 0
        lines = (ended.stdout + ended.stderr).splitlines()
        assert len(lines) == 2
        assert all(line.startswith(f"{stage} {TOYS} ") for line in lines)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_an_error_in_a_worker_is_reported_once(scheduler: str, tmp_path: Path) -> None:
    sample = tmp_path / "data/sample" / TOYS
    sample.mkdir(parents=True)
    for part in ("test", "train-00"):
        (sample / f"{part}.parquet").touch()
    ended = run(f"shard {TOYS}", tmp_path, scheduler)
    assert ended.returncode == 2
    images = tmp_path / "data/images" / TOYS / "test.parquet"
    assert ended.stderr == f"effimini: {images} does not exist; run `dvc repro fetch`\n"
