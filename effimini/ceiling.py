"""The noise ceiling: the highest PLCC that the labels allow, because an average of few ratings is a noisy label.

A label is the true mean rating of an item plus noise. With n ratings the variance of the noise is s2 / n, where s2 is
the variance of single ratings. For a true mean m it is at most (5 - m) (m - 1), namely if all ratings are 1 or 5; the
scatter is s2 as a fraction of that, and is taken to be the same for all items. Rounding to 0.1 stars adds its own
variance. The PLCC of the true means and the labels is then sqrt(1 - noise variance / label variance).

Input: labels in stars, rating counts and categories, or statistics of reviews. Output: the scatter, and the ceiling of
a slice with its interval. Guarantees: pure and deterministic; the same seed gives the same interval.
"""

import numpy as np
import numpy.typing as npt

from effimini.metrics import LowHigh, Scatter, Values

Integers = npt.NDArray[np.int64]

FEW = 20  # ratings; up to here the noise falls 20-fold, while the true means become only a little more alike
ENOUGH = 200  # samples with at most FEW ratings that an estimate needs
MOST = 0.95  # largest scatter; at 1 a single rating would say nothing about the true mean
UNKNOWN = Scatter(value=MOST / 2, low=0.0, high=MOST, samples=0)  # what is known without an estimate
_TREND = 0.1  # how much the variance of the true means may change per log(n), as a fraction of that of the labels
_ROUNDING = 0.1**2 / 12  # variance of the rounding of a label
_Z = 1.96  # standard errors on either side of a 95 % interval


def scatter_of_labels(labels: Values, counts: Integers, categories: Integers) -> Scatter:
    """Estimate the scatter of ratings from how the variance of the labels falls with the rating count.

    In items with n ratings the variance within a category is the variance of the true means plus s2 / n. Only items
    with at most `FEW` ratings are used: the true means of items with many ratings are more alike, which must not be
    mistaken for noise. What is left of that, within `_TREND`, makes the interval wider.

    Args:
        labels: average_rating of each item, stars [N].
        counts: rating_number of each item [N].
        categories: number of the category of each item [N].

    Returns:
        `UNKNOWN` if there are too few such items, or if their labels contradict the model.
    """
    few = (counts >= 1) & (counts <= FEW)
    y, n, category = labels[few].astype(np.float64), counts[few], categories[few]
    if len(y) < ENOUGH or np.ptp(n) == 0:
        return UNKNOWN
    members = np.bincount(category)
    mean = np.bincount(category, y) / np.maximum(members, 1)
    squares = (y - mean[category]) ** 2 * len(y) / (len(y) - np.count_nonzero(members))
    if not squares.any():
        return UNKNOWN
    of_means, slope, error = _fit(n, squares)
    most = float(((5 - mean) * (mean - 1) * members).sum() / len(y)) - of_means  # mean of (5 - m) (m - 1)
    low, value, high = (slope + z * error for z in (-_Z, 0, _Z))
    if most <= 0 or high <= 0 or low >= MOST * most:
        return UNKNOWN
    value, low, high = (round(min(max(each / most, 0.0), MOST), 6) for each in (value, low, high))
    return Scatter(value, low, high, len(y))


def scatter_of_reviews(means: Values, spreads: Values, counts: Values) -> float:
    """Return the scatter of ratings from the reviews of items.

    Args:
        means: mean rating of an item's reviews, stars [N].
        spreads: their population standard deviation, stars [N].
        counts: their number [N], at least 2.
    """
    variance = spreads**2 * counts / (counts - 1)
    return float(variance.sum() / ((5 - means) * (means - 1) + variance / counts).sum())


def ceiling(labels: Values, counts: Integers, scatter: float) -> float:
    """Return the PLCC of the true mean ratings and the labels, 0 if the labels vary no more than noise would.

    Args:
        labels: average_rating of each item, stars [N].
        counts: rating_number of each item [N]; 0 is taken as 1.
        scatter: variance of single ratings as a fraction of its maximum (5 - m) (m - 1), at most `MOST`.
    """
    y, n = labels.astype(np.float64), np.maximum(counts, 1)
    each = scatter * np.mean(1 / n)  # variance of the noise as a fraction of (5 - m) (m - 1), on average
    # The mean of (5 - y) (y - 1) is that of (5 - m) (m - 1) less the variance of the noise.
    noise = np.mean((5 - y) * (y - 1)) * each / (1 - each) + _ROUNDING
    variance = y.var()
    return float(np.sqrt(max(0.0, 1 - noise / variance))) if variance > 0 else 0.0


def ceiling_interval(labels: Values, counts: Integers, scatter: Scatter, resamples: int, seed: int) -> LowHigh:
    """Return the 95 % interval of `ceiling` over resamples of the items, each with a scatter from its interval."""
    random = np.random.default_rng(seed)
    error = (scatter.high - scatter.low) / (2 * _Z)
    drawn = []
    for _ in range(resamples):
        rows = random.integers(0, len(labels), len(labels))
        of_draw = float(np.clip(random.normal(scatter.value, error), 0, MOST))
        drawn.append(ceiling(labels[rows], counts[rows], of_draw))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _fit(n: Integers, squares: Values) -> tuple[float, float, float]:
    """Fit squares = a + b / n + c (log n - mean log n) by weighted least squares.

    The standard deviation of a square grows with its mean. The prior of c is 0 +- `_TREND` of the mean square.

    Returns:
        a, b, and the standard error of b.
    """
    counts = np.flatnonzero(np.bincount(n))  # all sums are over the items with the same n
    items, first, second = (np.bincount(n, values)[counts] for values in (np.ones(len(n)), squares, squares**2))
    log, average = np.log(counts), first.sum() / len(n)
    design = np.stack([np.ones(len(counts)), 1 / counts, log - (items @ log) / len(n)], axis=1)
    prior = np.diag([0, 0, (_TREND * average) ** -2])
    fitted = np.full(len(counts), average)
    for _ in range(10):
        scale = np.maximum(fitted, 0.05 * average)
        excess = ((second - 2 * fitted * first + items * fitted**2) / scale**2).sum() / len(n)  # 2 for normal labels
        weight = 1 / (excess * scale**2)
        covariance = np.linalg.inv((design.T * (weight * items)) @ design + prior)
        line = covariance @ (design.T @ (weight * first))
        fitted = design @ line
    return float(line[0]), float(line[1]), float(np.sqrt(covariance[1, 1]))
