"""A project in any history: steps in random order, each of which must leave what a fresh clone would have.

After every step, a stage that `dvc status` holds for up to date, and with it all before it, has the files that a fresh
clone writes for the same parameters and source. `make state-machine` tries many histories, and shortens one that fails;
`make test` tries the same short one each time.
"""

import json
import logging
import operator
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.state_machine.project import (
    CATEGORIES,
    GROWN,
    MAX_TIMES,
    ROWS,
    Oracle,
    Project,
    Stage,
    make_project,
    write_source,
    written,
)
from tests.warm import Warm

log = logging.getLogger(__name__)
HISTORIES = int(os.environ.get("STATE_MACHINE", "0"))
STEPS = 20 if HISTORIES else 8
# the machine runs the stages up to these
LAST = "validate_weights"
TARGETS = ("validate_profiles", "validate_shards", LAST)
OTHER: dict[str, Any] = {  # another value of a parameter
    "dask.scheduler": "threads",
    "decontaminate.reasons": ["same_product_title"],
    "download.buckets": 3,
    "groups.max_items_per_key": 2,
    "images.fit": "letterbox",
    "images.quality": 50,
    "images.resample": "bilinear",
    "images.resolution": 48,
    "sample.bands": 10,
    "sample.eval_fraction": 0.5,
    "sample.eval_min_per_category": 6,
    "sample.min_chars": 90,
    "sample.min_per_category": 20,
    "sample.require": ["title", "average_rating", "rating_number", "description"],
    "sample.salt": "other",
    "sample.test": 0.3,
    "sample.validation": 0.3,
    "shards.samples_per_shard": 4,
    "source.table.rating_scale": [1, 10],
    "text.fields": ["title", "store"],
    "text.max_tokens": 16,
    "validation.near_duplicate_fraction": {"warn_above": 0.0, "fail_above": 0.0},
    "weights.clip": 0.5,
    "weights.count": "none",
    "weights.half_at": 50,
}


