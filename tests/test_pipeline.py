"""The pipeline as its users run it: DVC in a clone, another fraction, a remote, a second clone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
SHARDS = Path("data/shards/Demo_Toys")


class Clone:
    """A checkout with a DVC cache and a local store of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "EFFIMINI_STORE": str(self.folder / ".effimini"),
            "DVC_NO_ANALYTICS": "1",
        }
        for who in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{who}_NAME": "test", f"GIT_{who}_EMAIL": "test@example.org"}
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def bands(self) -> set[str]:
        return {path.name for path in (self.folder / SHARDS).glob("train-*.tar")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Commit the project's files as they stand, with small parameters, to a repository of its own."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    params["source"]["categories"] = ["Demo_Toys"]
    params["source"]["demo"]["items"] = 100
    params["download"]["bad_share"] = 0.1
    yaml.dump(params, folder / "params.yaml")
    made = Clone(folder)
    made.run("git", "init", "-q")
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "start")
    made.run("dvc", "repro", "-q", "validate_shards", "weights")
    made.run("git", "add", "dvc.lock")
    made.run("git", "commit", "-qm", "shards")
    return made


def test_a_larger_fraction_writes_only_new_shards_and_back_and_up_again_nothing(
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
    assert digests(clone.folder / ".effimini") == stored  # nothing was fetched or made again
    clone.run("git", "checkout", "-q", "params.yaml", "dvc.lock")
    clone.run("dvc", "repro", "-q", "validate_shards", "weights")


def test_a_second_clone_pulls_the_shards_and_nothing_of_the_raw_data(clone: Clone, tmp_path: Path) -> None:
    clone.run("dvc", "remote", "add", "-q", "-d", "-f", "team", str(tmp_path / "remote"))
    clone.run("dvc", "push", "-q")
    clone.run("git", "commit", "-qam", "remote")
    clone.run("git", "clone", "-q", str(clone.folder), str(tmp_path / "second"))
    second = Clone(tmp_path / "second")
    second.run("dvc", "pull", "-q", str(SHARDS))
    assert second.bands() == clone.bands()
    assert not (second.folder / "data/raw").exists()
    assert second.run("dvc", "pull", "-q", "data/raw/Demo_Toys", check=False).returncode != 0  # it was not pushed


def test_dvc_shows_the_way_of_the_data(clone: Clone) -> None:
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
        (["results"], "results/metrics.json does not exist; run `dvc repro`"),
        (["train", "--data", "nowhere"], "nowhere/weights.json does not exist"),
        (["info", "--params", "none.yaml"], "none.yaml does not exist here"),
        (["validate", "nothing"], "'nothing' is not one of"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(clone: Clone, words: list[str], sentence: str) -> None:
    done = clone.run("effimini", *words, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_every_command_says_what_it_does_with_an_example(clone: Clone) -> None:
    overview = clone.run("effimini", "--help").stdout
    listed = re.findall(r"^│ (\w+) ", overview, re.MULTILINE)
    assert {"download", "join", "groups", "sample", "fetch", "shard", "weights", "train", "evaluate"} < set(listed)
    for command in listed:
        text = clone.run("effimini", command, "--help").stdout
        for part in ("In: ", "Out: ", f"effimini {command}"):
            assert part in text, (command, part)
