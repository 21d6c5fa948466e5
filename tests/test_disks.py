"""Full and read-only disks: one sentence, exit code 2, nothing lost, and the next run goes on."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from shards.images.journal import Journal
from tests.test_two_runs import OUTPUTS, link_earlier
from tests.warm import Warm

ROOT = Path(__file__).parent.parent
STAGES = OUTPUTS | {"weights": "data/weights.json", "validate sample": "data/gates/sample"}
QUICK = {"sample Demo_Toys", "fetch Demo_Toys"}
OF_STAGES = [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]


def run(
    stage: str,
    folder: Path,
    scheduler: str = "synchronous",
    before: str = "",
    limit: int | None = None,
    program: Sequence[str | Path] = (sys.executable, "-m", "effimini.cli"),
) -> subprocess.CompletedProcess[str]:
    """Run a stage in a folder.

    Args:
        stage: the command.
        folder: the folder of data and store.
        scheduler: of Dask.
        before: a shell command to run before, in a mount namespace of its own.
        limit: the largest file that it may write, bytes.
        program: `effimini`, or another program that has its arguments.
    """
    text = (ROOT / "params.yaml").read_text().replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[Demo_Toys]")
    text = text.replace("effimini/minilm", str(ROOT / "effimini/minilm"))
    (folder / "params.yaml").write_text(text.replace("scheduler: synchronous", f"scheduler: {scheduler}"))
    command = [*program, *stage.split()]
    if before:
        command = ["unshare", "--mount", "sh", "-ec", f'{before}; exec "$@"', "sh", *command]
    env = os.environ | {"EFFIMINI_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT)}
    limits = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) if limit else None
    return subprocess.run(command, cwd=folder, env=env, preexec_fn=limits, capture_output=True, text=True, check=False)


def check_refused(ended: subprocess.CompletedProcess[str], why: str) -> None:
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    *_, last = ended.stderr.splitlines()
    assert last.startswith("effimini: "), ended.stderr
    assert why in last
    assert "Traceback" not in ended.stderr
    assert last.endswith("then run the same command again, which goes on from what is kept")


def contents(folder: Path, digests: Callable[[Path], dict[str, str]]) -> object:
    return digests(folder) if folder.is_dir() else folder.exists() and folder.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """A folder in which every stage ran."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for stage in STAGES:
        ended = run(stage, folder, program=[warm.bin / "effimini"])
        assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("stage", OF_STAGES)
def test_a_stage_that_cannot_write_says_so_and_the_next_run_goes_on(
    tmp_path: Path, undisturbed: Path, digests: Callable[[Path], dict[str, str]], stage: str
) -> None:
    out = link_earlier(STAGES, stage, undisturbed, tmp_path)
    if stage == "validate sample":
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
    check_refused(
        run(stage, tmp_path, limit=60), "(File too large); raise the limit on the size of files (`ulimit -f`)"
    )
    assert not out.exists()
    assert [path for path in tmp_path.rglob(".*") if path.suffix in {".partial", ".lock"}] == []
    ended = run(stage, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert contents(out, digests) == contents(undisturbed / STAGES[stage], digests)
    check_refused(run(stage, tmp_path, limit=60), "File too large")
    assert contents(out, digests) == contents(undisturbed / STAGES[stage], digests) or stage == "validate sample"


@pytest.mark.parametrize("scheduler", [pytest.param("threads", marks=pytest.mark.slow), "processes"])
def test_a_worker_that_cannot_write_says_so(tmp_path: Path, undisturbed: Path, scheduler: str) -> None:
    for stage in ("join Demo_Toys", "fetch Demo_Toys", "shard Demo_Toys"):
        folder = tmp_path / stage.split()[0]
        folder.mkdir()
        out = link_earlier(STAGES, stage, undisturbed, folder)
        check_refused(run(stage, folder, scheduler, limit=2000), "(File too large)")
        assert not out.exists()


@pytest.fixture(scope="module")
def _mounts() -> None:
    """Skip without the right to mount a file system."""
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode:
        pytest.skip("this user may not mount a file system")


@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize("stage", OF_STAGES)
def test_a_full_disk_and_a_read_only_disk_are_one_sentence(tmp_path: Path, undisturbed: Path, stage: str) -> None:
    out = link_earlier(STAGES, stage, undisturbed, tmp_path)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.parent != tmp_path / "data":
        full = f"mount -t tmpfs -o size=4k none {out.parent}; head -c 4096 /dev/zero > {out.parent}/ballast || true"
        check_refused(
            run(stage, tmp_path, before=full), "(No space left on device); free disk space, or set EFFIMINI_ST"
        )
    read_only = f"mount --bind {out.parent} {out.parent}; mount -o remount,ro,bind {out.parent}"
    check_refused(run(stage, tmp_path, before=read_only), "(Read-only file system); make the disk writable")
    assert not out.exists()


def test_a_full_store_keeps_the_images_that_were_fetched(tmp_path: Path, undisturbed: Path) -> None:
    link_earlier(STAGES, "fetch Demo_Toys", undisturbed, tmp_path)
    shutil.copytree(undisturbed / "store/demo", tmp_path / "store/demo")
    check_refused(run("fetch Demo_Toys", tmp_path, limit=60_000), "File too large")
    (store,) = (tmp_path / "store/images").rglob("*.journal")
    with Journal(store, "") as journal:
        kept = len(journal)
    assert kept > 0
    assert run("fetch Demo_Toys", tmp_path).returncode == 0
    (whole,) = (undisturbed / "store/images").rglob("*.journal")
    assert store.stat().st_size == whole.stat().st_size  # no image was fetched twice, and no damaged record is left
