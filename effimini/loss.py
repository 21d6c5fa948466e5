"""The loss: Huber loss per sample, weighted by the number of ratings behind the label.

Input: predictions, labels and weights of one rank's part of a global batch. Output: the contribution of that part to
the loss of the global batch. Guarantees: the contributions of all ranks add up to the sum over the global batch divided
by its size. Pure.
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
        delta: error at which the loss turns from quadratic to linear, stars.
        global_size: number of samples of the global batch, over all ranks.
    """
    losses = huber_loss(predictions, labels, reduction="none", delta=delta)
    return torch.sum(losses * weights) / global_size
