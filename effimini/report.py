"""The report: one self-contained page, and the table of metrics for the terminal.

In: the parameters, the measured numbers and tables, the stages' ``report.json`` files and DVCLive's curves.
Out: HTML with inline SVG and pictures that needs no network, and a rich table. Guaranteed: the same inputs give the
same bytes (no dates, no random ids); numbers from demo data are marked as such.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from effimini import plots
from effimini.provenance import Training
from effimini.published import PUBLISHED
from prep.core.params import Params
from prep.core.templates import DEMO, render
from validation.tables import TABLES

STAGES = ("download", "join", "groups", "sample", "fetch", "shard", "evaluate")
LIBRARIES = ("torch", "timm", "transformers", "tokenizers", "simplejpeg", "scikit-learn", "numpy", "pyarrow")
_COLUMNS = ("PLCC", "95 % interval", "model ahead by", "SRCC", "MAE", "RMSE", "spread", "CES")
_WIDE = ("model ahead by", "spread")  # left out in a terminal


def metrics_table(content: dict[str, Any]) -> Table:
    """Return the content of results/evaluation.json as a table to print."""
    title = f"Test split, {content['samples']} samples"
    if content["source"] == "demo":
        title = f"{DEMO}\n{title}"
    shown = [name for name in _COLUMNS if name not in _WIDE]
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)
    table.add_column("predictor", no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for predictor, *cells in _metric_rows(content):
        of = dict(zip(_COLUMNS, cells, strict=True))
        table.add_row(predictor, *(of[name] for name in shown))
    return table


def page(
    params: Params,
    training: Training | None,
    measured: dict[str, Any],
    tables: Mapping[str, pd.DataFrame],
    examples: Mapping[str, Sequence[Any]],
    shards: Mapping[str, Any],
    reports: Sequence[Mapping[str, Any]],
    train: Path,
) -> str:
    """Return the report as HTML.

    Args:
        params: of the evaluation.
        training: what the model was trained on and with, if it says so.
        measured: the content of results/evaluation.json.
        tables: predictions, calibration, baselines, groups and weights, as written to results/plots.
        examples: what `effimini.examples.examples` chose.
        shards: what `shards.summary.summarise` gives of those measured on.
        reports: the stages' report.json of each category.
        train: DVCLive's folder.
    """
    return render(
        "effimini",
        "report.html.jinja",
        {
            "demo": DEMO if measured["source"] == "demo" else "",
            "categories": params.source.categories,
            "training": training,
            "measured": measured,
            "columns": _COLUMNS,
            "metric_rows": _metric_rows(measured),
            "published": PUBLISHED,
            "examples": examples,
            "groups": _group_rows(tables["groups"]),
            "weights": tables["weights"].to_dict("records"),
            "weighs": params.weights,
            "funnel": _funnel(reports),
            "shards": shards,
            "versions": [(name, version(name)) for name in LIBRARIES],
            "parameters": _flat(_parameters(params, training)),
            "plots": {
                "scatter": plots.scatter(tables["predictions"]),
                "calibration": plots.calibration(tables["calibration"]),
                "spread": plots.spread(tables["predictions"]),
                "baselines": plots.bars(measured),
                "weighing": plots.weighing(tables["weights"]),
                "curves": plots.curves(train),
            },
            "docs": TABLES,
        },
    )


def _metric_rows(content: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            f"{m['plcc']:.3f}",
            f"{m['plcc_low']:.3f} to {m['plcc_high']:.3f}",
            f"{m['behind']:.3f} ({m['behind_low']:.3f} to {m['behind_high']:.3f})" if "behind" in m else "",
            *(f"{m[key]:.3f}" for key in ("srcc", "mae", "rmse", "spread")),
            f"{m['ces']:.3f}" if "ces" in m else "",
        ]
        for name, m in content["test"].items()
    ]


def _group_rows(groups: pd.DataFrame) -> list[dict[str, Any]]:
    """Return, for each way of grouping, its header and rows of PLCC by predictor."""
    names = [column for column in groups.columns if column.endswith(" PLCC")]
    return [
        {
            "by": by,
            "header": [name.removesuffix(" PLCC") for name in names],
            "rows": [
                [row["group"], f"{row['samples']:,}", *(f"{row[name]:.3f}" for name in names)]
                for row in part.to_dict("records")
            ],
        }
        for by, part in groups.groupby("by", sort=False)
    ]


def _funnel(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows in, out and dropped by reason of each stage's tables, summed over the categories, in stage order."""
    sums: dict[tuple[int, str, str], Counter[str]] = {}
    reasons: dict[tuple[int, str, str], Counter[str]] = {}
    for content in reports:
        stage = content["stage"]
        for table, funnel in content["tables"].items():
            key = (STAGES.index(stage) if stage in STAGES else len(STAGES), stage, table)
            sums.setdefault(key, Counter()).update({"in": funnel["rows_in"], "out": funnel["rows_out"]})
            reasons.setdefault(key, Counter()).update(funnel["dropped"])
    return [
        {
            "stage": stage,
            "table": table,
            "rows_in": f"{sums[order, stage, table]['in']:,}",
            "rows_out": f"{sums[order, stage, table]['out']:,}",
            "dropped": [
                f"{reason.replace('_', ' ')} {count:,}"
                for reason, count in sorted(reasons[order, stage, table].items(), key=lambda r: (-r[1], r[0]))
            ],
        }
        for order, stage, table in sorted(sums)
    ]


def _parameters(params: Params, training: Training | None) -> dict[str, Any]:
    """Return the parameters that decided what the page shows: of the shards, of the model, of the evaluation."""
    made = {"source": msgspec.to_builtins(training.source)} | training.parameters if training else {}
    return made | {name: msgspec.to_builtins(getattr(params, name)) for name in ("weights", "evaluate")}


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in content.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            rows.append((prefix + key, shown))
    return rows
