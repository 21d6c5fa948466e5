"""Ctrl-C and SIGTERM in a stage: nothing is left half-written, and one line says what is kept."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_two_runs import QUICK, STAGES, link_earlier, start, stopped_while_writing, undisturbed

__all__ = ["undisturbed"]
KEPT = {
    "download": "the bytes of raw files in the local store (source.keep_raw) and earlier tables",
    "fetch": "all fetched images",
    "shard": "the tars in the local store and earlier shards",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("scheduler", ["synchronous", pytest.param("processes", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]
)
def test_a_stage_that_is_stopped_leaves_nothing_half_written(
    tmp_path: Path,
    undisturbed: Path,
    digests: Callable[[Path], dict[str, str]],
    stage: str,
    scheduler: str,
    number: signal.Signals,
) -> None:
    text = (undisturbed / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(re.sub("scheduler: synchronous", f"scheduler: {scheduler}", text))
    out = link_earlier(STAGES, stage, undisturbed, tmp_path)
    process = stopped_while_writing(stage, tmp_path, out)
    before_stop = digests(out) if out.is_dir() else {}
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, log = process.communicate(timeout=120)
    kept = KEPT.get(stage.split(maxsplit=1)[0], "finished outputs and the local store")
    said = f"effimini: stopped; {kept} are kept, run the same command to go on"
    assert (process.returncode, log.splitlines()[-1]) == (128 + signal.SIGINT, said), log
    assert "Traceback" not in log
    assert (digests(out) if out.is_dir() else {}) == before_stop
    assert [path for path in tmp_path.rglob(".*") if path.suffix in {".partial", ".lock"}] == []
    process = start(stage, tmp_path)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    written = "data/gates" if stage.startswith("validate") else STAGES[stage]
    assert digests(tmp_path / written) == digests(undisturbed / written)
