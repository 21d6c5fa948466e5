"""Every stage, a training and the shard cache on a file system without hard links, locks and flushes of folders."""

import dataclasses
import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.core.params import Limits, Params

from .conftest import ROOT, replace


@pytest.fixture(scope="module")
def tiny(small: Params) -> Params:
    """Parameters of a run of every stage on 80 demo items."""
    params = replace(
        small,
        source={"categories": ("Demo_Toys",), "demo": dataclasses.replace(small.source.demo, items=80)},
        download={"max_bad_fraction": 0.1},
        images={"max_bad_fraction": 0.5},
        train={"epochs": 1, "save_every_steps": 2},
    )
    lenient = Limits(warn_above=1.0, fail_above=1.0)
    limits = dict.fromkeys(("near_duplicate_fraction", "drift", "mode_fraction", "long_text_fraction"), lenient)
    return replace(params, validation=limits)


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that takes away what a file system may lack."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler on the path to build the file system's faults with")
    library = tmp_path_factory.mktemp("library") / "poor.so"
    source = ROOT / "tests/poor_file_system.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def every_stage(params: Params, folder: Path, **environment: str) -> str:
    """Run every stage in a folder in a process of its own; return its log."""
    folder.mkdir()
    given = folder / "params.pickle"
    given.write_bytes(pickle.dumps(params))
    env = os.environ | {"EFFIMINI_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-m", "tests.effimini.every_stage", str(given), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def undisturbed(tiny: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage ran on a complete file system."""
    folder = tmp_path_factory.mktemp("complete") / "run"
    log = every_stage(tiny, folder)
    assert "has no locks" not in log
    return folder


@pytest.mark.parametrize("code", [errno.EPERM, pytest.param(errno.ENOTSUP, marks=pytest.mark.slow)])
def test_every_stage_works_without_links_and_locks(
    tmp_path: Path, tiny: Params, undisturbed: Path, poor: Path, digests: Callable[[Path], dict[str, str]], code: int
) -> None:
    run = tmp_path / "run"
    log = every_stage(tiny, run, LD_PRELOAD=str(poor), POOR_FOLDER=str(run), POOR_ERRNO=str(code))
    assert log.count(f"has no locks ({os.strerror(code)})") == 1
    for folder in ("data", "models"):
        assert digests(run / folder) == digests(undisturbed / folder)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_lock_is_replaced_by_one_on_this_machine(tmp_path: Path, poor: Path, code: int) -> None:
    """Two processes on a file system without locks still wait for each other."""
    script = (
        "import sys; from pathlib import Path; from prep.core import files\n"
        "with files.atomic_folder(Path(sys.argv[1])) as out: print('writing', flush=True); input(); (out / 'a').touch()"
    )
    env = os.environ | {
        "LD_PRELOAD": str(poor), "POOR_FOLDER": str(tmp_path), "POOR_ERRNO": str(code), "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as first:
        assert first.stdout.readline() == "writing\n"
        with subprocess.Popen(command, env=env, **pipes) as second:
            assert f"has no locks ({os.strerror(code)})" in second.stderr.readline()
            assert f"in use by another run (process {first.pid} on " in second.stderr.readline()
            first.communicate("go\n")
            second.communicate("go\n")
    assert (first.returncode, second.returncode) == (0, 0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
