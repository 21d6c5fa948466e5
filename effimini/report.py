"""The report: a self-contained HTML page, and a table of metrics for the terminal.

Input: the parameters, the metrics and tables of the evaluation, the stages' ``report.json`` files and DVCLive's curves.
Output: HTML with inline SVG and images that needs no network, and a rich table. Guarantees: the same inputs give the
same bytes (no dates, no random ids); numbers from demo data are marked as such.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from effimini import plots
from effimini.ceiling import FEW
from effimini.examples import Example
from effimini.metrics import Evaluation, Scores, Slice
from effimini.provenance import Training
from effimini.published import PUBLISHED
from effimini.slices import ALL, SMALL
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params, flatten
from prep.core.reports import Funnel
from prep.core.templates import DEMO_NOTICE, render
from prep.weights import SampleWeights
from shards.summary import Summary
from validation.tables import TABLES

STAGES = ("download", "join", "groups", "sample", "fetch", "decontaminate", "shard", "evaluate")
LIBRARIES = ("torch", "timm", "transformers", "tokenizers", "simplejpeg", "scikit-learn", "numpy", "pyarrow")
_COLUMNS = ("PLCC", "95 % interval", "model ahead by", "SRCC", "MAE", "RMSE", "std dev", "CES")
_GROUPINGS = {  # title of the table with the slices of each grouping
    "category": "By category",
    "rating_number": "By number of ratings",
    "image": "By missing input",
    "features": "By missing input",
    "description": "By missing input",
    "script": "By script of the text",
    "price": "By price",
}
_IN_TERMINAL = (ALL, "category", "rating_number")  # groupings
_ONLY_IN_PAGE = ("model ahead by", "std dev")  # omitted in the terminal


class StageReport(msgspec.Struct, frozen=True):
    """The part of a stage's report.json that is shown: its row accounting."""

    stage: str
    tables: dict[str, Funnel]
    before: tuple["StageReport", ...] = ()  # of the upstream stages


class _Grouping(NamedTuple):
    """The slices that are shown in one table."""

    title: str
    slices: list[Slice]


class _FunnelRow(NamedTuple):
    """The row accounting of one table of a stage."""

    stage: str
    table: str
    rows_in: str
    rows_out: str
    dropped: list[str]  # reasons with their counts


def read_evaluation(path: Path) -> Evaluation:
    """Read results/evaluation.json.

    Raises:
        UserError: it is missing, or was written by another version.
    """
    try:
        return msgspec.convert(files.read_json(path), Evaluation)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not a valid evaluation ({error}); run `dvc repro evaluate`") from None


