"""What a model is judged by: correlation and error, and what it costs.

In: predictions and labels in stars. Out: numbers. Pure and deterministic; CES is the challenge's (reference section 2).
"""

import math
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.floating]
Stars = npt.NDArray[np.float32]  # predictions or labels of samples, [N]


class Scores(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a predictor does on the test split."""

    plcc: float
    plcc_low: float  # its 95 % interval
    plcc_high: float
    srcc: float
    mae: float  # stars
    rmse: float  # stars
    spread: float  # standard deviation of the predictions, stars
    ces: float | None = None  # of the model
    behind: float | None = None  # of another predictor: by how much the model's PLCC is above its own
    behind_low: float | None = None  # its 95 % interval
    behind_high: float | None = None


class Costs(msgspec.Struct, frozen=True):
    """What a model costs at its own input."""

    parameters: int
    flops: int  # of one sample
    C: float
    E: float


class LabelStats(msgspec.Struct, frozen=True):
    """The labels of a split, stars."""

    mean: float
    spread: float  # standard deviation


class ModelSelection(msgspec.Struct, frozen=True):
    """What the model was chosen by: its score on the validation split."""

    plcc: float
    samples: int


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The content of results/evaluation.json, of the test split unless it says otherwise."""

    source: str  # kind of the data: demo, mirror, hub
    samples: int
    label: LabelStats
    test: dict[str, Scores]  # by predictor
    cost: Costs
    validation: ModelSelection


def plcc(predictions: Values, labels: Values) -> float:
    """Return Pearson's r of two arrays [N]; 0 where it is undefined: either one constant, or N under 2."""
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / math.sqrt((x @ x) * (y @ y)))


def srcc(predictions: Values, labels: Values) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank; 0 where `plcc` is."""
    return plcc(stats.rankdata(predictions), stats.rankdata(labels))


def mae(predictions: Values, labels: Values) -> float:
    """Return the mean absolute error, stars."""
    return float(np.mean(np.abs(np.asarray(predictions, np.float64) - labels)))


def rmse(predictions: Values, labels: Values) -> float:
    """Return the root of the mean squared error, stars."""
    return float(np.sqrt(np.mean((np.asarray(predictions, np.float64) - labels) ** 2)))


def plcc_interval(predictions: Values, labels: Values, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of the PLCC, (low, high), of arrays [N]; see `_interval`."""
    return _interval(lambda rows: plcc(predictions[rows], labels[rows]), len(labels), resamples, seed)


def lead(ours: Values, theirs: Values, labels: Values, resamples: int, seed: int) -> tuple[float, float, float]:
    """Return by how much the PLCC of `ours` is above that of `theirs`, and its 95 % interval; see `_interval`.

    The samples drawn are the same for both, so that what both find hard does not widen the interval.
    """

    def difference(rows: npt.NDArray[np.int64]) -> float:
        return plcc(ours[rows], labels[rows]) - plcc(theirs[rows], labels[rows])

    low, high = _interval(difference, len(labels), resamples, seed)
    return plcc(ours, labels) - plcc(theirs, labels), low, high


def _interval(
    statistic: Callable[[npt.NDArray[np.int64]], float], samples: int, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of samples: (low, high).

    Args:
        statistic: is given the numbers of the samples drawn, int64 [samples].
        samples: how many there are.
        resamples: how often as many are drawn with replacement.
        seed: of the draws; the same samples are drawn for whatever statistic, so that intervals can be compared.
    """
    random = np.random.default_rng(seed)
    drawn = [statistic(random.integers(0, samples, samples)) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def ces(r: float, e: float) -> float:
    """Return CES = max(0, PLCC) * E."""
    return max(0.0, r) * e
