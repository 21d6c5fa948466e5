"""Ridge regression whose strength is chosen on other samples than it is fitted on. Pure and deterministic."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge


def best_ridge(
    alphas: Iterable[float],
    known: Any,
    labels: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    score: Callable[[Ridge], float],
) -> tuple[Ridge, float]:
    """Fit ridge for each strength, and return the one with the highest score (the first of several), and its score.

    Args:
        alphas: the strengths, one at least.
        known: what is fitted on, a matrix [N, features], sparse or not.
        labels: float32 [N], stars.
        weight: of each sample, float32 [N].
        score: judges a fitted ridge, on validation.
    """
    fitted = [Ridge(alpha=alpha, solver="sparse_cg").fit(known, labels, sample_weight=weight) for alpha in alphas]
    scores = [score(ridge) for ridge in fitted]
    best = int(np.argmax(scores))
    return fitted[best], scores[best]
