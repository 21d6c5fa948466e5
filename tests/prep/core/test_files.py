import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prep.core import files, writers
from prep.core.errors import UserError, check_budget
from prep.core.reports import Funnel


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_replaces_the_old_one_completely(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "out") as out:
        (out / "first").write_text("1")
    with files.atomic_folder(tmp_path / "out") as out:
        (out / "second").write_text("2")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["second"]


def test_a_kill_leaves_the_old_folder_and_the_next_run_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with files.atomic_folder(out) as partial:
        (partial / "a").write_text("old")
    code = (
        "import os, signal; from pathlib import Path; from prep.core import files\n"
        f"with files.atomic_folder(Path({str(out)!r})) as p:\n"
        "    (p / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [p.name for p in out.iterdir()] == ["a"]
    with files.atomic_folder(out) as partial:
        (partial / "b").write_text("new")
    assert [p.name for p in out.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_json_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    writers.write_json(tmp_path / "a", {"b": 1, "a": Funnel(1, 1, {})})
    writers.write_json(tmp_path / "b", {"a": Funnel(1, 1, {}), "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_error_of_a_missing_json_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run `dvc repro`"):
        files.read_json(tmp_path / "none.json")


def test_a_cached_file_is_linked_and_not_created_again(tmp_path: Path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("content")

    assert files.cached("x/one", make, tmp_path / "a")
    assert not files.cached("x/one", make, tmp_path / "b")
    assert len(made) == 1
    assert (tmp_path / "b").read_text() == "content"
    assert (tmp_path / "a").samefile(tmp_path / "b")


def test_counts_that_do_not_add_up_are_an_error() -> None:
    assert Funnel.of(5, {"bad": 2, "none": 0}) == Funnel(5, 3, {"bad": 2})
    with pytest.raises(ValueError, match="not accounted for"):
        Funnel(5, 4, {"bad": 2})


def test_more_rejects_than_the_budget_are_an_error() -> None:
    check_budget({"bad": 2}, 100, 0.02, "lines", "look")
    with pytest.raises(
        UserError, match=r"3 of 100 lines are unusable \(bad 2, worse 1\), over the budget of 2.0%; look"
    ):
        check_budget({"bad": 2, "worse": 1}, 100, 0.02, "lines", "look")
