"""The loss: Huber per sample, weighted by how many ratings the label is the mean of.

In: predictions, labels and counts of one rank's part of a global batch. Out: that part's share of the
global batch's loss, so that the shares add up to the sum over the batch divided by its true size (promise
5). Pure.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import huber_loss


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


def weighted_huber(predictions: Tensor, labels: Tensor, weights: Tensor, delta: float, global_size: int) -> Tensor:
    """Return sum(weight * Huber) / global_size, float32 [].

    Args:
        predictions: stars, float32 [B].
        labels: stars, float32 [B].
        weights: float32 [B].
        delta: where the loss turns from quadratic to linear, stars.
        global_size: samples of the global batch over all ranks.

    Source: reference section 1 (loss).
    """
    each = huber_loss(predictions, labels, reduction="none", delta=delta)
    return torch.sum(each * weights) / global_size
