"""The report: one self-contained page, and the table of metrics for the terminal.

In: the parameters, the measured numbers and tables, the stages' ``report.json`` files and DVCLive's curves.
Out: HTML with inline SVG that needs no network, and a rich table. Guaranteed: the same inputs give the same
bytes (no dates, no random ids); numbers from demo data are marked as such.
"""

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib as mpl
import msgspec
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.table import Table

from prep import files
from prep.params import Params
from prep.templates import DEMO, render

STAGES = ("download", "join", "groups", "sample", "fetch", "shard", "evaluate")
_INK = "#010203"  # becomes the page's text colour, so that plots follow light and dark
_BLUE, _RED = "#4477aa", "#cc6677"  # legible on both
_SCATTER = 5000  # points drawn at most


def metrics_table(content: dict[str, Any]) -> Table:
    """Return the content of results/metrics.json as a table to print."""
    title = f"Test split, {content['samples']} samples"
    if content["source"] == "demo":
        title = f"{DEMO}\n{title}"
    table = Table(title=title)
    table.add_column("predictor")
    for name in ("PLCC", "95 % interval", "SRCC", "MAE", "RMSE", "CES"):
        table.add_column(name, justify="right")
    for row in _metric_rows(content):
        table.add_row(*row)
    return table


def page(params: Params, measured: dict[str, Any], tables: dict[str, pd.DataFrame], data: Path, train: Path) -> str:
    """Return the report as HTML.

    Args:
        params: of the run.
        measured: the content of results/metrics.json.
        tables: predictions, calibration, baselines and groups, as written to results/plots.
        data: where the stages' report.json files are.
        train: DVCLive's folder.
    """
    return render(
        "effimini",
        "report.html.jinja",
        {
            "demo": DEMO if measured["source"] == "demo" else "",
            "categories": params.source.categories,
            "fraction": params.sample.fraction,
            "measured": measured,
            "metric_rows": _metric_rows(measured),
            "groups": _group_rows(tables["groups"]),
            "funnel": _funnel(data),
            "parameters": _flat({name: msgspec.to_builtins(part) for name, part in _sections(params)}),
            "scatter": _scatter(tables["predictions"]),
            "calibration": _calibration(tables["calibration"]),
            "baselines": _bars(measured),
            "curves": _curves(train),
        },
    )


def _metric_rows(content: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            f"{m['plcc']:.3f}",
            f"{m['plcc_low']:.3f} to {m['plcc_high']:.3f}",
            *(f"{m[key]:.3f}" for key in ("srcc", "mae", "rmse")),
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


def _funnel(data: Path) -> list[dict[str, Any]]:
    """Return rows in, out and dropped by reason of each stage's tables, summed over the categories, in stage order."""
    sums: dict[tuple[int, str, str], Counter[str]] = {}
    reasons: dict[tuple[int, str, str], Counter[str]] = {}
    for path in sorted([*data.glob("*/report.json"), *data.glob("*/*/report.json")]):
        content = files.read_json(path)
        stage = content.get("stage", path.parent.name)
        for table, funnel in content.get("tables", {}).items():
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


def _sections(params: Params) -> list[tuple[str, Any]]:
    """Return the sections that the results depend on: how images are fetched and where work runs change nothing."""
    return [(name, getattr(params, name)) for name in params.__struct_fields__ if name not in {"fetch", "dask"}]


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in content.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            rows.append((prefix + key, shown))
    return rows


def _svg(name: str, figure: Figure) -> Markup:
    """Return a figure as SVG to stand in the page; the same figure gives the same text."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # figure_1, axes_1: the same in every figure of the page
    return Markup(text)  # noqa: S704 -- made by matplotlib, which escapes the texts in it


def _axes(figure: Figure, rows: int = 1, columns: int = 1, number: int = 1) -> Any:
    axes = figure.add_subplot(rows, columns, number)
    axes.tick_params(colors=_INK, labelsize=8, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.title.set_color(_INK)
    axes.title.set_fontsize(9)
    return axes


def _scatter(predictions: pd.DataFrame) -> Markup:
    every = max(1, -(-len(predictions) // _SCATTER))
    shown = predictions.iloc[::every]
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = _axes(figure)
    axes.plot([1, 5], [1, 5], color=_INK, linewidth=0.6, linestyle=":")
    axes.scatter(shown["prediction"], shown["average_rating"], s=9, alpha=0.45, color=_BLUE, linewidths=0)
    axes.set(xlim=(0.9, 5.1), ylim=(0.9, 5.1), xlabel="prediction, stars", ylabel="average_rating, stars")
    return _svg("scatter", figure)


def _calibration(bins: pd.DataFrame) -> Markup:
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = _axes(figure)
    ends = [min(bins["prediction"].min(), bins["average_rating"].min()) - 0.05]
    ends.append(max(bins["prediction"].max(), bins["average_rating"].max()) + 0.05)
    axes.plot(ends, ends, color=_INK, linewidth=0.6, linestyle=":")
    axes.plot(bins["prediction"], bins["average_rating"], marker="o", markersize=4, linewidth=1, color=_BLUE)
    axes.set(xlabel="mean prediction of a tenth of the samples", ylabel="their mean average_rating")
    return _svg("calibration", figure)


def _bars(measured: dict[str, Any]) -> Markup:
    names = list(measured["test"])
    values = np.array([measured["test"][name]["plcc"] for name in names])
    low = np.array([measured["test"][name]["plcc_low"] for name in names])
    high = np.array([measured["test"][name]["plcc_high"] for name in names])
    figure = Figure(figsize=(6.4, 0.4 * len(names) + 0.8), layout="constrained")
    axes = _axes(figure)
    axes.barh(names, values, color=[_BLUE, *["#999999"] * (len(names) - 1)], height=0.55)
    spread = np.maximum(0, [values - low, high - values])
    axes.errorbar(values, names, xerr=spread, fmt="none", ecolor=_INK, elinewidth=1, capsize=3)
    axes.axvline(0, color=_INK, linewidth=0.6)
    axes.invert_yaxis()
    axes.set(xlabel="PLCC on the test split, 95 % bootstrap interval")
    return _svg("baselines", figure)


def _curves(train: Path) -> Markup:
    """Draw each curve of DVCLive by epoch; loss of both splits in one plot."""
    folder = train / "plots" / "metrics"
    curves = {
        path.relative_to(folder).with_suffix("").as_posix(): pd.read_csv(path, sep="\t")
        for path in sorted(folder.rglob("*.tsv"))
    }
    panels = [
        ("loss", {"train/loss": _BLUE, "validation/loss": _RED}),
        ("validation PLCC", {"validation/plcc": _RED}),
        ("learning rate", {"train/learning_rate": _BLUE}),
    ]
    figure = Figure(figsize=(9.0, 2.6), layout="constrained")
    for number, (title, names) in enumerate(panels, 1):
        axes = _axes(figure, 1, len(panels), number)
        axes.set(title=title, xlabel="epoch")
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        axes.yaxis.get_offset_text().set(color=_INK, size=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for name, colour in names.items():
            if name in curves:
                curve = curves[name]
                axes.plot(
                    curve["step"] + 1, curve.iloc[:, -1], marker="o", markersize=3, linewidth=1, color=colour,
                    label=name.split("/")[0],
                )  # fmt: skip
        if len(names) > 1 and axes.lines:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return _svg("curves", figure)