def metrics_table(measured: Evaluation) -> Table:
    """Return the content of results/evaluation.json as a table to print."""
    title = f"Test split, {measured.samples} samples"
    if measured.source == "demo":
        title = f"{DEMO_NOTICE}\n{title}"
    shown = [name for name in _COLUMNS if name not in _ONLY_IN_PAGE]
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    table.add_column("predictor", no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for predictor, *cells in _metric_rows(measured.test):
        row = dict(zip(_COLUMNS, cells, strict=True))
        table.add_row(predictor, *(row[name] for name in shown))
    return table


def ceiling_table(measured: Evaluation) -> Table:
    """Return the PLCC and the noise ceiling by category and rating count, as a table to print."""
    table = Table(title="Noise ceiling: PLCC of the items' true mean ratings", box=SIMPLE_HEAD, padding=0)
    table.add_column("samples of", overflow="fold")
    for name in ("samples", "PLCC", "ceiling", "95 % interval", "gap that is noise"):
        table.add_column(name, justify="right")
    for part in measured.slices:
        if part.by in _IN_TERMINAL:
            name = {ALL: "all", "rating_number": f"{part.group} ratings"}.get(part.by, part.group)
            shown = [_number(part.plcc), _number(part.ceiling), _interval(part.ceiling_low, part.ceiling_high)]
            table.add_row(escape(name), f"{part.samples:,}", *shown, _percent(part.noise_share))
    return table


def result_tables(measured: Evaluation) -> Group:
    """Return the content of results/evaluation.json as tables to print."""
    shown = [part for part in measured.slices if part.by in _IN_TERMINAL]
    empty = f"Empty: fewer than {SMALL} samples, or too uncertain; the report says which."
    why = [empty] if any(part.note for part in shown) else []
    return Group(metrics_table(measured), ceiling_table(measured), *why)


def report_page(
    params: Params,
    training: Training | None,
    measured: Evaluation,
    weights: SampleWeights,
    tables: Mapping[str, pd.DataFrame],
    examples: Mapping[str, Sequence[Example]],
    shards: Summary,
    reports: Sequence[StageReport],
    train: Path,
) -> str:
    """Return the report as HTML.

    Args:
        params: the parameters of the evaluation.
        training: the training record of the model, if it has one.
        measured: the content of results/evaluation.json.
        weights: the content of data/weights.json.
        tables: predictions, calibration and weights, as written to results/plots.
        examples: the result of `effimini.examples.examples`.
        shards: the result of `shards.summary.summarise` for the evaluated shards.
        reports: the report.json of each stage and category.
        train: the folder written by DVCLive.
    """
    return render(
        "effimini",
        "report.html.jinja",
        {
            "demo": DEMO_NOTICE if measured.source == "demo" else "",
            "categories": params.source.categories,
            "training": training,
            "measured": measured,
            "columns": _COLUMNS,
            "metric_rows": _metric_rows(measured.test),
            "published": PUBLISHED,
            "examples": examples,
            "whole": measured.slices[0],
            "groupings": _groupings(measured.slices),
            "rival": _rival(measured.slices[0]),
            "few": FEW,
            "small": SMALL,
            "weights": tables["weights"].to_dict("records"),
            "weighing": weights,
            "funnel": _funnel_rows(reports),
            "shards": shards,
            "versions": [(name, version(name)) for name in LIBRARIES],
            "parameters": [_parameter_row(*each) for each in flatten(_shown_parameters(params, training))],
            "plots": {
                "scatter": plots.plot_predictions(tables["predictions"]),
                "calibration": plots.plot_calibration(tables["calibration"]),
                "spread": plots.plot_spread(tables["predictions"]),
                "baselines": plots.plot_baselines(measured.test),
                "weighing": plots.plot_weights(tables["weights"]),
                "curves": plots.plot_curves(train),
            },
            "docs": TABLES,
        },
        {"number": _number, "interval": _interval, "percent": _percent},
    )


def _metric_rows(scores: Mapping[str, Scores]) -> list[list[str]]:
    """Return one row per predictor: its name and a cell for each of `_COLUMNS`."""
    return [
        [
            name,
            f"{row.plcc:.3f}",
            f"{row.plcc_low:.3f} to {row.plcc_high:.3f}",
            "" if row.behind is None else f"{row.behind:.3f} ({row.behind_low:.3f} to {row.behind_high:.3f})",
            *(f"{value:.3f}" for value in (row.srcc, row.mae, row.rmse, row.spread)),
            "" if row.ces is None else f"{row.ces:.3f}",
        ]
        for name, row in scores.items()
    ]


def _groupings(slices: Sequence[Slice]) -> list[_Grouping]:
    """Return the slices by the table that shows them, without that of the whole split."""
    shown = [part for part in slices if part.by != ALL]
    return [_Grouping(title, list(parts)) for title, parts in groupby(shown, lambda part: _GROUPINGS[part.by])]


def _rival(whole: Slice) -> str:
    """Return the baseline with the highest PLCC; empty if there is none."""
    return max(whole.baselines, key=lambda name: whole.baselines[name], default="")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}".replace("%", " %")


def _funnel_rows(reports: Sequence[StageReport]) -> list[_FunnelRow]:
    """Return the row accounting of each table in stage order, summed over the categories."""
    by_table: dict[tuple[int, str, str], list[Funnel]] = {}
    for report in reports:
        order = STAGES.index(report.stage) if report.stage in STAGES else len(STAGES)
        for table, funnel in report.tables.items():
            by_table.setdefault((order, report.stage, table), []).append(funnel)
    rows = []
    for (_, stage, table), funnels in sorted(by_table.items()):
        reasons: Counter[str] = Counter()
        for funnel in funnels:
            reasons.update(funnel.dropped)
        dropped = sorted(reasons.items(), key=lambda reason: (-reason[1], reason[0]))
        rows.append(
            _FunnelRow(
                stage,
                table,
                f"{sum(funnel.rows_in for funnel in funnels):,}",
                f"{sum(funnel.rows_out for funnel in funnels):,}",
                [f"{reason.replace('_', ' ')} {count:,}" for reason, count in dropped],
            )
        )
    return rows


def _shown_parameters(params: Params, training: Training | None) -> dict[str, Any]:
    """Return the parameters that the page depends on: those of the shards, the model and the evaluation."""
    recorded = {"source": msgspec.to_builtins(training.source)} | training.parameters if training else {}
    return recorded | {name: msgspec.to_builtins(getattr(params, name)) for name in ("weights", "evaluate")}


def _parameter_row(name: str, value: Any) -> tuple[str, str]:
    return name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
