"""Ridge regression with its regularization strength chosen on held-out samples. Pure and deterministic."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, lsmr
from sklearn.linear_model import Ridge

from effimini.metrics import Array

_TOLERANCE, _ITERATIONS = 1e-6, 1000  # of the solver; relative


def evenly_spaced(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return the numbers of all of `count` samples, or of `most` evenly spaced ones if there are more."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def best_ridge(
    alphas: Iterable[float],
    features: Any,
    labels: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    score: Callable[[Ridge], float],
    more: tuple[Any, Array, Array] | None = None,
) -> tuple[Ridge, float]:
    """Fit ridge for each strength, and return the one with the highest score (the first of a tie) and that score.

    Args:
        alphas: the regularization strengths, at least one.
        features: the training features, a sparse or dense matrix [N, F].
        labels: the training labels, float32 [N], stars.
        weight: the sample weights, float32 [N].
        score: returns the score of a fitted ridge on the validation split.
        more: features, labels and weight of other samples; then the chosen ridge is fitted again on all samples.
    """
    fitted = [Ridge(alpha=alpha, solver="sparse_cg").fit(features, labels, sample_weight=weight) for alpha in alphas]
    scores = [score(ridge) for ridge in fitted]
    best = int(np.argmax(scores))
    chosen = fitted[best]
    if more is not None:
        stack: Callable[[list[Any]], Any] = sparse.vstack if sparse.issparse(features) else np.concatenate
        features = stack([features, more[0]])
        labels, weight = np.concatenate([labels, more[1]]), np.concatenate([weight, more[2]])
        chosen = Ridge(alpha=chosen.alpha, solver="sparse_cg").fit(features, labels, sample_weight=weight)
    return chosen, scores[best]


def joint_ridge(
    candidates: Sequence[tuple[float, Sequence[float]]],
    blocks: Sequence[Any],
    labels: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Fit one ridge on blocks of features, and return its weights [F, C] for each block and its constants [C].

    The constant is not regularized.

    Args:
        candidates: C regularization strengths, each with the variance, summed over its features, that each block is
            scaled to; 0 ignores the block.
        blocks: the features of the training samples in float32, sparse or dense matrices [N, F].
        labels: the training labels, float32 [N], stars.
        weight: the sample weights, float32 [N].
    """
    deviations = np.array([_deviation(block) for block in blocks])
    root, share = np.sqrt(weight), weight / weight.sum()
    center = float(share @ labels)
    target = (root * (labels - center)).astype(np.float64)
    ends = np.cumsum([block.shape[1] for block in blocks])
    parts, constants = [], []
    for alpha, variances in candidates:
        scales = (np.sqrt(variances) / deviations).astype(np.float32)
        operator, mean = _centered(blocks, scales, root, share)
        weights = lsmr(operator, target, alpha**0.5, _TOLERANCE, _TOLERANCE, maxiter=_ITERATIONS)[0]
        constants.append(center - mean @ weights)
        parts.append([part * scale for part, scale in zip(np.split(weights, ends[:-1]), scales, strict=True)])
    return [np.stack(columns, axis=1) for columns in zip(*parts, strict=True)], np.array(constants)


def _centered(
    blocks: Sequence[Any], scales: Array, root: Array, share: Array
) -> tuple[LinearOperator, npt.NDArray[np.float64]]:
    """Return the scaled blocks side by side, less their mean and times the roots of the weights, and the mean."""
    ends = np.cumsum([block.shape[1] for block in blocks])

    def product(vector: Array) -> Any:
        parts = zip(blocks, scales, np.split(vector.astype(np.float32), ends[:-1]), strict=True)
        return sum(block @ (scale * part) for block, scale, part in parts)

    def transposed(vector: Array) -> Any:
        vector = vector.astype(np.float32)
        parts = [scale * (block.T @ vector) for block, scale in zip(blocks, scales, strict=True)]
        return np.concatenate(parts, dtype=np.float64)

    mean = transposed(share)
    operator = LinearOperator(
        (len(root), int(ends[-1])),
        matvec=lambda vector: root * (product(vector) - mean @ vector),
        rmatvec=lambda vector: transposed(root * vector) - mean * (root @ vector),
        dtype=np.float64,
    )
    return operator, mean


def _deviation(block: Any) -> float:
    """Return the root of the variance of a block, summed over its features; infinite if all samples are equal."""
    squares = block.power(2).sum() if sparse.issparse(block) else sum(float(row @ row) for row in block)
    size = squares / block.shape[0]
    variance = size - np.square(block.mean(axis=0, dtype=np.float64)).sum()
    return float(variance**0.5) if variance > _TOLERANCE * size else np.inf  # below it is rounding
