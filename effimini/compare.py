"""Compare the predictions of two runs on their test splits.

Input: two runs, each a project folder or a git revision of a project: their data/predictions and params.yaml.
Output: commit and date of each, its scores on its own test split, the differences on the items that both test, over all
and by group, and the parameters that differ.
Guarantees: a difference is paired by item, and is stated only where both runs test the same items with the same label.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from ruamel.yaml import YAML

from effimini import metrics
from effimini.git import git
from effimini.metrics import LowHigh
from effimini.slices import SMALL, count_bucket_names
from prep.core.errors import UserError, first_sentence
from prep.core.params import flatten
from prep.strata import count_bucket
from shards.revision import open_revision

_DEFAULTS = {"bootstrap": 1000, "seed": 0}  # of runs whose params.yaml has no section evaluate
_TEST = "test.parquet"
_KEY = ["category", "parent_asin"]


class RunScores(msgspec.Struct, frozen=True, kw_only=True):
    """A run on its own test split."""

    run: str
    commit: str  # abbreviated; empty outside of git, and if dvc.lock has changed since
    date: str  # of the commit, or of the predictions, such as 2026-11-29 08:05 UTC
    split: str | None  # sample.split: hash or time; None if the run has no such parameter
    fraction: float | None  # sample.fraction
    samples: int
    plcc: float
    interval: LowHigh  # 95 %
    srcc: float
    mae: float  # stars
    rmse: float


class GroupDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs on a group of the items that both test with the same label."""

    by: str  # category or rating_number
    group: str
    samples: int
    plcc: tuple[float, float] | None = None  # of both; None if there are few items
    difference: float | None = None
    interval: LowHigh | None = None  # 95 %, paired


class RunComparison(msgspec.Struct, frozen=True):
    """Two runs."""

    runs: list[RunScores]
    shared: int  # items with the same label that both test
    relabelled: int  # items that both test, with another label
    difference: float | None  # PLCC of the second less that of the first, on the shared items; None if they are few
    interval: LowHigh | None  # 95 %, paired
    groups: list[GroupDifference]
    parameters: dict[str, list[Any]]  # values of both, of the parameters that differ


@dataclass(frozen=True)
class Run:
    """A run as read: its predictions on its test split, and where they are from."""

    name: str
    predictions: pd.DataFrame
    params: Mapping[str, Any]
    commit: str  # see RunScores
    date: str

    @property
    def resampling(self) -> tuple[int, int]:
        """Number and seed of the resamples of an interval, so that the run's report has the same."""
        found = _DEFAULTS | (self.params.get("evaluate") or {})
        return int(found["bootstrap"]), int(found["seed"])

    @cached_property
    def scores(self) -> RunScores:
        """The run on its own test split."""
        stars, labels = self.predictions["prediction"].to_numpy(), self.predictions["average_rating"].to_numpy()
        sample = self.params.get("sample") or {}
        return RunScores(
            run=self.name,
            commit=self.commit,
            date=self.date,
            split=sample.get("split"),
            fraction=sample.get("fraction"),
            samples=len(labels),
            plcc=metrics.plcc(stars, labels),
            interval=metrics.plcc_interval(stars, labels, *self.resampling),
            srcc=metrics.srcc(stars, labels),
            mae=metrics.mae(stars, labels),
            rmse=metrics.rmse(stars, labels),
        )


def read_run(name: str, repo: str = ".", shown: str = "") -> Run:
    """Return the predictions of a run on its test split, its parameters and its commit.

    Args:
        name: a project folder, or a tag, branch, commit or experiment of `repo`.
        repo: path or URL of a git repository.
        shown: what to call it; `name` by default.

    Raises:
        UserError: there are no predictions, or they cannot be read.
    """
    if Path(name).is_dir():
        return _read_folder(Path(name), shown or name)
    root = str(Path(repo).resolve()) if Path(repo).exists() else repo
    system, path = open_revision(root, name, "data/predictions")
    commit = system.repo.scm.resolve_commit(system.repo.get_rev())
    try:
        with system.open(f"{path}/{_TEST}", "rb") as file:
            predictions = _table(pa.BufferReader(file.read()), f"data/predictions/{_TEST} of {name}")
        with system.open("/params.yaml", "r") as file:
            return Run(shown or name, predictions, _yaml(file.read()), commit.hexsha[:7], _utc(commit.commit_time))
    except FileNotFoundError as error:
        raise UserError(
            f"{name} of {repo} has no {Path(str(error.filename or error)).name}; name another revision"
        ) from None


def compare(first: Run, second: Run) -> RunComparison:
    """Return how two runs compare."""
    both = first.predictions.merge(second.predictions, on=_KEY, suffixes=("_1", "_2")).sort_values(_KEY)
    shared = both[both["average_rating_1"] == both["average_rating_2"]]
    whole = _difference("all", "all", shared, second.resampling)
    return RunComparison(
        runs=[first.scores, second.scores],
        shared=len(shared),
        relabelled=len(both) - len(shared),
        difference=whole.difference,
        interval=whole.interval,
        groups=[_difference(by, name, rows, second.resampling) for by, name, rows in _groups(shared)],
        parameters=_differing([first.params, second.params]),
    )


def previous_run(folder: Path) -> str | None:
    """Return the last commit of a project whose predictions differ from those of its folder; None if there is none.

    Raises:
        UserError: the folder is in no git repository.
    """
    lock = folder / "dvc.lock"
    own = _predictions_hash(lock.read_text(encoding="utf-8") if lock.exists() else "")
    for commit in git(folder, "log", "--format=%h", "--", "dvc.lock").split():
        if _predictions_hash(git(folder, "show", f"{commit}:./dvc.lock")) not in {own, None}:
            return commit
    return None


