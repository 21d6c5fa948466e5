"""Promise 7: a stage killed in the middle leaves nothing under a name, and the next run has the undisturbed bytes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prep.params import load

ROOT = Path(__file__).parent.parent
STAGES = {
    "download Demo_Toys": "raw/Demo_Toys",
    "join Demo_Toys": "items/Demo_Toys",
    "groups": "groups",
    "sample Demo_Toys": "sample/Demo_Toys",
    "fetch Demo_Toys": "images/Demo_Toys",
    "shard Demo_Toys": "shards/Demo_Toys",
}


def start(stage: str, data: Path, params: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"EFFIMINI_STORE": str(data / "store")}
    command = [sys.executable, "-m", "effimini.cli", *stage.split(), "--params", str(params), "--data", str(data)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed_while_writing(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Kill the process as soon as it has begun to write `out`; tell whether it was still running."""
    while process.poll() is None:
        if any(out.parent.glob(f".{out.name}*.partial")):
            process.kill()
            return process.wait() != 0
        time.sleep(0.001)
    return False


def test_a_killed_stage_shows_nothing_and_the_next_run_has_the_undisturbed_bytes(
    tmp_path: Path, digests: Callable[[Path], dict[str, str]]
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
            assert start(stage, data, params).wait() == 0
        assert digests(disturbed / out) == digests(tmp_path / "undisturbed" / out)
    assert kills >= 4  # a stage may be done before it is seen to write
    leftovers = [path for path in (tmp_path / "disturbed").rglob("*.partial") if "store" not in path.parts]
    assert leftovers == []


def test_a_kill_keeps_the_old_table_whole(
    tmp_path: Path, run_to: Callable[..., None], digests: Callable[[Path], dict[str, str]]
) -> None:
    stage = "sample Demo_Toys"
    data, out = tmp_path / "data", tmp_path / "data" / STAGES[stage]
    run_to(load(ROOT / "params.yaml"), data, "sample")
    before = digests(out)
    assert killed_while_writing(start(stage, data, ROOT / "params.yaml"), out)
    assert digests(out) == before
