"""Evaluation metrics: correlation, error, and the challenge's CES.

Input: predictions and labels in stars. Output: numbers. Pure and deterministic; docs/paper.md has the formulas.
"""

import math
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.floating]
Stars = npt.NDArray[np.float32]  # predictions or labels, [N]


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


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The content of results/evaluation.json; on the test split unless stated otherwise."""

    source: str  # source.kind: demo, mirror, hub
    samples: int
    label: LabelStats
    test: dict[str, Scores]  # by predictor
    cost: Costs
    validation: ModelSelection


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


def plcc_interval(predictions: Values, labels: Values, resamples: int, seed: int) -> tuple[float, float]:
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


def _interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], samples: int, resamples: int, seed: int
) -> tuple[float, float]:
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
