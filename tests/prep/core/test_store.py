"""Where the local store is: one for a project, whatever folder or copy of it a stage runs in."""

import os
import subprocess
from pathlib import Path

import pytest

from prep.core import files
from tests.clone import BIN

ROOT = Path(__file__).parents[3]
STAGE = """
stages:
  where:
    cmd: python -c "from prep.core import files; print(files.store())" > where
    params: [seed]
    outs: [where]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EFFIMINI_STORE")
    (tmp_path / "project/.dvc").mkdir(parents=True)
    (tmp_path / "project/data").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_the_store_is_that_of_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (project, project / "data"):
        monkeypatch.chdir(folder)
        assert files.store() == project / ".effimini"
        monkeypatch.setenv("EFFIMINI_STORE", "store")
        assert files.store() == project / "store"
        monkeypatch.setenv("EFFIMINI_STORE", "/elsewhere")
        assert files.store() == Path("/elsewhere")
        monkeypatch.setenv("EFFIMINI_STORE", "")
    monkeypatch.chdir(project.parent)
    assert files.store() == project.parent / ".effimini"  # no project


@pytest.mark.parametrize("copy", [".dvc/tmp/exps/tmpabc", ".dvc/tmp/exps/standalone/tmpabc", ".dvc/tmp/exps/tmpa/sub"])
def test_a_copy_that_dvc_makes_has_the_store_of_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    (project / copy / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(project / copy)
    assert files.store() == project / ".effimini"


def run(project: Path, *words: str) -> None:
    names = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | names | {"PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(words, cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("folder", [pytest.param(".", marks=pytest.mark.slow), "sub"])
@pytest.mark.parametrize(
    "way", ["temp", *(pytest.param(way, marks=pytest.mark.slow) for way in ("workspace", "queue"))]
)
def test_dvc_runs_an_experiment_with_the_store_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, folder: str
) -> None:
    monkeypatch.delenv("EFFIMINI_STORE")
    repository = tmp_path / "repository"
    project = (repository / folder).resolve()
    project.mkdir(parents=True)
    run(repository, "git", "init", "-q")
    run(project, "dvc", "init", "-q", *(["--subdir"] if folder != "." else []))
    (project / "dvc.yaml").write_text(STAGE)
    (project / "params.yaml").write_text("seed: 1\n")
    run(repository, "git", "add", "-A")
    run(repository, "git", "commit", "-qm", "start")
    options = [] if way == "workspace" else [f"--{way}"]
    run(project, "dvc", "exp", "run", "-q", "-n", "found", *options, "-S", "seed=2")
    if way == "queue":
        run(project, "dvc", "exp", "run", "--run-all")
    run(project, "dvc", "exp", "apply", "found")
    run(project, "dvc", "checkout", "-q")
    assert (project / "where").read_text() == f"{project / '.effimini'}\n"
