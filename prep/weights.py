"""Weights: the constant that turns a rating count into the weight of a sample, and that weight.

In: the training parts of ``data/sample/``. Out: ``data/weights.json``. Guaranteed: the mean is over the training
split of this fraction, before the clip, and does not depend on the order of the rows.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from prep.core import writers
from prep.core.faults import UserError
from prep.core.params import Params, Weights, only
from prep.core.parts import TRAIN, sample_parts

READS = ("source.categories", "weights")


def weights(params: Params, data: Path = Path("data")) -> None:
    """Write ``data/weights.json``, as `constant` returns it for the training samples of all categories.

    Raises:
        UserError: a category has no sample, or as `constant`.
    """
    params = only(params, READS)
    parts = [part for c in params.source.categories for part in sample_parts(data, c) if part.stem.startswith(TRAIN)]
    name = counted(params.weights)
    counts = np.concatenate([pq.read_table(part, columns=[name])[name].to_numpy() for part in parts])
    writers.write_json(data / "weights.json", constant(counts, params.weights))


def counted(weights: Weights) -> str:
    """Return the column of the counts that weigh, or that would if ``weights.count`` were not none."""
    return "rating_number" if weights.count == "none" else weights.count


def constant(counts: npt.NDArray[np.int64], weights: Weights) -> dict[str, Any]:
    """Return which count weighs, the mean of its log1p, the clip and the number of samples.

    The weight of a sample is min(log1p(count) / mean, clip). With ``weights.count: none`` every sample weighs 1.

    Args:
        counts: int64 [N], the counts of the training samples.
        weights: the section of the parameters.

    Raises:
        UserError: no training sample has a rating, so that the mean is 0.

    Source: reference, section 1 (weight).
    """
    column = weights.count
    # an exact sum over the distinct counts: the same on every machine and in every order
    values, times = np.unique(counts, return_counts=True)
    mean = math.fsum(math.log1p(int(v)) * int(n) for v, n in zip(values, times, strict=True)) / len(counts)
    if column == "none":
        mean = 1.0
    if mean == 0:
        raise UserError(
            f"weights.count is {column}, and it is 0 for all {len(counts)} training samples; set weights.count: none"
        )
    return {"count": column, "mean": float(f"{mean:.12g}"), "clip": weights.clip, "samples": len(counts)}


def sample_weights(counts: npt.NDArray[np.int64], weights: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Return the weight of each sample: min(log1p(count) / mean, clip), or 1 where ``weights["count"]`` is none.

    Args:
        counts: int64 [N], the count that `weights` names.
        weights: the content of data/weights.json: count, mean (of log1p(count) over the training split) and
            clip.

    Source: reference section 1.
    """
    if weights["count"] == "none":
        return np.ones(len(counts), np.float32)
    each: npt.NDArray[np.float32] = np.minimum(np.log1p(counts) / weights["mean"], weights["clip"]).astype(np.float32)
    return each


def counts_of(samples: Any, weights: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """Return the counts that `weights` names, int64 [N], of a batch or a dataset of the shards."""
    name = "rating_number" if weights["count"] == "none" else weights["count"]
    return np.asarray(getattr(samples, name))
