"""Calibration on the validation split: a line that turns scores into stars, and an interval for each score.

Input: a model's scores of the validation split, with the labels and rating counts. Output: `Line` and `Interval`, which
are a part of the model's configuration, and the ends of intervals. Guarantees: the order of scores never changes;
too few samples or constant scores give None, never an arbitrary line; everything read back is bounded.

An interval is for a label: the mean of an item's n ratings. Ratings from 1 to 5 with the mean m have at most the
variance (5 - m)(m - 1), that of ratings which are all 1 or 5. Of that, the true means of items with one score have a
fraction `between`, and the ratings of one item a fraction `within`, which shrinks with n as the mean of n ratings does.
A label gets the beta distribution with the resulting variance; how far into its tails an interval reaches is measured
on the validation split, so that the coverage does not depend on its shape.

Sources: Ferrari and Cribari-Neto, Beta Regression for Modelling Rates and Proportions, 2004; Chernozhukov, Wuthrich and
Zhu, Distributional Conformal Prediction, 2021.
"""

from typing import Annotated, Any, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta
from scipy import optimize, special

from effimini.metrics import Floats, Stars, Values
from effimini.precheck import COVERAGES
from effimini.ridge import evenly_spaced
from prep.core.tables.shards import COUNTS, STARS

FEWEST = 20  # samples that a line or an interval is fitted to
WHY_NONE = f"the validation split has fewer than {FEWEST} samples, or higher scores do not mean higher ratings on it"
# Samples, evenly spaced, for the distribution and for its tails; more would only take longer.
SHAPED, MEASURED = 1_000, 20_000
_ROUNDING = 0.05  # stars; half the step that average ratings are rounded to
_OUTLIERS = 0.01  # fraction of labels that the fit takes to be anything, so that no single one decides it
_SLOPES, _INTERCEPT = (1e-3, 1e2), 1e3  # beyond, float32 would blur the scores

_FRACTIONS = 1e-6, 1 - 1e-6

_Fraction: TypeAlias = Annotated[float, Meta(ge=_FRACTIONS[0], le=_FRACTIONS[1])]


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Stars as a linear function of the score: intercept + slope * score."""

    intercept: Annotated[float, Meta(ge=-_INTERCEPT, le=_INTERCEPT)]
    slope: Annotated[float, Meta(ge=_SLOPES[0], le=_SLOPES[1])]


class Interval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far labels are from scores, as fractions of the largest variance that ratings with the same mean can have."""

    between: _Fraction  # variance of the true means of items with the same score
    within: _Fraction  # variance of the ratings of one item
    power: _Fraction  # the mean of n ratings has within * n ** -power; 1 if ratings are independent of each other
    # probability of each tail of the beta distribution that is outside the interval, by `COVERAGES`
    tails: Annotated[
        tuple[Annotated[float, Meta(ge=0, le=0.5)], ...], Meta(min_length=len(COVERAGES), max_length=len(COVERAGES))
    ]
    ratings: Annotated[int, Meta(ge=1, le=COUNTS[1])]  # median rating count of the training items
    samples: Annotated[int, Meta(ge=FEWEST)]  # of the validation split


def fit_line(scores: Stars, labels: Stars) -> Line | None:
    """Return the line with the least squared error, every sample counting the same, as in the RMSE.

    Args:
        scores: unclamped, float32 [N].
        labels: stars, float32 [N].

    Returns:
        None if there are fewer than `FEWEST` samples, or higher scores do not mean higher labels.
    """
    x, y = scores.astype(np.float64), labels.astype(np.float64)
    if len(x) < FEWEST:
        return None
    away = x - x.mean()
    slope = float(away @ y / max(away @ away, 1e-12))
    intercept = float(y.mean() - slope * x.mean())
    if not (_SLOPES[0] <= slope <= _SLOPES[1] and abs(intercept) <= _INTERCEPT):  # also true for NaN
        return None
    return Line(intercept, slope)


def apply_line(line: Line | None, scores: Any) -> Any:
    """Return the stars of scores, an array or a tensor; None is the identity."""
    return scores if line is None else line.intercept + line.slope * scores


