"""The loss: Huber per sample, weighted by how many ratings the label is the mean of.

In: predictions, labels and counts of one rank's part of a global batch. Out: that part's share of the
global batch's loss, so that the shares add up to the sum over the batch divided by its true size (promise
5). Pure.
"""

import torch
from torch import Tensor
from torch.nn.functional import huber_loss


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
