import hashlib
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

    content = hashlib.sha256(b"content").hexdigest()
    assert files.cached("x/one", make, tmp_path / "a") == (content, True)
    assert files.cached("x/one", make, tmp_path / "b") == (content, False)
    assert len(made) == 1
    assert (tmp_path / "b").read_text() == "content"
    assert (tmp_path / "a").samefile(tmp_path / "b")


@pytest.mark.parametrize("damaged", ["x/one", "x/one.sha256"])
@pytest.mark.parametrize("content", [b"contenT", b"", b"content and more", b"\xff"])
def test_a_cached_file_that_was_changed_is_made_again(
    damaged: str, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = files.cached("x/one", lambda path: void(path.write_text("content")), tmp_path / "a")
    (files.store() / damaged).write_bytes(content)
    assert files.cached("x/one", lambda path: void(path.write_text("content")), tmp_path / "b") == good
    assert (tmp_path / "b").read_text() == "content"
    assert f"{files.store()}/x/one was changed or damaged; it is made again" in caplog.text
    assert files.cached("x/one", lambda path: void(path.write_text("content")), tmp_path / "c") == (good[0], False)


def test_a_change_of_an_output_that_is_a_link_does_not_come_back(tmp_path: Path) -> None:
    files.cached("x/one", lambda path: void(path.write_text("content")), tmp_path / "a")
    (tmp_path / "a").write_text("changed")  # the same file as that in the store
    files.cached("x/one", lambda path: void(path.write_text("content")), tmp_path / "a")
    assert (tmp_path / "a").read_text() == "content"


def test_a_stored_file_from_before_there_were_seals_is_made_again(tmp_path: Path) -> None:
    (files.store() / "x").mkdir(parents=True)
    (files.store() / "x/one").write_text("of an earlier version")
    assert files.cached("x/one", lambda path: void(path.write_text("content")), tmp_path / "a")[1]
    assert (tmp_path / "a").read_text() == "content"


def test_a_seal_of_a_folder_covers_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    (folder / "in/a").write_text("1")
    (folder / "b").write_text("2")
    assert files.intact(folder) == ""
    files.seal(folder, files.digest(folder))
    assert files.intact(folder)
    for change, back in (
        (lambda: (folder / "in/a").write_text("3"), lambda: (folder / "in/a").write_text("1")),
        (lambda: (folder / "b").rename(folder / "c"), lambda: (folder / "c").rename(folder / "b")),
        ((folder / "d").touch, (folder / "d").unlink),
        ((folder / "b").unlink, lambda: (folder / "b").write_text("2")),
    ):
        change()
        assert files.intact(folder) == ""
        back()
        assert files.intact(folder)


def void(_: object) -> None:
    """Drop a value."""


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
