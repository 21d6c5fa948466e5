"""Training, evaluation and every stage on file systems that lack something, and on full disks."""

import dataclasses
import errno
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from prep.core.params import Limits, Params
from tests.preload import built

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
    return built(ROOT / "tests/poor_file_system.c", tmp_path_factory.mktemp("library"))


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


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
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


COMMANDS = {
    "train": "checkpoint cannot be written to .*File too large",
    "evaluate": "cannot be read or written .File too large",
    "predict --model models/best --input items.csv --images . --output out.csv": "cannot be read or written",
    "export --model models/best --output onnx": "cannot be read or written .File too large",
    "preview": "cannot be read or written .File too large",
}
QUICK = {"train", "preview"}
ITEMS = "parent_asin,main_category,title,features,description,image_paths\n" + "".join(
    f"{name},Toys,a sturdy toy,[],[],\n" for name in "ABCDEFGH"
)


def command(words: str, params: Params, folder: Path, before: str = "", limit: int = 0) -> tuple[int, str]:
    """Run a command in a folder; return its exit code and its log."""
    (folder / "params.yaml").write_bytes(msgspec.json.encode(params))
    (folder / "items.csv").write_text(ITEMS)
    line = [sys.executable, "-m", "effimini.cli", *words.split()]
    if before:
        line = ["unshare", "--mount", "sh", "-ec", f'{before}; exec "$@"', "sh", *line]
    env = os.environ | {"EFFIMINI_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    limits = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) if limit else None
    done = subprocess.run(line, cwd=folder, env=env, preexec_fn=limits, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words", [words if words in QUICK else pytest.param(words, marks=pytest.mark.slow) for words in COMMANDS]
)
def test_a_command_that_cannot_write_says_so(tmp_path: Path, tiny: Params, undisturbed: Path, words: str) -> None:
    if words.startswith("export"):
        pytest.importorskip("onnxruntime")
    shutil.copytree(undisturbed, tmp_path / "run")
    code, log = command(words, tiny, tmp_path / "run", limit=60)
    assert (code, log.count("Traceback"), log.count("effimini: ")) == (2, 0, 1), log
    assert re.search(COMMANDS[words], log), log
    code, log = command(words, tiny, tmp_path / "run")
    assert code == 0, log


@pytest.mark.slow
def test_frozen_features_that_do_not_fit_on_the_disk_are_one_sentence(
    tmp_path: Path, tiny: Params, undisturbed: Path
) -> None:
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode:
        pytest.skip("this user may not mount a file system")
    shutil.copytree(undisturbed, tmp_path / "run")
    frozen = replace(tiny, train={"freeze_encoders": True})
    full = f"mkdir -p {tmp_path}/run/store/features; mount -t tmpfs -o size=8k none {tmp_path}/run/store/features"
    code, log = command("train", frozen, tmp_path / "run", before=full)
    assert (code, log.count("Traceback")) == (2, 0), log
    assert "(No space left on device); free disk space, or set EFFIMINI_STORE" in log
