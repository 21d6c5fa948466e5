"""The figures of the report, as inline SVG.

Input: the measured numbers and tables. Output: markup. Guarantees: the same numbers give the same bytes (no date, no
random id); lines and text use the page's text color, in light and dark mode.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from effimini.metrics import Scores
from effimini.training_curve import STEPS_FILE

_INK = "#010203"  # replaced by the page's text color, so that plots follow light and dark mode
_BLUE, _RED, _GREY = "#4477aa", "#cc6677", "#999999"  # legible in both modes
_SCATTER = 5000  # maximum number of points drawn


def _svg(name: str, figure: Figure) -> Markup:
    """Return a figure as inline SVG; the same figure gives the same text."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # figure_1, axes_1: they repeat in every figure of the page
    return Markup(text)  # noqa: S704 -- from matplotlib, which escapes the text


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


def plot_predictions(predictions: pd.DataFrame) -> Markup:
    """Plot labels against predictions, at most `_SCATTER` evenly picked points."""
    step = max(1, -(-len(predictions) // _SCATTER))
    shown = predictions.iloc[::step]
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = _axes(figure)
    axes.plot([1, 5], [1, 5], color=_INK, linewidth=0.6, linestyle=":")
    axes.scatter(shown["prediction"], shown["average_rating"], s=9, alpha=0.45, color=_BLUE, linewidths=0)
    axes.set(xlim=(0.9, 5.1), ylim=(0.9, 5.1), xlabel="prediction, stars", ylabel="average_rating, stars")
    return _svg("scatter", figure)


def plot_spread(predictions: pd.DataFrame) -> Markup:
    """Plot histograms of predictions and labels, in bins of 0.1 stars."""
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = _axes(figure)
    edges = np.arange(0.95, 5.06, 0.1)
    axes.hist(predictions["average_rating"], edges, color=_GREY, alpha=0.6, label="average_rating")
    axes.hist(predictions["prediction"], edges, color=_BLUE, alpha=0.6, label="prediction")
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    axes.set(xlim=(0.9, 5.1), xlabel="stars", ylabel="samples")
    return _svg("spread", figure)


def plot_weights(groups: pd.DataFrame) -> Markup:
    """Plot the fraction of samples and of the total loss weight of each bucket of counts."""
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes = _axes(figure)
    places = np.arange(len(groups))
    axes.bar(places - 0.2, 100 * groups["samples"] / groups["samples"].sum(), 0.4, color=_GREY, label="% of samples")
    axes.bar(places + 0.2, 100 * groups["share of weight"], 0.4, color=_BLUE, label="% of weight")
    axes.set_xticks(places, groups["ratings"])
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    axes.set(xlabel="number of ratings", ylabel="%")
    return _svg("weighing", figure)


def plot_calibration(bins: pd.DataFrame) -> Markup:
    """Plot the mean label against the mean prediction of each bin."""
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = _axes(figure)
    ends = [min(bins["prediction"].min(), bins["average_rating"].min()) - 0.05]
    ends.append(max(bins["prediction"].max(), bins["average_rating"].max()) + 0.05)
    axes.plot(ends, ends, color=_INK, linewidth=0.6, linestyle=":")
    axes.plot(bins["prediction"], bins["average_rating"], marker="o", markersize=4, linewidth=1, color=_BLUE)
    axes.set(xlabel="mean prediction, stars", ylabel="mean average_rating, stars")
    return _svg("calibration", figure)


def plot_baselines(scores: Mapping[str, Scores]) -> Markup:
    """Plot the PLCC of each predictor with its 95 % interval; the first one is the model."""
    names = list(scores)
    values, low, high = np.array([(row.plcc, row.plcc_low, row.plcc_high) for row in scores.values()]).T
    figure = Figure(figsize=(6.4, 0.4 * len(names) + 0.8), layout="constrained")
    axes = _axes(figure)
    axes.barh(names, values, color=[_BLUE, *[_GREY] * (len(names) - 1)], height=0.55)
    errors = np.maximum(0, [values - low, high - values])
    axes.errorbar(values, names, xerr=errors, fmt="none", ecolor=_INK, elinewidth=1, capsize=3)
    axes.axvline(0, color=_INK, linewidth=0.6)
    axes.invert_yaxis()
    axes.set(xlabel="PLCC on the test split, 95 % bootstrap interval")
    return _svg("baselines", figure)


def plot_curve(curve: pd.DataFrame) -> Markup:
    """Plot the PLCC by number of training items: as measured, and the forecasts with their intervals."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = _axes(figure)
    for kind, color in (("measured", _BLUE), ("forecast", _RED)):
        rows = curve[curve["kind"] == kind]
        axes.plot(rows["items"], rows["plcc"], marker="o", markersize=4, linewidth=1, color=color, label=kind)
        axes.vlines(rows["items"], rows["low"], rows["high"], color=color, linewidth=1)
    axes.set_xscale("log")
    ticks = curve.loc[curve["kind"] != "backtest", "items"]
    axes.set_xticks(ticks, [f"{items:,}" for items in ticks], rotation=45, ha="right")
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8, labelcolor=_INK, loc="upper left")
    axes.set(xlabel="training items", ylabel="PLCC on the test split")
    return _svg("curve", figure)


def plot_curves(train: Path) -> Markup:
    """Plot the curves of a training: the metrics that DVCLive logged by epoch, and the points of steps.csv."""
    folder = train / "plots" / "metrics"
    curves = {
        path.relative_to(folder).with_suffix("").as_posix(): pd.read_csv(path, sep="\t")
        for path in sorted(folder.rglob("*.tsv"))
    }
    steps = pd.read_csv(train / STEPS_FILE) if (train / STEPS_FILE).exists() else pd.DataFrame()
    panels = [
        ("loss", "loss", {"train/loss": _BLUE, "validation/loss": _RED}),
        ("validation PLCC", None, {"validation/plcc": _RED, "validation/plcc_of_network": _GREY}),
        ("gradient norm", "gradient_norm", {}),
        ("learning rate", "learning_rate", {}),
    ]
    labels = {"validation/plcc": "with closed form", "validation/plcc_of_network": "network only"}
    figure = Figure(figsize=(10.0, 2.6), layout="constrained")
    for number, (title, by_step, by_epoch) in enumerate(panels, 1):
        axes = _axes(figure, 1, len(panels), number)
        axes.set(title=title, xlabel="epoch")
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
        axes.yaxis.get_offset_text().set(color=_INK, size=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if by_step in steps:
            axes.plot(steps["epoch"], steps[by_step], linewidth=0.8, color=_BLUE, alpha=0.6, label="train, steps")
        for name, colour in by_epoch.items():
            if name in curves:
                curve = curves[name]
                axes.plot(
                    curve["step"] + 1, curve.iloc[:, -1], marker="o", markersize=3, linewidth=1, color=colour,
                    label=labels.get(name, name.split("/")[0]),
                )  # fmt: skip
        if len(axes.lines) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
    return _svg("curves", figure)
