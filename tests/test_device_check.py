"""`make device-check`: its table has a figure or a reason in every row, whatever the machine has."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import device_check
from benchmarks.device_check import CHECKS, SIZES, SKIPPED, Row
from tests.clone import ROOT

# What the process that runs checks imports instead of torch and the real checks, which take seconds.
TORCH = """
__version__ = "0"
class cuda:
    is_available = staticmethod(lambda: GPU)
    get_device_name = staticmethod(lambda: "a device")
"""
OURS = "benchmarks.no_module_of_ours"
STUBS = f"""
import os, time
from benchmarks.device_check import Row
def matrix_products(*_): yield Row("matrix_products", "", "rate", "1")
def precision(*_): import package_that_is_not_there
def resume(*_): yield Row("resume", "", "weights", "other bytes", failed=True)
def training(*_): yield Row("training", "", "rate", "2"); os._exit(3)
def readers(*_): yield Row("readers", "", "rate", "3"); time.sleep(600)
def two_processes(*_): import {OURS}
def onnx(*_): raise ValueError("a | b")
def launches(_, __, deadline): yield Row("launches", "", "seconds left", f"{{deadline - time.monotonic():.0f}}")
"""


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stubs first on the path of processes that are spawned; return a folder."""
    (tmp_path / "stubs/benchmarks").mkdir(parents=True)
    (tmp_path / "stubs/torch.py").write_text(TORCH.replace("GPU", "True"))
    (tmp_path / "stubs/benchmarks/device_checks.py").write_text(STUBS)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "stubs"), str(ROOT), *sys.path])
    return tmp_path


def main(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> tuple[int, list[Row]]:
    """Run the program; return its exit code and the rows."""
    monkeypatch.setattr(sys, "argv", ["device_check", "--out", str(out), *words])
    code = device_check.main()
    return code, [Row(**row) for row in json.loads((out / "results.json").read_text())]


def test_a_check_that_hangs_crashes_or_lacks_a_package_costs_only_its_own_rows(
    stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_check, "GRACE", 0.0)
    monkeypatch.setitem(CHECKS, "readers", CHECKS["readers"]._replace(seconds=0.2))
    names = [name for name in CHECKS if name != "cuda_tests"]
    code, rows = main(monkeypatch, stubs / "out", "--checks", *names)
    assert [tuple(row) for row in rows] == [
        ("matrix_products", "", "rate", "1", "", False),
        ("precision", "", "", f"{SKIPPED}package_that_is_not_there is not installed", "", False),
        ("resume", "", "weights", "other bytes", "", True),
        ("training", "", "rate", "2", "", False),
        ("training", "", "", "failed: its process ended with code 3", "", True),
        ("readers", "", "rate", "3", "", False),
        ("readers", "", "", f"{SKIPPED}stopped after its limit of 0 s", "", False),
        ("two_processes", "", "", f"failed: ModuleNotFoundError: No module named '{OURS}'", "", True),
        ("onnx", "", "", "failed: ValueError: a | b", "", True),
        ("launches", "", "seconds left", "150", "", False),
    ]  # fmt: skip
    assert code == 1
    head, _, *lines = (stubs / "out/table.md").read_text().splitlines()
    assert head.startswith("a device, torch 0, Python ")
    assert "; size full, " in head
    assert {line.count("|") for line in lines} == {6}


@pytest.mark.parametrize(("check", "expected"), [("matrix_products", 0), ("precision", 0), ("resume", 1)])
def test_the_exit_code_tells_of_an_equality_that_fails(
    stubs: Path, monkeypatch: pytest.MonkeyPatch, check: str, expected: int
) -> None:
    code, _ = main(monkeypatch, stubs / "out", "--checks", check)
    assert code == expected


def test_nothing_is_started_when_the_time_is_over(stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "TOTAL", 0.0)
    code, rows = main(monkeypatch, stubs / "out", "--checks", "resume")
    assert (code, [row.value for row in rows]) == (0, [f"{SKIPPED}no time is left of 0 s"])


def test_what_needs_a_gpu_is_skipped_without_one(stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stubs / "stubs/torch.py").write_text(TORCH.replace("GPU", "False"))
    code, rows = main(monkeypatch, stubs / "out", "--checks", "launches", "cuda_tests")
    assert (code, {row.value for row in rows}) == (0, {f"{SKIPPED}there is no GPU"})
    assert "; size small, " in (stubs / "out/table.md").read_text()


def test_the_tests_that_need_a_gpu_are_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_check, "CUDA_TESTS", str(tmp_path / "test_one.py"))
    for body, value, failed in (
        ("pass", "1 passed", False),
        ("import package_that_is_not_there", f"{SKIPPED}package_that_is_not_there is not installed", False),
    ):
        text = f"import pytest\n@pytest.mark.cuda\ndef test_it() -> None:\n    {body}\ndef test_other(): assert 0\n"
        (tmp_path / "test_one.py").write_text(text)
        row = device_check.cuda_tests(60)
        assert (row.value.startswith(value), row.failed) == (True, failed), row
    assert device_check.cuda_tests(0.01).value == f"{SKIPPED}stopped after its limit of 0 s"
    assert (ROOT / "tests/test_cuda.py").exists()


def test_without_torch_it_ends_with_one_sentence(stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stubs / "stubs/torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')")
    with pytest.raises(SystemExit, match="device_check: torch cannot be imported"):
        main(monkeypatch, stubs / "out")


@pytest.mark.slow
def test_every_row_has_a_figure_or_a_reason(tmp_path: Path) -> None:
    words = ["make", "device-check", "SIZE=tiny", f"OUT={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "without a GPU" not in done.stdout:
        pytest.skip("there is a GPU; run `make device-check`")
    rows = [Row(**row) for row in json.loads((tmp_path / "results.json").read_text())]
    assert (tmp_path / "table.md").read_text() in done.stdout
    assert list(dict.fromkeys(row.check for row in rows)) == list(CHECKS)
    for row in rows:
        reason = row.value.startswith(SKIPPED) and len(row.value) > len(SKIPPED)
        assert reason or (row.measured and any(char.isdigit() for char in row.value)), row
        assert not row.failed, row
    skipped = {row.check for row in rows if row.value == f"{SKIPPED}there is no GPU" and not row.measured}
    assert skipped == {name for name, check in CHECKS.items() if check.gpu}
    assert [row.value[:5] for row in rows if row.check == "resume"] == ["equal"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "table.md"}


@pytest.mark.slow
def test_a_training_that_does_not_resume_exactly_and_another_mathematics_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import device_checks, device_sides

    monkeypatch.setattr(device_checks, "PRECISIONS", ("fp32",))
    seeds = iter(range(10**6))
    monkeypatch.setattr("effimini.train.seed_of", lambda *_: next(seeds))  # dropout that the step does not decide
    (row,) = device_checks.resume(SIZES["tiny"], tmp_path, 0.0)
    assert (row.failed, row.value[:11]) == (True, "other bytes")
    step = device_sides.Plain.step
    monkeypatch.setattr(device_sides.Plain, "step", lambda *given: tuple(1.001 * value for value in step(*given)))
    rows = list(device_checks.precision(SIZES["tiny"], tmp_path, time.monotonic() + 60))
    assert [row.failed for row in rows] == [True, False]  # 0.001 is over the limit of the loss alone