def fit_interval(stars: Stars, labels: Stars, counts: npt.NDArray[np.int64], ratings: float) -> Interval | None:
    """Return the `Interval` of a model.

    Args:
        stars: the model's calibrated, clamped scores of the validation split, float32 [N].
        labels: stars, float32 [N].
        counts: rating counts, int64 [N].
        ratings: the median rating count of the training items.

    Returns:
        None if there are fewer than `FEWEST` samples, or a score is not a number.
    """
    if len(stars) < FEWEST or not np.isfinite(stars).all():
        return None
    shape = _fit_shape(*_spaced(SHAPED, stars, labels, counts))
    below, upto = _probabilities(shape, *_spaced(MEASURED, stars, labels, counts))
    # the largest tails with which each label is still inside; the k smallest of these are outside
    reach = np.sort(np.minimum(upto, 1 - below))
    outside = [int((1 - coverage) * (len(reach) + 1) + 1e-9) for coverage in COVERAGES]
    tails = tuple(round(float(np.clip(reach[k - 1], 0, 0.5)), 6) if k else 0.0 for k in outside)
    between, within, power = (round(float(fraction), 6) for fraction in shape)
    return Interval(
        between=between,
        within=within,
        power=power,
        tails=tails,
        ratings=max(1, round(ratings)),
        samples=len(stars),
    )


def bounds(interval: Interval, stars: Stars, counts: npt.NDArray[np.int64], coverage: float) -> tuple[Floats, Floats]:
    """Return the ends (low, high) of the interval of each score, float64 [N], in stars.

    The fraction `coverage` of labels like those of the validation split is inside. The score itself always is.

    Args:
        interval: of the model.
        stars: its calibrated, clamped scores, float32 [N].
        counts: the number of ratings of which the label is the mean, int64 [N]; at least 1.
        coverage: from the first to the last of `COVERAGES`.
    """
    tail = np.interp(coverage, COVERAGES, interval.tails)
    mean = stars.astype(np.float64)
    a, b = _beta(np.array([interval.between, interval.within, interval.power]), mean, counts.astype(np.float64))
    low, high = (_stars(special.betaincinv(a, b, probability)) for probability in (tail, 1 - tail))
    return np.clip(np.minimum(low - _ROUNDING, mean), *STARS), np.clip(np.maximum(high + _ROUNDING, mean), *STARS)


def covered(interval: Interval, stars: Stars, labels: Values, counts: npt.NDArray[np.int64], coverage: float) -> float:
    """Return the fraction of labels [N] inside the intervals of their scores; the others as for `bounds`."""
    low, high = bounds(interval, stars, counts, coverage)
    return float(((labels >= low - 1e-6) & (labels <= high + 1e-6)).mean())  # labels are float32


def _spaced(most: int, *columns: npt.NDArray[Any]) -> list[Floats]:
    """Return at most `most` rows of columns [N], evenly spaced."""
    rows = evenly_spaced(len(columns[0]), most)
    return [column[rows].astype(np.float64) for column in columns]


def _fit_shape(stars: Floats, labels: Floats, counts: Floats) -> Floats:
    """Return between, within and power with the largest likelihood of the labels, each rounded as ratings are."""

    def fractions(logits: Floats) -> Floats:
        return cast(Floats, np.clip(special.expit(logits), *_FRACTIONS))

    def unlikelihood(logits: Floats) -> float:
        below, upto = _probabilities(fractions(logits), stars, labels, counts)
        return float(-np.log((1 - _OUTLIERS) * np.maximum(upto - below, 0) + _OUTLIERS / 40).mean())  # 40 steps of 0.1

    start = np.array([-2.0, 0.0, 1.0])
    return fractions(optimize.minimize(unlikelihood, start, method="L-BFGS-B", options={"maxiter": 50}).x)


def _beta(shape: Floats, stars: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Return the parameters of the beta distribution of (label - 1) / 4."""
    between, within, power = shape
    variance = between + (1 - between) * within * np.maximum(counts, 1) ** -power  # by the law of total variance
    mean = np.clip((stars - STARS[0]) / (STARS[1] - STARS[0]), 0.01, 0.99)
    return mean * (1 / variance - 1), (1 - mean) * (1 / variance - 1)


def _probabilities(shape: Floats, stars: Floats, labels: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Return the probabilities of less than a label's rounding step, and of not more than it."""
    a, b = _beta(shape, stars, counts)
    low, high = (np.clip((labels + side - STARS[0]) / (STARS[1] - STARS[0]), 0, 1) for side in (-_ROUNDING, _ROUNDING))
    return cast(Floats, special.betainc(a, b, low)), cast(Floats, special.betainc(a, b, high))


def _stars(place: Floats) -> Floats:
    return STARS[0] + (STARS[1] - STARS[0]) * place
