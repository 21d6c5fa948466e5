"""Evaluation metrics: correlation, error, and the challenge's CES.

Input: predictions and labels in stars. Output: numbers. Pure and deterministic; docs/paper.md has the formulas.
"""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats

Array = npt.NDArray[Any]
Values = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]
Stars = npt.NDArray[np.float32]  # predictions or labels, [N]
LowHigh = tuple[float, float]  # a 95 % interval


class Scores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The metrics of a predictor on the test split."""

    plcc: float
    plcc_low: float  # its 95 % interval
    plcc_high: float
    srcc: float
    mae: float  # stars
    rmse: float  # stars
    spread: float  # standard deviation of the predictions, stars
    ces: float | None = None  # only of the model
    coverage_90: float | None = None  # only of a model with intervals: fraction of labels in those that promise 0.9
    behind: float | None = None  # only of other predictors: PLCC of the model minus PLCC of this predictor
    behind_low: float | None = None  # its 95 % interval
    behind_high: float | None = None


class Costs(msgspec.Struct, frozen=True):
    """The cost of a model at its configured input size."""

    parameters: int
    flops: int  # of one sample
    C: float
    E: float


class LabelStats(msgspec.Struct, frozen=True):
    """Statistics of the labels of a split, stars."""

    mean: float
    spread: float  # standard deviation


class ModelSelection(msgspec.Struct, frozen=True):
    """The score on the validation split by which the model was chosen."""

    plcc: float
    samples: int


class Scatter(msgspec.Struct, frozen=True):
    """The variance of single ratings around an item's mean m, as a fraction of its maximum (5 - m) (m - 1)."""

    value: float
    low: float  # its 95 % interval
    high: float
    samples: int  # that it was estimated from, 0 if it could not be estimated


class Slice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The model on a part of the test split. What cannot be measured is None, and `note` says why."""

    by: str  # grouping: all, category, rating_number, image, features, description, script, price
    group: str
    samples: int
    label: float  # mean label, stars
    mae: float  # stars
    plcc: float | None = None
    plcc_low: float | None = None  # its 95 % interval
    plcc_high: float | None = None
    ceiling: float | None = None  # PLCC of the true mean ratings
    ceiling_low: float | None = None  # its 95 % interval
    ceiling_high: float | None = None
    noise_share: float | None = None  # fraction of 1 - plcc that is noise in the labels
    moved_without_image: float  # mean absolute change of the score when the image is left out, stars
    moved_without_text: float
    plcc_without_image: float | None = None
    plcc_without_text: float | None = None
    baselines: dict[str, float] = {}  # PLCC by baseline
    note: str = ""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The content of results/evaluation.json; on the test split unless stated otherwise."""

    source: str  # source.kind: demo, mirror, hub
    samples: int
    label: LabelStats
    test: dict[str, Scores]  # by predictor
    cost: Costs
    validation: ModelSelection
    scatter: Scatter  # estimated from the labels of all splits
    slices: tuple[Slice, ...]  # the first is the whole split


def plcc(predictions: Values, labels: Values) -> float:
    """Return Pearson's r of two arrays [N]; 0 if undefined: one of them is constant, or N < 2."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def srcc(predictions: Values, labels: Values) -> float:
    """Return Spearman's rank correlation, with mean ranks for ties; 0 if undefined, as `plcc`."""
    return plcc(stats.rankdata(predictions), stats.rankdata(labels))


def mae(predictions: Values, labels: Values) -> float:
    """Return the mean absolute error, stars."""
    return float(np.mean(np.abs(np.asarray(predictions, np.float64) - labels)))


def rmse(predictions: Values, labels: Values) -> float:
    """Return the root mean squared error, stars."""
    return float(np.sqrt(np.mean((np.asarray(predictions, np.float64) - labels) ** 2)))


def plcc_interval(predictions: Values, labels: Values, resamples: int, seed: int) -> LowHigh:
    """Return the 95 % bootstrap interval (low, high) of the PLCC of two arrays [N]; see `_interval`."""
    return _interval(lambda rows: plcc(predictions[rows], labels[rows]), len(labels), resamples, seed)


def lead(ours: Values, theirs: Values, labels: Values, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the PLCC of `ours` minus that of `theirs`, and its 95 % bootstrap interval (low, high); see `_interval`.

    Both are evaluated on the same resamples, so that samples that are hard for both do not widen the interval.
    """

    def difference(rows: npt.NDArray[np.int64]) -> float:
        return plcc(ours[rows], labels[rows]) - plcc(theirs[rows], labels[rows])

    low, high = _interval(difference, len(labels), resamples, seed)
    return plcc(ours, labels) - plcc(theirs, labels), low, high


def _interval(statistic: Callable[[npt.NDArray[np.int64]], float], samples: int, resamples: int, seed: int) -> LowHigh:
    """Return the 95 % percentile bootstrap interval (low, high) of a statistic.

    Args:
        statistic: function of the indices of a resample, int64 [samples].
        samples: number of samples.
        resamples: number of resamples, drawn with replacement.
        seed: seed of the draws; every statistic gets the same resamples, so that intervals can be compared.
    """
    random = np.random.default_rng(seed)
    drawn = [statistic(random.integers(0, samples, samples)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def ces(r: float, e: float) -> float:
    """Return CES = max(0, PLCC) * E."""
    return max(0.0, r) * e
