"""What more training items would bring: a scaling law of the PLCC, fitted to nested fractions, with an interval.

Input: the stars of runs on nested draws of the items, all for the same samples. Output: the PLCC that a run on more
items would have on these samples. Guarantees: pure and deterministic.

The law is PLCC(n) = PLCC(N) + b (1 - (n / N)^-a) / a for n items, with N at hand; for a = 0, which has no limit, it is
PLCC(N) + b log(n / N). It is fitted to the steps between neighbouring sizes, since their errors are nearly independent:

- All runs are measured on the same samples, so most of what the choice of the samples does cancels in a step. What is
  left has the variance of the step's influence function over the samples. Source: Devlin, Gnanadesikan and Kettenring,
  Robust Estimation and Outlier Detection with Correlation Coefficients, 1975.
- A draw contains its smaller sizes. If each item adds its own small effect, as to a mean, then the steps of a draw are
  independent, and one from n to m items has the variance s (1 / n - 1 / m), also beyond N.

So b follows by weighted least squares for each a, and each a counts by its likelihood. The variance of a forecast is
that of the law over all a, plus those of its own step.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import softmax
from scipy.stats import norm

from effimini.metrics import Floats

LEVEL = 0.9  # of the intervals
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LAST = 2  # steps whose variance over the samples tells that of the next
_LEAST = 1e-12  # variance of a step; it would be 0 if all runs were equal


class Forecast(msgspec.Struct, frozen=True):
    """The PLCC that a run is expected to have."""

    items: int
    plcc: float
    low: float  # the PLCC is between them with the probability `LEVEL`
    high: float


def forecast(
    sizes: Sequence[int],
    stars: npt.NDArray[np.floating],
    labels: npt.NDArray[np.floating],
    wanted: Sequence[int],
    draws: int = 1,
) -> list[Forecast]:
    """Return the forecast for a run on each of `wanted` items.

    Args:
        sizes: numbers of items K, ascending; at least three.
        stars: what R draws of each size predict, [R, K, T], at least two. A draw contains its smaller sizes.
        labels: labels of the samples [T].
        wanted: numbers of items, each more than the last of `sizes`.
        draws: number of different draws of the last size; 1 if it is all items at hand.
    """
    n, more = np.array(sizes, np.float64), np.array(wanted, np.float64)
    plcc, of_samples = _plcc(stars, labels)
    steps = np.diff(plcc, axis=1)
    step, shrinking = steps.mean(axis=0), -np.diff(1 / n)
    scatter = float(np.mean(steps.var(axis=0, ddof=1) / shrinking))
    variance = np.maximum(of_samples + scatter * shrinking / len(plcc), _LEAST)

    law = np.diff(_law(n / n[-1]), axis=1)
    precision = (law**2 / variance).sum(axis=1)
    slope = (law * step / variance).sum(axis=1) / precision
    misfit = ((step - slope[:, None] * law) ** 2 / variance).sum(axis=1)
    share = softmax(-(misfit + np.log(precision)) / 2)  # likelihood, integrated over the slope

    ahead = _law(more / n[-1])
    gain = share @ (slope[:, None] * ahead)
    of_law = share @ ((slope[:, None] * ahead - gain) ** 2 + ahead**2 / precision[:, None])
    per_log = of_samples[-_LAST:].sum() / np.log(n[-1] / n[-1 - _LAST])
    of_step = per_log * np.log(more / n[-1]) + scatter * (1 / n[-1] - 1 / more) / draws
    middle, half = plcc[:, -1].mean() + gain, norm.ppf((1 + LEVEL) / 2) * np.sqrt(of_law + of_step)
    ends = (column.tolist() for column in (middle, middle - half, middle + half))
    return [Forecast(*each) for each in zip(wanted, *ends, strict=True)]


def _law(ratio: Floats) -> Floats:
    """Return the law for b = 1, less PLCC(N), at `ratio` = n / N [K], for each exponent: [A, K]."""
    return np.stack([(1 - ratio**-exponent) / exponent if exponent else np.log(ratio) for exponent in EXPONENTS])


def _plcc(stars: npt.NDArray[np.floating], labels: npt.NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Return the PLCC of each run [R, K], and the variance over the samples of each mean step [K - 1]."""
    x, y = _standardized(stars), _standardized(labels)
    plcc = (x * y).mean(axis=-1)
    influence = (x * y - plcc[..., None] * (x**2 + y**2) / 2).mean(axis=0)
    return plcc, np.diff(influence, axis=0).var(axis=-1) / len(labels)


def _standardized(values: npt.NDArray[np.floating]) -> Floats:
    centred: Floats = np.asarray(values, np.float64) - values.mean(axis=-1, keepdims=True, dtype=np.float64)
    deviation = centred.std(axis=-1, keepdims=True)
    return centred / np.where(deviation > 0, deviation, 1)
