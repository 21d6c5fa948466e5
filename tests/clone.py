"""A clone of the project with a separate DVC cache and local store, in which tests run DVC as a user does."""

import operator
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from prep.core import pipeline
from prep.core.params import load_params

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
SHARDS = Path("data/shards/Demo_Toys")
SMALL = {
    "source.categories": ["Demo_Toys"],
    "source.demo.items": 100,
    "download.max_bad_fraction": 0.1,  # with few rows, a few bad ones are a large fraction
    "images.max_bad_fraction": 0.5,
    "validation.near_duplicate_fraction.fail_above": 1.0,
}


class Clone:
    """A checkout with a separate DVC cache and local store."""

    def __init__(self, folder: Path, programs: Path = BIN) -> None:
        self.folder = folder
        self.programs = programs  # the folder of `effimini` and `dvc`

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "EFFIMINI_STORE": str(self.folder / ".effimini"),
            "DVC_NO_ANALYTICS": "1",
        }
        for role in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@example.org"}
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def bands(self) -> set[str]:
        return {path.name for path in (self.folder / SHARDS).glob("train-*.tar")}

    def cloned(self, folder: Path) -> "Clone":
        """Clone the project to `folder`, with an empty DVC cache and store."""
        self.run("git", "clone", "-q", str(self.folder), str(folder))
        return Clone(folder, self.programs)


def set_params(params: Any, changes: Mapping[str, Any]) -> None:
    """Change parameters (dotted names) in the content of a params.yaml."""
    for key, value in changes.items():
        *sections, last = key.split(".")
        reduce(operator.getitem, sections, params)[last] = value


def commit_project(folder: Path, changes: Mapping[str, Any], programs: Path = BIN) -> Clone:
    """Commit the working tree, with parameters (dotted names) changed, to a new repository in `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    set_params(params, changes)
    yaml.dump(params, folder / "params.yaml")
    pipeline.update_dvc_yaml(load_params(folder / "params.yaml"), folder / "dvc.yaml")
    clone = Clone(folder, programs)
    clone.run("git", "init", "-q")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "start")
    return clone