class World:
    """What all histories share: the process that runs commands, a project that has run, and known results."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self.folder = folder
        self.warm = warm
        self.lines = write_source(folder / "source")
        self.source = folder / "source/catalogue.jsonl"
        self.grow(0)
        project = make_project(folder / "one", self.source, folder / "remote", self.warm)
        shutil.copytree(folder / "one", folder / "template")
        self.oracle = Oracle(folder / "fresh", folder / "template", self.warm)
        project.run("dvc", "repro", "-q", *TARGETS)
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", "first")
        project.run("dvc", "push", "-q", "--with-deps", *TARGETS)
        self.start = folder / "start"
        self.start.mkdir()
        for name in ("one", "remote"):
            shutil.move(folder / name, self.start / name)

    def grow(self, times: int) -> None:
        """Write the source with more rows."""
        rows = ROWS + times * GROWN
        self.source.write_text("".join(f"{line}\n" for lines in self.lines for line in lines[:rows]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> World:
    return World(tmp_path_factory.mktemp("world"), warm)


class History(RuleBasedStateMachine):
    """The steps, and what must hold after each."""

    world: World

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        for name in ("one", "remote", "other"):
            shutil.rmtree(self.world.folder / name, ignore_errors=True)
        for name in ("one", "remote"):
            # with times and hard links: DVC notices changes by times and inodes
            subprocess.run(["cp", "-a", self.world.start / name, self.world.folder / name], check=True)
        log.info("a new history: %d", seed)
        self.seed, self.steps, self.times = seed, 0, 0
        self.changed = set[str]()
        self.world.grow(0)
        self.one = Project(self.world.folder / "one", self.world.warm)
        self.other = Project(self.world.folder / "other", self.world.warm)
        head = self.one.run("git", "rev-parse", "HEAD")[1].strip()
        self.commits = {head: written(self.one.folder, ["data"])}
        self.pushed, self.pulled = head, ""
        self.up_to_date = self.committed = True

    def _status(self, project: Project) -> dict[str, Any]:
        said = project.run("dvc", "status", "--json", "--with-deps", *TARGETS)[1]
        found: dict[str, Any] = json.loads(said[said.index("{") :])
        return found

    def _check(self, project: Project) -> bool:
        """Check the stages that are up to date; return whether all are."""
        wanted, stale = self.world.oracle.of(project, self.world.source), set(self._status(project))
        changed = set[str]()  # outputs of stages that are stale, or behind one that is
        for name, stage in project.stages().items():
            behind = any(dep == out or dep.startswith(f"{out}/") for dep in stage.deps for out in changed)
            if name in stale or behind:
                changed |= set(stage.outs)
            else:
                assert name in wanted, f"{name} is up to date, but fails in a fresh clone"
                assert written(project.folder, stage.outs) == wanted[name], name
            if name == LAST:
                break
        if project is self.one:
            self.up_to_date = not changed
        return not changed

    def _repro(self, project: Project) -> None:
        status, said = project.run("dvc", "repro", "-q", *TARGETS, check=False)
        fails = LAST not in self.world.oracle.of(project, self.world.source)
        assert (status != 0) == fails, said[-4000:]
        assert self._check(project) != fails

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Do something that makes sense now. One rule, as Hypothesis leaves most of many out of a whole history."""
        possible: list[Callable[[st.DataObject], None]] = []
        if not self.up_to_date:
            possible += [*[self.repro] * 6, self.repro_in_a_subfolder, self.stop_repro, self.fill_the_disk]
        possible += [self.change_a_parameter, self.change_the_fraction, self.add_or_remove_a_category, self.run_a_stage]
        possible += [self.run_a_stage_twice_at_once, self.stop_a_stage, self.flip_a_byte, self.remove_files]
        if self.times < MAX_TIMES:
            possible.append(self.add_rows_to_the_source)
        if self.up_to_date and not self.committed:
            possible += [self.commit_and_push] * 3
        if self.pulled != self.pushed:
            possible.append(self.pull_in_another_folder)
        if len(self.commits) > 1 or not self.up_to_date:
            possible.append(self.check_out_a_commit)
        self.steps += 1
        self._shuffle(possible)
        action = data.draw(st.sampled_from([action.__name__ for action in possible]))
        log.info("step: %s", action)
        try:
            getattr(self, action)(data)
        except AssertionError as error:
            log.info("failed, and is tried again with fewer steps: %s", error)
            raise

    def _shuffle(self, choices: list[Any]) -> None:
        """Bring choices into another order in each step and history, as Hypothesis takes the first one often."""
        Random(f"{self.seed} {self.steps}").shuffle(choices)

    def repro(self, _: st.DataObject) -> None:
        self._repro(self.one)

    def repro_in_a_subfolder(self, _: st.DataObject) -> None:
        self.one.run("dvc", "repro", "-q", *[f"../dvc.yaml:{name}" for name in TARGETS], check=False, folder="docs")
        self._check(self.one)

    def run_a_stage(self, data: st.DataObject) -> None:
        assert self.one.run(*self._stage(data).command, check=False)[0] in {0, 2}
        self._check(self.one)

    def run_a_stage_twice_at_once(self, data: st.DataObject) -> None:
        stage = self._stage(data)
        processes = [self.one.start(*stage.command) for _ in range(2)]
        ended = [(process.communicate()[0], process.returncode) for process in processes]
        assert all(status in {0, 2} and "Traceback" not in said for said, status in ended), ended
        self._check(self.one)

    def _stage(self, data: st.DataObject) -> Stage:
        stages = self.one.stages()
        names = list(stages)
        names = names[: names.index(LAST) + 1]
        self._shuffle(names)
        return stages[data.draw(st.sampled_from(names))]

    def change_a_parameter(self, data: st.DataObject) -> None:
        keys = [key for key in sorted(OTHER) if key not in self.changed] or sorted(OTHER)
        self._shuffle(keys)
        key = data.draw(st.sampled_from(keys))
        self.changed.add(key)
        before = _value(Project(self.world.start / "one", self.world.warm), key)
        self._set({key: OTHER[key] if _value(self.one, key) != OTHER[key] else before})

    def change_the_fraction(self, data: st.DataObject) -> None:
        self._set({"sample.fraction": data.draw(st.sampled_from([0.2, 0.4, 0.6, 1.0]))})

    def add_or_remove_a_category(self, data: st.DataObject) -> None:
        category, chosen = data.draw(st.sampled_from(CATEGORIES)), _value(self.one, "source.categories")
        if chosen != [category]:
            self._set({"source.categories": [name for name in CATEGORIES if (name in chosen) != (name == category)]})

    def add_rows_to_the_source(self, _: st.DataObject) -> None:
        self.times += 1
        self.world.grow(self.times)
        self._set({})

    def _set(self, changes: dict[str, Any]) -> None:
        self.one.set(changes)
        self.committed = False
        self._check(self.one)

    def stop_repro(self, data: st.DataObject) -> None:
        """Stop `dvc repro`, or only DVC and not its stage."""
        before = written(self.one.folder, ["data"])
        seconds = 2 + 20 * data.draw(st.floats(0, 1)) ** 2
        how = data.draw(st.sampled_from([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        self.one.stop(seconds, how, "dvc", "repro", "-q", *TARGETS, whole=data.draw(st.booleans()))
        wanted = self.world.oracle.of(self.one, self.world.source)
        for name, stage in self.one.stages().items():
            for out in stage.outs:
                left = written(self.one.folder, [out])
                assert left in ({}, _below(out, before), _below(out, wanted.get(name, {}))), out
        self._check(self.one)

    def stop_a_stage(self, data: st.DataObject) -> None:
        """Stop a stage again and again; each time its output is absent, the old one, or whole."""
        stage = self._stage(data)
        left = [written(self.one.folder, stage.outs)]
        for seconds in data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=6)):
            self.one.stop(seconds, data.draw(st.sampled_from([signal.SIGKILL, signal.SIGTERM])), *stage.command)
            left.append(written(self.one.folder, stage.outs))
        if self.one.run(*stage.command, check=False)[0] == 0:
            whole = written(self.one.folder, stage.outs)
            for out in stage.outs:
                allowed = ({}, _below(out, left[0]), _below(out, whole))
                assert all(_below(out, found) in allowed for found in left), out
        self._check(self.one)

    def fill_the_disk(self, data: st.DataObject) -> None:
        limit = data.draw(st.sampled_from(["0", "1000", "4000", "20000"]))
        self.one.run("dvc", "repro", "-q", *TARGETS, check=False, WARM_FILE_LIMIT=limit)
        self._check(self.one)

    def flip_a_byte(self, data: st.DataObject) -> None:
        where = self.one.folder / data.draw(st.sampled_from([".effimini", ".dvc/cache/files", "data"]))
        files = sorted(path for path in where.rglob("*") if path.is_file() and path.stat().st_size)
        if files:
            path = data.draw(st.sampled_from(files))
            log.info("flip a byte of %s", path)
            content = bytearray(path.read_bytes())
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            path.chmod(0o644)
            path.write_bytes(content)  # in place, so in every hard link of it
            self._check(self.one)

    def remove_files(self, data: st.DataObject) -> None:
        part = data.draw(st.sampled_from(["data", ".effimini", "data/sample", ".dvc/cache/files", ".dvc/tmp"]))
        log.info("remove %s", part)
        shutil.rmtree(self.one.folder / part, ignore_errors=True)
        self._check(self.one)

    def commit_and_push(self, _: st.DataObject) -> None:
        self.one.run("git", "add", "-A")
        self.one.run("git", "commit", "-qm", "next", "--allow-empty")
        self.one.run("dvc", "push", "-q", "--with-deps", *TARGETS)
        self.pushed = self.one.run("git", "rev-parse", "HEAD")[1].strip()
        self.commits[self.pushed] = written(self.one.folder, ["data"])
        self.committed = True

    def pull_in_another_folder(self, _: st.DataObject) -> None:
        if not self.other.folder.exists():
            self.one.run("git", "clone", "-q", ".", str(self.other.folder))
        self.other.run("git", "fetch", "-q")
        self.other.run("git", "checkout", "-q", "-f", self.pushed)
        self.other.run("dvc", "pull", "-q", "--force", "--with-deps", *TARGETS)
        self._check_commit(self.other, self.pushed)
        self._repro(self.other)
        self.pulled = self.pushed

    def check_out_a_commit(self, data: st.DataObject) -> None:
        commit = data.draw(st.sampled_from(list(self.commits)))
        self.one.run("git", "checkout", "-q", "-f", commit)
        if self.one.run("dvc", "checkout", "-q", "--force", check=False)[0] == 0:
            self._check_commit(self.one, commit)
        self._check(self.one)

    def _check_commit(self, project: Project, commit: str) -> None:
        found = written(project.folder, ["data"])
        assert {name: found.get(name) for name in self.commits[commit]} == self.commits[commit]


def _below(out: str, digests: dict[str, str]) -> dict[str, str]:
    """Return the digests of an output."""
    return {file: digest for file, digest in digests.items() if file == out or file.startswith(f"{out}/")}


def _value(project: Project, key: str) -> Any:
    """Return a parameter of a project, by its dotted name."""
    return reduce(operator.getitem, key.split("."), project.params())


@pytest.mark.timeout(0)
def test_any_history_leaves_what_a_fresh_clone_has(world: World) -> None:
    History.world = world
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=HISTORIES or 1,
            stateful_step_count=STEPS,
            derandomize=not HISTORIES,
            phases=[Phase.generate, Phase.shrink] if HISTORIES else [Phase.generate],
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