def compare_table(found: RunComparison) -> Group:
    """Return the result of `compare` as tables to print."""
    scores = Table("run", title="Each run on its own test split", box=SIMPLE_HEAD)
    for name in ("samples", "PLCC", "95 % interval", "SRCC", "MAE", "RMSE"):
        scores.add_column(name, justify="right")
    for run in found.runs:
        numbers = (f"{value:.3f}" for value in (run.srcc, run.mae, run.rmse))
        name = f"{escape(run.run)}\n{run.commit or 'not committed'}, {run.date[:10]}"
        scores.add_row(name, f"{run.samples:,}", f"{run.plcc:.3f}", _interval(run.interval), *numbers)
    shown: list[Any] = [scores, _sentence(found)]
    if any(group.difference is not None for group in found.groups):
        shown.append(_groups_table(found.groups))
    if found.parameters:
        parameters = Table(
            "parameter", *(escape(run.run) for run in found.runs), title="Parameters that differ", box=SIMPLE_HEAD
        )
        for name, values in found.parameters.items():
            parameters.add_row(escape(name), *(escape(str(value)) for value in values))
        shown.append(parameters)
    return Group(*shown)


def _groups_table(groups: Sequence[GroupDifference]) -> Table:
    table = Table("items of", title="Difference by group", box=SIMPLE_HEAD)
    for name in ("samples", "difference", "95 % interval"):
        table.add_column(name, justify="right")
    for group in groups:
        name = f"{group.group} ratings" if group.by == "rating_number" else group.group
        numbers = ("", f"fewer than {SMALL}")
        if group.difference is not None and group.interval is not None:
            numbers = (f"{group.difference:+.3f}", _interval(group.interval, "+"))
        table.add_row(escape(name), f"{group.samples:,}", *numbers)
    return table


def _interval(interval: LowHigh, sign: str = "") -> str:
    low, high = interval
    return f"{low:{sign}.3f} to {high:{sign}.3f}"


def paired(found: RunComparison) -> str:
    """Return the paired difference of two runs with its interval as text; empty if too few items are shared."""
    if found.difference is None or found.interval is None:
        return ""
    return f"{found.difference:+.3f} ({_interval(found.interval, '+')})"


def _sentence(found: RunComparison) -> str:
    of = f"{found.shared:,} items that both test" + (
        f", and {found.relabelled:,} with another label are left out" if found.relabelled else ""
    )
    if found.difference is None:
        return f"There are {of}: fewer than {SMALL}, so the runs are not compared item by item."
    first, second = (escape(run.run) for run in found.runs)
    return f"On {of}, the PLCC of {second} less that of {first} is {paired(found)}."


def _groups(shared: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield grouping, name and items of each category and of each bucket of rating_number that has items."""
    for category, rows in shared.groupby("category"):
        yield "category", str(category), rows
    bucket = count_bucket(shared["rating_number_2"].to_numpy())
    for number, name in enumerate(count_bucket_names()):
        if (chosen := bucket == number).any():
            yield "rating_number", name, shared[chosen]


def _difference(by: str, group: str, rows: pd.DataFrame, resampling: tuple[int, int]) -> GroupDifference:
    """Return the difference of both runs on items that both test with the same label."""
    if len(rows) < SMALL:
        return GroupDifference(by=by, group=group, samples=len(rows))
    first, second, labels = (rows[name].to_numpy() for name in ("prediction_1", "prediction_2", "average_rating_1"))
    difference, low, high = metrics.lead(second, first, labels, *resampling)
    return GroupDifference(
        by=by,
        group=group,
        samples=len(rows),
        plcc=(metrics.plcc(first, labels), metrics.plcc(second, labels)),
        difference=difference,
        interval=(low, high),
    )


def _read_folder(folder: Path, name: str) -> Run:
    table, params = folder / "data/predictions" / _TEST, folder / "params.yaml"
    if not table.exists():
        raise UserError(f"{table} does not exist; run `dvc repro evaluate` there, or name a git revision")
    text = params.read_text(encoding="utf-8") if params.exists() else ""
    return Run(name, _table(table, str(table)), _yaml(text), *_commit_of(folder, table))


def _commit_of(folder: Path, table: Path) -> tuple[str, str]:
    """Return the commit of a folder's run, and its date; no commit, and the date of its predictions, if it has none."""
    with suppress(UserError, ValueError):  # no repository, or no commit
        commit, seconds = git(folder, "log", "-1", "--format=%h %ct").split()
        is_tracked = git(folder, "ls-files", "--", "params.yaml")  # not so in a copy within another project
        changes = git(folder, "status", "--porcelain", "--untracked-files=no", "--", "dvc.lock", "params.yaml")
        if is_tracked and not changes:
            return commit, _utc(int(seconds))
    return "", _utc(table.stat().st_mtime)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _predictions_hash(lock: str) -> str | None:
    """Return the hash of data/predictions in the text of a dvc.lock; None if it has none."""
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    outputs = (output for stage in stages.values() for output in stage.get("outs", ()))
    return next((output.get("md5") for output in outputs if output["path"] == "data/predictions"), None)


def _table(source: Any, where: str) -> pd.DataFrame:
    try:
        return pq.read_table(source, columns=[*_KEY, "average_rating", "rating_number", "prediction"]).to_pandas()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{where} is not a table of predictions ({first_sentence(error)}); run `dvc repro evaluate`"
        ) from None


def _yaml(text: str) -> Mapping[str, Any]:
    return YAML(typ="safe", pure=True).load(text) or {}


def _differing(params: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of the parameters that differ, by dotted key; None where a run does not have one."""
    values = [dict(flatten(each)) for each in params]
    keys = list(dict.fromkeys(key for each in values for key in each))
    return {key: [each.get(key) for each in values] for key in keys if values[0].get(key) != values[1].get(key)}
