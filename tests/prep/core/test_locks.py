import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prep.core import files, locks
from prep.core.errors import UserError

HOLDER = (
    "import sys, time; from pathlib import Path; from prep.core import locks\n"
    "with locks.hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def held_by_another_process(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_limit_to_waiting_ends_with_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = held_by_another_process(tmp_path / "out")
    try:
        said = rf"in use by another run \(process {other.pid} on .*\); wait for it"
        with pytest.raises(UserError, match=said), locks.hold(tmp_path / "out", 0.1):
            pass
        assert f"(process {other.pid} on " in caplog.text
    finally:
        other.kill()
        other.communicate()
    with locks.hold(tmp_path / "out") as everywhere:
        assert everywhere


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with locks.hold(tmp_path / "folder/out"):
        assert [path.name for path in (tmp_path / "folder").iterdir()] == [".out.lock"]
    assert list((tmp_path / "folder").iterdir()) == []


def _count(folder: Path, times: int) -> None:
    for _ in range(times):
        with locks.hold(folder / "count"):
            before = int((folder / "count").read_text())
            time.sleep(0.0005)
            (folder / "count").write_text(str(before + 1))


def test_a_lock_file_that_is_removed_and_made_again_excludes_all_others(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    others = [multiprocessing.get_context("fork").Process(target=_count, args=(tmp_path, 50)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert (tmp_path / "count").read_text() == "200"


def test_two_machines_may_have_a_process_of_the_same_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers
    with files.atomic_write(tmp_path / "a") as first:
        first.write_text("first")
        with files.atomic_write(tmp_path / "a") as second:
            second.write_text("second")
        assert first.read_text() == "first"
    assert (tmp_path / "a").read_text() == "first"


def test_a_failed_folder_leaves_no_leftovers_and_the_old_content(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "out") as out:
        (out / "old").touch()
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(tmp_path / "out") as out:
        (out / "new").touch()
        raise KeyboardInterrupt
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/old"]


def test_leftovers_of_another_folder_are_kept(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "out.2") as other:
        with files.atomic_folder(tmp_path / "out") as out:
            (out / "a").touch()
        (other / "b").touch()
    assert [path.name for path in (tmp_path / "out.2").iterdir()] == ["b"]


def test_a_folder_that_cannot_be_renamed_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.atomic_folder(tmp_path / "out") as out:
        (out / "old").touch()
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="Input/output"), files.atomic_folder(tmp_path / "out") as out:
        (out / "new").touch()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["out", "out/old"]
