"""A killed stage leaves no partial output, and the next run gives the same bytes as an undisturbed one."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from prep.core.params import load_params
from tests.warm import Warm

ROOT = Path(__file__).parent.parent
STAGES = {
    "download Demo_Toys": "raw/Demo_Toys",
    "join Demo_Toys": "items/Demo_Toys",
    "groups": "groups",
    "sample Demo_Toys": "sample/Demo_Toys",
    "fetch Demo_Toys": "images/Demo_Toys",
    "decontaminate": "exclusions",
    "shard Demo_Toys": "shards/Demo_Toys",
}


def start(stage: str, data: Path, params: Path, *program: str | Path) -> subprocess.Popen[bytes]:
    """Start a stage, with `effimini` or another program that has its arguments."""
    env = os.environ | {"EFFIMINI_STORE": str(data / "store")}
    program = program or (sys.executable, "-m", "effimini.cli")
    command = [*program, *stage.split(), "--params", str(params), "--data", str(data)]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def killed_while_writing(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Kill the process as soon as it starts to write `out`; return whether it was still running."""
    while process.poll() is None:
        if any(out.parent.glob(f".{out.name}*.partial")):
            process.kill()
            return process.wait() != 0
        time.sleep(0.001)
    return False


def test_a_killed_stage_leaves_no_output_and_the_next_run_gives_the_same_bytes(
    tmp_path: Path, warm: Warm, digests: Callable[[Path], dict[str, str]]
) -> None:
    params = tmp_path / "params.yaml"
    demo = (ROOT / "params.yaml").read_text()
    params.write_text(demo.replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[Demo_Toys]"))
    kills = 0
    for stage, out in STAGES.items():
        disturbed = tmp_path / "disturbed"
        if killed_while_writing(start(stage, disturbed, params), disturbed / out):
            kills += 1
            assert not (disturbed / out).exists()
        for data in (tmp_path / "undisturbed", disturbed):
            assert start(stage, data, params, warm.bin / "effimini").wait() == 0
        assert digests(disturbed / out) == digests(tmp_path / "undisturbed" / out)
    assert kills >= 4  # a stage may end before it is seen writing
    leftovers = [path for path in (tmp_path / "disturbed").rglob("*.partial") if "store" not in path.parts]
    assert leftovers == []


def test_no_dask_worker_outlives_a_killed_stage(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    demo = (ROOT / "params.yaml").read_text().replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[Demo_Toys]")
    params.write_text(re.sub(r"scheduler: \w+", "scheduler: processes", demo))
    stage = start("download Demo_Toys", tmp_path / "data", params)
    process, workers = psutil.Process(stage.pid), set[psutil.Process]()
    while stage.poll() is None and not (workers and any((tmp_path / "data/raw").glob(".*.partial"))):
        workers |= set(process.children(recursive=True))
        time.sleep(0.001)
    stage.kill()
    assert stage.wait() == -signal.SIGKILL
    assert workers
    assert psutil.wait_procs(list(workers), timeout=30)[1] == []


def test_a_kill_keeps_the_old_table(
    tmp_path: Path, run_to: Callable[..., None], digests: Callable[[Path], dict[str, str]]
) -> None:
    stage = "sample Demo_Toys"
    data, out = tmp_path / "data", tmp_path / "data" / STAGES[stage]
    run_to(load_params(ROOT / "params.yaml"), data, "sample")
    before = digests(out)
    assert killed_while_writing(start(stage, data, ROOT / "params.yaml"), out)
    assert digests(out) == before


def seen_writing(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Wait until the process starts to write `out`; return whether it did before it ended."""
    while process.poll() is None:
        if any(out.parent.glob(f".{out.name}*.partial")):
            return True
        time.sleep(0.001)
    return False


def killed(process: subprocess.Popen[bytes], group: bool) -> bool:
    """Kill the process, or its whole group; return whether it still ran. Check that no child process survives."""
    if process.poll() is not None:
        return False
    started = psutil.Process(process.pid).children(recursive=True)
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_at_random_moments_gives_the_same_bytes_in_the_end(
    tmp_path: Path, digests: Callable[[Path], dict[str, str]], stage: str, scheduler: str
) -> None:
    plain, params = tmp_path / "plain.yaml", tmp_path / "params.yaml"
    plain.write_text(
        (ROOT / "params.yaml").read_text().replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[Demo_Toys]")
    )
    params.write_text(plain.read_text().replace("scheduler: synchronous", f"scheduler: {scheduler}"))
    data, out = tmp_path / "data", tmp_path / "data" / STAGES[stage]
    for before in list(STAGES)[: list(STAGES).index(stage)]:
        assert start(before, data, plain).wait() == 0
    process = start(stage, data, params)
    seen, begin = seen_writing(process, out), time.monotonic()
    assert process.wait() == 0
    duration = time.monotonic() - begin if seen else 0.0  # from the start of writing to the end
    whole = digests(out)
    moments = random.Random(f"{stage} {scheduler}")
    kills = 0
    for attempt in range(40):
        process = start(stage, data, params)
        if attempt % 4:  # one in four at any time, even before it has read its parameters
            seen_writing(process, out)
        time.sleep(moments.uniform(0, duration))
        kills += killed(process, group=attempt % 2 == 0)
        assert digests(out) in ({}, whole)
        if kills == 4:
            break
        if attempt % 3 == 2:  # also without an old table
            shutil.rmtree(out, ignore_errors=True)
    assert kills == 4
    assert start(stage, data, params).wait() == 0
    assert digests(out) == whole
    assert [path for path in data.rglob("*.partial") if "store" not in path.parts] == []
