"""Ridge regression with its regularization strength chosen on held-out samples. Pure and deterministic."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import Ridge


def best_ridge(
    alphas: Iterable[float],
    features: Any,
    labels: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    score: Callable[[Ridge], float],
) -> tuple[Ridge, float]:
    """Fit ridge for each strength, and return the one with the highest score (the first of a tie) and that score.

    Args:
        alphas: the regularization strengths, at least one.
        features: the training features, a sparse or dense matrix [N, F].
        labels: the training labels, float32 [N], stars.
        weight: the sample weights, float32 [N].
        score: returns the score of a fitted ridge on the validation split.
    """
    fitted = [Ridge(alpha=alpha, solver="sparse_cg").fit(features, labels, sample_weight=weight) for alpha in alphas]
    scores = [score(ridge) for ridge in fitted]
    best = int(np.argmax(scores))
    return fitted[best], scores[best]
