"""The pipeline as its users run it: DVC in a clone, another fraction, a remote, a second clone."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from effimini.cli import app
from tests.clone import SHARDS, SMALL, Clone, commit_project
from tests.warm import Warm


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Clone:
    """Write the shards of small parameters in a new repository."""
    made = commit_project(tmp_path_factory.mktemp("clone"), SMALL, warm.bin)
    made.run("dvc", "repro", "-q", "validate_shards", "weights")
    made.run("git", "add", "dvc.lock")
    made.run("git", "commit", "-qm", "shards")
    return made


def test_a_larger_fraction_writes_only_new_shards_and_switching_back_writes_nothing(
    clone: Clone, digests: Callable[[Path], dict[str, str]]
) -> None:
    small, before = clone.bands(), digests(clone.folder / SHARDS)
    clone.run("dvc", "exp", "run", "-q", "-S", "sample.fraction=0.4", "validate_shards")
    large, after = clone.bands(), digests(clone.folder / SHARDS)
    assert small < large
    assert all(after[name] == before[name] for name in before if name.endswith((".tar", ".arrow")))
    stored = digests(clone.folder / ".effimini")
    clone.run("dvc", "exp", "run", "-q", "-S", "sample.fraction=0.2", "validate_shards")
    assert digests(clone.folder / SHARDS) == before
    clone.run("dvc", "exp", "run", "-q", "-S", "sample.fraction=0.4", "validate_shards")
    assert digests(clone.folder / SHARDS) == after
    assert digests(clone.folder / ".effimini") == stored  # nothing was fetched or computed again
    clone.run("git", "checkout", "-q", "params.yaml", "dvc.lock")
    clone.run("dvc", "repro", "-q", "validate_shards", "weights")


def test_dvc_shows_the_pipeline(clone: Clone) -> None:
    dag = clone.run("dvc", "dag", "--md").stdout
    stages = ["download@Demo_Toys", "join@Demo_Toys", "groups", "sample@Demo_Toys", "fetch@Demo_Toys"]
    for stage in [*stages, "shard@Demo_Toys", "weights", "train", "evaluate"]:
        assert f'["{stage}"]' in dag
    assert "up to date" in clone.run("dvc", "status", "validate_shards").stdout


def test_a_stage_reports_its_rows_as_json(clone: Clone) -> None:
    done = clone.run("effimini", "sample", "Demo_Toys", "--json", "--data", "data")
    report = json.loads(done.stdout)
    funnel = report["tables"]["items"]
    assert funnel["rows_in"] == funnel["rows_out"] + sum(funnel["dropped"].values())
    assert "sample Demo_Toys items:" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["download", "Nothing"], "Nothing is not in source.categories (Demo_Toys)"),
        (["results"], "results/evaluation.json does not exist; run `dvc repro`"),
        (["train", "--data", "nowhere"], "nowhere/shards/Demo_Toys/manifest.json does not exist"),
        (["info", "--params", "none.yaml"], "none.yaml does not exist"),
        (["validate", "nothing"], "there is no table nothing; the tables are raw, items, groups, sample, images"),
        (["validate", "--data", "nowhere"], "nowhere contains no table; run `dvc repro`"),
    ],
)
def test_a_mistake_is_an_error_with_exit_code_2(clone: Clone, words: list[str], sentence: str) -> None:
    done = clone.run("effimini", *words, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_every_command_has_a_help_text_with_an_example() -> None:
    overview = CliRunner().invoke(app, ["--help"]).stdout
    listed = re.findall(r"^│ (\w+) ", overview, re.MULTILINE)
    assert {"download", "join", "groups", "sample", "fetch", "shard", "weights", "train", "evaluate"} < set(listed)
    for command in listed:
        text = CliRunner().invoke(app, [command, "--help"]).stdout
        assert re.search(rf"^ Examples?: effimini {command}\b", text, re.MULTILINE), command
