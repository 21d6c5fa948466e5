"""Compare the predictions of two runs on their test splits.

Input: two runs, each a project folder or a git revision of a project: their data/predictions and params.yaml.
Output: the scores of each on its own test split, the differences on the items that both test, and the parameters that
differ.
Guarantees: a difference is paired by item, and is stated only where both runs test the same items with the same label.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from effimini.metrics import LowHigh
from prep.core.errors import UserError, first_sentence
from prep.core.params import flatten
from shards.revision import open_revision

FEWEST = 30  # items of a comparison
RESAMPLES, SEED = 2000, 0
_TEST = "test.parquet"
_KEY = ["category", "parent_asin"]


class RunScores(msgspec.Struct, frozen=True):
    """A run on its own test split."""

    run: str
    samples: int
    plcc: float
    interval: LowHigh  # 95 %
    srcc: float
    mae: float  # stars
    rmse: float


class RunComparison(msgspec.Struct, frozen=True):
    """Two runs."""

    runs: list[RunScores]
    shared: int  # items with the same label that both test
    relabelled: int  # items that both test, with another label
    difference: float | None  # PLCC of the second less that of the first, on the shared items; None if they are few
    interval: LowHigh | None  # 95 %, paired
    parameters: dict[str, list[Any]]  # values of both, of the parameters that differ


class _Run(NamedTuple):
    predictions: pd.DataFrame
    params: Mapping[str, Any]


def compare(first: str, second: str, repo: str = ".") -> RunComparison:
    """Return how two runs compare.

    Args:
        first: a project folder, or a tag, branch, commit or experiment of `repo`.
        second: likewise.
        repo: path or URL of a git repository.

    Raises:
        UserError: a run has no predictions, or they cannot be read.
    """
    runs = [_read(name, repo) for name in (first, second)]
    both = runs[0].predictions.merge(runs[1].predictions, on=_KEY, suffixes=("_1", "_2")).sort_values(_KEY)
    shared = both[both["average_rating_1"] == both["average_rating_2"]]
    found = None
    if len(shared) >= FEWEST:
        stars = [shared[f"prediction_{number}"].to_numpy() for number in (2, 1)]
        found = metrics.lead(stars[0], stars[1], shared["average_rating_1"].to_numpy(), RESAMPLES, SEED)
    return RunComparison(
        runs=[_scores(name, run.predictions) for name, run in zip((first, second), runs, strict=True)],
        shared=len(shared),
        relabelled=len(both) - len(shared),
        difference=found and found[0],
        interval=found and (found[1], found[2]),
        parameters=_differing([run.params for run in runs]),
    )


def compare_table(found: RunComparison) -> Group:
    """Return the result of `compare` as tables to print."""
    scores = Table("run", title="Each run on its own test split", box=SIMPLE_HEAD)
    for name in ("samples", "PLCC", "95 % interval", "SRCC", "MAE", "RMSE"):
        scores.add_column(name, justify="right")
    for run in found.runs:
        numbers = (f"{value:.3f}" for value in (run.srcc, run.mae, run.rmse))
        low, high = run.interval
        scores.add_row(escape(run.run), f"{run.samples:,}", f"{run.plcc:.3f}", f"{low:.3f} to {high:.3f}", *numbers)
    shown: list[Any] = [scores, _sentence(found)]
    if found.parameters:
        parameters = Table(
            "parameter", *(escape(run.run) for run in found.runs), title="Parameters that differ", box=SIMPLE_HEAD
        )
        for name, values in found.parameters.items():
            parameters.add_row(escape(name), *(escape(str(value)) for value in values))
        shown.append(parameters)
    return Group(*shown)


def _sentence(found: RunComparison) -> str:
    of = f"{found.shared:,} items that both test" + (
        f", and {found.relabelled:,} with another label are left out" if found.relabelled else ""
    )
    if found.difference is None or found.interval is None:
        return f"There are {of}: fewer than {FEWEST}, so the runs are not compared item by item."
    low, high = found.interval
    return (
        f"On {of}, the PLCC of {escape(found.runs[1].run)} less that of {escape(found.runs[0].run)} is "
        f"{found.difference:+.3f} ({low:+.3f} to {high:+.3f})."
    )


def _read(name: str, repo: str) -> _Run:
    """Read the predictions on the test split, and the parameters."""
    if Path(name).is_dir():
        folder = Path(name)
        table, params = folder / "data/predictions" / _TEST, folder / "params.yaml"
        if not table.exists():
            raise UserError(f"{table} does not exist; run `dvc repro evaluate` there, or name a git revision")
        return _Run(_table(table, str(table)), _yaml(params.read_text(encoding="utf-8") if params.exists() else ""))
    root = str(Path(repo).resolve()) if Path(repo).exists() else repo
    system, path = open_revision(root, name, "data/predictions")
    try:
        with system.open(f"{path}/{_TEST}", "rb") as file:
            predictions = _table(pa.BufferReader(file.read()), f"data/predictions/{_TEST} of {name}")
        with system.open("/params.yaml", "r") as file:
            return _Run(predictions, _yaml(file.read()))
    except FileNotFoundError as error:
        raise UserError(
            f"{name} of {repo} has no {Path(str(error.filename or error)).name}; name another revision"
        ) from None


def _table(source: Any, where: str) -> pd.DataFrame:
    try:
        return pq.read_table(source, columns=[*_KEY, "average_rating", "prediction"]).to_pandas()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{where} is not a table of predictions ({first_sentence(error)}); run `dvc repro evaluate`"
        ) from None


def _yaml(text: str) -> Mapping[str, Any]:
    return YAML(typ="safe", pure=True).load(text) or {}


def _scores(name: str, predictions: pd.DataFrame) -> RunScores:
    stars, labels = predictions["prediction"].to_numpy(), predictions["average_rating"].to_numpy()
    return RunScores(
        run=name,
        samples=len(labels),
        plcc=metrics.plcc(stars, labels),
        interval=metrics.plcc_interval(stars, labels, RESAMPLES, SEED),
        srcc=metrics.srcc(stars, labels),
        mae=metrics.mae(stars, labels),
        rmse=metrics.rmse(stars, labels),
    )


def _differing(params: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of the parameters that differ, by dotted key; None where a run does not have one."""
    values = [dict(flatten(each)) for each in params]
    keys = list(dict.fromkeys(key for each in values for key in each))
    return {key: [each.get(key) for each in values] for key in keys if values[0].get(key) != values[1].get(key)}
