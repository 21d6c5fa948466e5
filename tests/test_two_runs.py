"""Two runs of one stage at the same time: the second waits for the first, and the results are whole."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.warm import Warm

ROOT = Path(__file__).parent.parent
OUTPUTS = {
    "download Demo_Toys": "data/raw/Demo_Toys",
    "join Demo_Toys": "data/items/Demo_Toys",
    "groups": "data/groups",
    "sample Demo_Toys": "data/sample/Demo_Toys",
    "fetch Demo_Toys": "data/images/Demo_Toys",
    "decontaminate": "data/exclusions",
    "shard Demo_Toys": "data/shards/Demo_Toys",
}
STAGES = OUTPUTS | {"validate sample": "results/validation/sample"}

QUICK = {"sample Demo_Toys", "fetch Demo_Toys"}


def start(stage: str, folder: Path, *program: str | Path) -> subprocess.Popen[str]:
    """Start a stage in a folder, with `effimini` or another program that has its arguments."""
    params = folder / "params.yaml"
    if not params.exists():
        demo = (ROOT / "params.yaml").read_text()
        params.write_text(demo.replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[Demo_Toys]"))
    command = [*(program or (sys.executable, "-m", "effimini.cli")), *stage.split(), "--params", str(params)]
    env = os.environ | {"EFFIMINI_STORE": str(folder / "store")}
    return subprocess.Popen(
        [*command, "--data", str(folder / "data")],
        cwd=ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background ignores it, and programs inherit that
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def link_earlier(stages: dict[str, str], stage: str, made: Path, folder: Path) -> Path:
    """Link the outputs of the stages before `stage` into a folder; return the path of its own output there."""
    for output in list(stages.values())[: list(stages).index(stage)]:
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        (folder / output).symlink_to(made / output)
    return folder / stages[stage]


def is_held(out: Path) -> bool:
    """Return whether a run holds the lock of its output, and has written its name there."""
    try:
        return out.with_name(f".{out.name}.lock").stat().st_size > 0
    except FileNotFoundError:
        return False


def stopped_while_writing(stage: str, folder: Path, out: Path) -> subprocess.Popen[str]:
    """Start a stage, and return its process, paused while it writes `out`."""
    for _ in range(5):  # it may end before it is seen
        process = start(stage, folder)
        while process.poll() is None:
            if is_held(out):
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                if is_held(out):
                    return process
                process.send_signal(signal.SIGCONT)
            time.sleep(0.001)
        process.communicate()
    raise AssertionError(f"{stage} was never seen writing")


def waiting(stage: str, folder: Path, first: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Start a stage, and return its process when it has said that it waits for `first`."""
    second = start(stage, folder)
    assert second.stderr is not None
    said = f" is in use by another run (process {first.pid} on {socket.gethostname()}); waiting for it to end\n"
    lines = []
    for line in second.stderr:
        lines.append(line)
        if line.endswith(said):
            break
    assert lines, "it ended without a word"
    assert lines[-1].endswith(said), lines
    time.sleep(0.2)
    assert second.poll() is None
    return second


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """A folder in which every stage ran once, alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for stage in STAGES:
        _, log = (process := start(stage, folder, warm.bin / "effimini")).communicate()
        assert process.returncode == 0, log
    return folder


@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]
)
def test_the_second_run_of_a_stage_waits_for_the_first(
    tmp_path: Path, undisturbed: Path, digests: Callable[[Path], dict[str, str]], stage: str
) -> None:
    out = link_earlier(STAGES, stage, undisturbed, tmp_path)
    first = stopped_while_writing(stage, tmp_path, out)
    second = waiting(stage, tmp_path, first)
    first.send_signal(signal.SIGCONT)
    for process in (first, second):
        _, log = process.communicate(timeout=120)
        assert process.returncode == 0, log
    written = "data/gates" if stage.startswith("validate") else STAGES[stage]
    assert digests(tmp_path / written) == digests(undisturbed / written)
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_waits_goes_on_when_the_other_is_killed(
    tmp_path: Path, undisturbed: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    (tmp_path / "data/items").mkdir(parents=True)
    for folder in ("data/items/Demo_Toys", "data/groups"):
        (tmp_path / folder).symlink_to(undisturbed / folder)
    out = tmp_path / "data/sample/Demo_Toys"
    first = stopped_while_writing("sample Demo_Toys", tmp_path, out)
    second = waiting("sample Demo_Toys", tmp_path, first)
    first.kill()
    first.communicate()
    _, log = second.communicate(timeout=120)
    assert second.returncode == 0, log
    assert digests(out) == digests(undisturbed / "data/sample/Demo_Toys")
    assert [path.name for path in out.parent.iterdir()] == ["Demo_Toys"]


def test_runs_in_a_folder_with_two_names_wait_for_each_other(tmp_path: Path, undisturbed: Path) -> None:
    (tmp_path / "real/data").mkdir(parents=True)
    (tmp_path / "other").symlink_to(tmp_path / "real")
    (tmp_path / "real/data/items").symlink_to(undisturbed / "data/items")
    first = stopped_while_writing("groups", tmp_path / "real", tmp_path / "real/data/groups")
    second = waiting("groups", tmp_path / "other", first)
    first.send_signal(signal.SIGCONT)
    assert [first.wait(60), second.wait(60)] == [0, 0]
