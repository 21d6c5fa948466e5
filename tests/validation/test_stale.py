"""The earliest stale stage of a small DVC project, from outside and from within its own `dvc repro`."""

import sys
from pathlib import Path

import pytest
from dvc.lock import LockError
from dvc.repo import Repo

from prep.core.errors import UserError
from tests.clone import Clone
from tests.validation import tree
from tests.validation.tree import ONE, OTHER
from validation.stale import earliest_stale
from validation.validate import validate

ASK = """
from validation.stale import earliest_stale
print([earliest_stale(stage) for stage in ("download@b", "join", "groups", "report")])
"""
STAGES = f"""
stages:
  groups:
    cmd: cat items-b.txt items-a.txt gate.txt > groups.txt
    deps: [items-a.txt, items-b.txt, gate.txt]
    outs: [groups.txt]
  validate_items:
    cmd: cat items-a.txt items-b.txt limits.txt > gate.txt
    deps: [items-a.txt, items-b.txt, limits.txt]
    outs: [gate.txt]
  join:
    matrix: {{category: [b, a]}}
    cmd: cp raw-${{item.category}}.txt items-${{item.category}}.txt
    deps: ['raw-${{item.category}}.txt', code.txt]
    params: [join]
    outs: ['items-${{item.category}}.txt']
  download:
    matrix: {{category: [b, a]}}
    cmd: echo ${{item.category}} > raw-${{item.category}}.txt
    deps: ['list-${{item.category}}.txt']
    outs: ['raw-${{item.category}}.txt']
  report:
    cmd:
      - {sys.executable} ask.py > stale.txt
      - dvc status groups report 2> busy.txt || true
    deps: [groups.txt]
    outs: [stale.txt, busy.txt]
"""


def create(folder: Path, stages: str) -> Clone:
    """Create a git and DVC project, and run its stages."""
    (folder / "dvc.yaml").write_text(stages)
    (folder / "params.yaml").write_text("join: 1\n")
    clone = Clone(folder)
    clone.run("git", "init", "-q")
    clone.run("dvc", "init", "-q")
    clone.run("dvc", "repro", "-q")
    return clone


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ran")
    (folder / "ask.py").write_text(ASK)
    for name in ("code", "limits", "list-a", "list-b"):
        (folder / f"{name}.txt").write_text(f"{name}\n")
    return create(folder, STAGES).folder


@pytest.fixture
def project(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A project with all stages up to date, in the working directory."""
    monkeypatch.chdir(tree.copy(ran, tmp_path / "project"))
    return Clone(tmp_path / "project")


CHANGES = {
    "nothing": ("true", None),
    "a parameter": ("echo 'join: 2' > params.yaml", "join@b"),  # as dvc.yaml lists it, not as the alphabet does
    "code": ("echo >> code.txt", "join@b"),
    "a command": ("sed -i 's/cp raw/cp -f raw/' dvc.yaml", "join@b"),
    "an output edited by hand": ("echo >> items-a.txt", "join@a"),
    "an early stage and later ones": ("echo | tee -a groups.txt items-b.txt list-a.txt", "download@a"),
    "the stage itself": ("echo >> groups.txt", "groups"),
    "a limit of a gate": ("echo >> limits.txt", None),
    "a gate": ("echo >> gate.txt", "groups"),
    "a downstream stage": ("echo >> stale.txt", None),
    "missing data": ("rm raw-*.txt items-*.txt gate.txt", None),
    "data removed from the cache": ("rm -r .dvc/cache", None),
    "data removed from the cache and then changed": ("rm -r .dvc/cache; echo >> items-a.txt", "join@a"),
    "stages that never ran": ("rm -r dvc.lock raw-*.txt items-*.txt groups.txt", "download@b"),
    "a dependency of a frozen stage": ("dvc freeze groups; echo | tee -a gate.txt code.txt", None),
    "an invalid dvc.yaml": ("echo 'stages: [' > dvc.yaml", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_earliest_stale_stage_is_named(project: Clone, change: str) -> None:
    command, stale = CHANGES[change]
    project.run("sh", "-c", command)
    assert earliest_stale("groups") == stale


def test_upstream_stages_count_and_a_name_without_category_means_all(project: Clone) -> None:
    project.run("sh", "-c", "echo >> list-a.txt")
    assert [earliest_stale(name) for name in ("join", "join@a", "join@b")] == ["download@a", "download@a", None]
    assert earliest_stale("no_such_stage") is None


def test_only_the_project_in_the_working_directory_is_checked(project: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("sh", "-c", "echo >> list-a.txt; mkdir below")
    monkeypatch.chdir(project.folder / "below")
    assert earliest_stale("groups") is None


def test_no_lock_of_dvc_is_needed(project: Clone) -> None:
    project.run("sh", "-c", "echo >> items-a.txt")
    with Repo().lock:
        assert earliest_stale("groups") == "join@a"
        with pytest.raises(LockError):
            Repo().status("groups")


def test_it_works_in_a_stage_that_dvc_runs(project: Clone) -> None:
    project.run("sh", "-c", "echo | tee -a list-a.txt code.txt limits.txt; rm stale.txt")
    project.run("dvc", "repro", "-q")
    # The upstream stages are in dvc.lock; the stage itself is not yet, and DVC holds write locks on its outputs.
    assert Path("stale.txt").read_text() == "[None, None, None, 'report']\n"
    assert "is busy, it is being blocked by" in Path("busy.txt").read_text()


PIPELINE = f"""
stages:
  join:
    matrix: {{category: [{OTHER}, {ONE}]}}
    cmd: echo > ${{item.category}}.txt
    params: [join]
    outs: ['${{item.category}}.txt']
  sample:
    matrix: {{category: [{OTHER}, {ONE}]}}
    cmd: cp ${{item.category}}.txt sample-${{item.category}}.txt
    deps: ['${{item.category}}.txt']
    outs: ['sample-${{item.category}}.txt']
"""


def test_the_error_of_a_failed_table_names_the_stale_stage(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(data.parent, PIPELINE)
    monkeypatch.chdir(data.parent)
    here, elsewhere = Path("data"), tree.copy(data, data.parent / "team/data")
    for folder in (here, elsewhere):
        tree.edit(folder / "sample" / ONE / "train-00.parquet", lambda rows: rows[0].update(average_rating=7.0))
    rerun = f"run the stage again with `dvc repro --force --single-item sample@{ONE}`"
    for folder, edited, hint in [
        (here, False, rerun),
        (here, True, f"; join@{ONE} is stale: run `dvc repro sample@{ONE}`"),
        (elsewhere, True, rerun),
    ]:
        if edited:
            Path("params.yaml").write_text("join: 2\n")
        with pytest.raises(UserError) as error:
            validate("sample", tree.small_params(), folder)
        message = str(error.value)
        assert message.startswith(f"{folder}/sample/{ONE}, table sample: expected average_rating between 1 and 5, but")
        assert hint in message
        assert ("stale" in message) is ("stale" in hint)


def test_a_table_that_passes_does_not_import_dvc(project: Clone) -> None:
    lines = (
        "import sys, validation.validate, validation.stale; print(any(m.split('.')[0] == 'dvc' for m in sys.modules))"
    )
    assert project.run(sys.executable, "-c", lines).stdout == "False\n"
