"""Ranks of tabular columns among the training samples, computed with the tensors of the network.

Input: values of columns, NaN where missing. Output: the rank of each, and whether it is missing. Guarantees: the order
within a column is kept, equal values have the same rank, and no value is out of range, however large.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_KNOTS = 33  # quantiles between which a rank is linear
_FLAGGED = 0.05  # fraction of samples that must have, and that must lack, a column whose absence counts


class Ranks(nn.Module):
    """Maps each column to its rank, 0 to 1 with 0.5 if it is missing, and to 1 if it is missing.

    Args:
        columns: number of columns C.
    """

    knots: Tensor  # float32 [C, K], quantiles of the training samples
    flagged: Tensor  # float32 [C], 1 if the absence of the column counts

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.register_buffer("knots", torch.zeros(columns, _KNOTS))
        self.register_buffer("flagged", torch.zeros(columns))

    @torch.no_grad()
    def fit(self, values: npt.NDArray[Any]) -> None:
        """Set the quantiles to those of the training samples, float32 [N, C]."""
        missing = np.isnan(values)
        known = np.where(missing.all(axis=0), 0, values)
        self.knots.copy_(torch.from_numpy(np.nanquantile(known, np.linspace(0, 1, _KNOTS), axis=0).T))
        absent = missing.mean(axis=0)
        self.flagged.copy_(torch.from_numpy((absent >= _FLAGGED) & (absent <= 1 - _FLAGGED)))

    def forward(self, values: Tensor) -> Tensor:
        """Return the ranks of values [B, C], then whether they are missing: float32 [B, 2C]."""
        missing = values.isnan()
        given = torch.where(missing, 0.0, values).unsqueeze(2)
        low, high = self.knots[:, :-1], self.knots[:, 1:]
        ramp = ((given - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        step = 0.5 * ((given > low).float() + (given >= low).float())  # so that ties get their mean rank
        rank = torch.where(high > low, ramp, step).mean(dim=2)
        return torch.cat([torch.where(missing, 0.5, rank), missing.float() * self.flagged], dim=1)
