"""A small project as a team has it, with a source that grows, and what each stage must have written.

Input: a folder, and the process that runs the commands. Output: a DVC project on a table of products of two or three
categories, and the digests of what a fresh clone writes for the same parameters and source.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from PIL import Image
from ruamel.yaml import YAML

from prep import demo
from prep.core.files import fingerprint, sha256
from tests.clone import commit_project, set_params
from tests.state_machine.promises import check_nested, check_promises
from tests.warm import Warm

log = logging.getLogger(__name__)
CATEGORIES = ("Demo_Kitchen", "Demo_Toys", "Demo_Beauty")
# of a category at first, and more each time that the source grows, which it does at most so often
ROWS, GROWN, MAX_TIMES = 50, 12, 4
FIELDS = (
    *("parent_asin", "average_rating", "rating_number", "title", "main_category", "store", "features", "description"),
    *("details", "price", "categories", "category"),
)
BASE: dict[str, Any] = {
    "source.kind": "table",
    "source.categories": ["Demo_Kitchen", "Demo_Toys"],
    "source.reviews": False,
    "source.table.columns": {field: field for field in FIELDS} | {"images": "photo"},
    "download.max_bad_fraction": 0.2,  # with few rows, a few bad ones are a large fraction
    "images.max_bad_fraction": 0.9,
    "validation.near_duplicate_fraction.fail_above": 1.0,
    "validation.drift.fail_above": 1000.0,
    "validation.mode_fraction.fail_above": 1.0,
    "sample.fraction": 0.4,
    "sample.validation": 0.2,
    "sample.test": 0.2,
    "images.resolution": 32,
}
TIMEOUT = 300  # of a command, s


def write_source(folder: Path) -> list[list[str]]:
    """Write the photos of a catalogue with equal products in two categories; return the lines of each category."""
    demo.write_catalogue(folder, CATEGORIES, ROWS + MAX_TIMES * GROWN, 7)
    for path in sorted((folder / "images/I").iterdir()):
        with suppress(OSError), Image.open(path) as picture:  # some are no images
            picture.crop((0, 8, 96, 80)).save(path, quality=95)
    lines: list[list[str]] = []
    rows: list[dict[str, Any]] = []
    for category in CATEGORIES:
        before, rows = rows, []
        for line in (folder / f"raw/meta_categories/meta_{category}.jsonl").read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                row = {"parent_asin": "broken"}
            at = len(rows)
            images = row.get("images") or [{}]
            row["photo"] = f"images/I/{Path(images[0].get('large', 'none.jpg')).name}"
            row["category"] = category
            if at < len(before) and at % 7 == 3:  # the same product in two categories
                row["title"], row["store"] = before[at].get("title"), before[at].get("store")
            if at < len(before) and at % 11 == 5 and (folder / before[at]["photo"]).exists():  # the same picture
                shutil.copyfile(folder / before[at]["photo"], folder / row["photo"])
            rows.append(row)
        lines.append([json.dumps(row) for row in rows])
    return lines


class Project:
    """A checkout in which commands run, and its parameters as they are in params.yaml."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self.folder = folder
        self._warm = warm

    def start(self, *words: str, folder: str = ".", **env: str) -> "subprocess.Popen[str]":
        """Start a command in the project, or in a folder of it."""
        log.info("%s: %s %s", self.folder.name, " ".join(words), env or "")
        environment = os.environ | {
            "PATH": f"{self._warm.bin}{os.pathsep}{os.environ['PATH']}",
            "EFFIMINI_STORE": ".effimini",
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
        }
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@example.org"}
        return subprocess.Popen(
            words,
            cwd=self.folder / folder,
            env=environment | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def run(self, *words: str, check: bool = True, **options: str) -> tuple[int, str]:
        """Run a command; return its exit status and what it said. No command may print a traceback."""
        process = self.start(*words, **options)
        try:
            said, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{words} did not end: {process.communicate()[0][-2000:]}") from None
        assert "Traceback" not in said, f"{words}: {said[-4000:]}"
        assert process.returncode == 0 or not check, f"{words}: {said[-4000:]}"
        return process.returncode, said

    def wait(self) -> None:
        """Wait for commands that outlive the one that started them."""
        here = os.fspath(self.folder)
        running = []
        for process in self._warm.commands():
            with suppress(psutil.Error):  # it has ended
                running += [process] * (process.cwd() == here)
        assert not psutil.wait_procs(running, TIMEOUT)[1]

    def stop(self, seconds: float, how: signal.Signals, *words: str, whole: bool = True) -> bool:
        """Run a command and send it a signal after some seconds; return whether it ran to its end."""
        process = self.start(*words)
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            if whole:
                os.killpg(process.pid, how)
            else:
                process.send_signal(how)
            said, _ = process.communicate(timeout=TIMEOUT)
        self.wait()
        assert "Traceback" not in said, f"{words}: {said[-4000:]}"
        return process.returncode == 0

    def params(self) -> dict[str, Any]:
        """Return the content of params.yaml."""
        content: dict[str, Any] = YAML(typ="safe", pure=True).load((self.folder / "params.yaml").read_text())
        return content

    def set(self, changes: Mapping[str, Any]) -> None:
        """Change parameters (dotted names) in params.yaml as an editor would, and update dvc.yaml."""
        log.info("%s: %s", self.folder.name, changes)
        path = self.folder / "params.yaml"
        yaml = YAML()
        content = yaml.load(path.read_text())
        set_params(content, changes)
        yaml.dump(content, path)
        self.run("effimini", "pipeline")

    def stages(self) -> dict[str, "Stage"]:
        """Return the stages in the order in which they run."""
        found = YAML(typ="safe", pure=True).load((self.folder / "dvc.yaml").read_text())["stages"]
        categories = self.params()["source"]["categories"]
        result = {}
        for name, stage in found.items():
            for category in categories if "matrix" in stage else [""]:

                def filled(text: object, category: str = category) -> str:
                    name = next(iter(text)) if isinstance(text, dict) else str(text)
                    return name.replace("${item.category}", category)

                outs = [out for out in map(filled, stage.get("outs", [])) if out.startswith("data/")]
                deps = [filled(dep) for dep in stage["deps"]]
                result[f"{name}@{category}" if category else name] = Stage(filled(stage["cmd"]).split(), deps, outs)
        return result


class Stage(NamedTuple):
    """A stage of dvc.yaml."""

    command: list[str]
    deps: list[str]
    outs: list[str]  # in data: the pages have dates


def written(folder: Path, outs: Sequence[str]) -> dict[str, str]:
    """Return the digest of each file in outputs; an output that does not exist has none."""
    found: dict[str, str] = {}
    for out in outs:
        path = folder / out
        files = path.rglob("*") if path.is_dir() else [path]
        found |= {str(file.relative_to(folder)): sha256(file) for file in files if file.is_file()}
    return found


class Oracle:
    """What a fresh clone writes for given parameters and source, computed once for each."""

    def __init__(self, folder: Path, template: Path, warm: Warm) -> None:
        self._folder = folder
        self._template = template
        self._warm = warm
        self._known: dict[str, dict[str, dict[str, str]]] = {}
        self._of_fractions = defaultdict[str, dict[float, dict[str, str]]](dict)

    def of(self, project: Project, source: Path) -> dict[str, dict[str, str]]:
        """Return the digests of every file by stage; no digests of a stage that fails, and of what follows it."""
        params, content = project.params(), sha256(source)
        key = fingerprint(params, content)
        if key not in self._known:
            shutil.rmtree(self._folder, ignore_errors=True)
            shutil.copytree(self._template, self._folder)
            shutil.copyfile(project.folder / "params.yaml", self._folder / "params.yaml")
            found = self._run(Project(self._folder, self._warm))
            fraction, of_fraction = params["sample"].pop("fraction"), _flat(found)
            others = self._of_fractions[fingerprint(params, content)]
            for other, files in others.items():
                check_nested(*(files, of_fraction) if other < fraction else (of_fraction, files))
            self._known[key], others[fraction] = found, of_fraction
        return self._known[key]

    def _run(self, fresh: Project) -> dict[str, dict[str, str]]:
        succeeded = fresh.run("stages")[1].split()
        params = fresh.params()
        check_promises(fresh.folder / "data", params["groups"]["max_items_per_key"])
        stages = fresh.stages()
        return {name: written(fresh.folder, stages[name].outs) for name in stages if name in succeeded}


def _flat(digests: dict[str, dict[str, str]]) -> dict[str, str]:
    return {file: digest for files in digests.values() for file, digest in files.items()}


def make_project(folder: Path, source: Path, remote: Path, warm: Warm) -> Project:
    """Commit the project to a new repository, with a DVC remote."""
    commit_project(folder, BASE | {"source.location": str(source)})
    project = Project(folder, warm)
    project.run("dvc", "remote", "add", "-q", "-d", "team", str(remote))
    project.run("git", "commit", "-qam", "remote")
    return project
