"""A radial basis function (RBF) kernel on the features of frozen encoders: similar products get similar stars.

Input: features of several encoder layers, and tabular columns. Output: stars above or below the mean, a weighted sum of
the similarities exp(-rate * squared distance) to landmarks, which are training samples. Guarantees: with all training
samples as landmarks, the ridge regression on `Kernel.map` is exact kernel ridge regression; otherwise it is Nystroem's
approximation; samples are compared a few thousand at a time.

Source: Williams and Seeger, Using the Nystroem Method to Speed Up Kernel Machines, 2000.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from effimini.metrics import Array
from effimini.ranks import Ranks
from effimini.ridge import evenly_spaced

GAMMA = 2.0  # rate times the median squared distance; chosen by cross-validation on films and electronics
_JITTER = 1e-6  # added to the diagonal of the landmarks' similarities, for equal landmarks
_ROWS = 4096  # samples compared with the landmarks at once
_MEASURED = 1000  # landmarks whose distances give the median


class Kernel(nn.Module):
    """Adds up the similarities to landmarks.

    Args:
        landmarks: number of landmarks; fewer if there are fewer samples.
        groups: number of features of each group of inputs, and its weight in squared distances.
        columns: number of tabular columns C; their ranks and absences are the last group, of 2C features.
    """

    mean: Tensor
    scale: Tensor
    rate: Tensor

    def __init__(self, landmarks: int, groups: Sequence[tuple[int, float]], columns: int = 0) -> None:
        super().__init__()
        self.groups = groups
        self.most = landmarks
        self.ranks = Ranks(columns) if columns else None
        width = sum(count for count, _ in groups)
        self.landmarks = nn.Parameter(torch.zeros(landmarks, width), requires_grad=False)  # standardized
        self.weight = nn.Parameter(torch.zeros(landmarks), requires_grad=False)  # fitted, not trained
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("rate", torch.zeros(()))

    def forward(self, features: Tensor, tabular: Tensor | None = None) -> Tensor:
        """Return what the similarities add to the stars, float32 [B].

        Args:
            features: those of the encoders, [B, K].
            tabular: the columns, float32 [B, C], NaN where missing; None: all are.
        """
        return self.similarity(self._inputs(features, tabular)) @ self.weight

    def similarity(self, inputs: Tensor) -> Tensor:
        """Return the similarity of each sample to each landmark, 0 to 1, float32 [B, M]."""
        return torch.exp(-self.rate * self.squared_distance((inputs - self.mean) / self.scale))

    def squared_distance(self, standard: Tensor) -> Tensor:
        """Return the squared distances of standardized inputs to the landmarks, float32 [B, M]."""
        with torch.autocast(standard.device.type, enabled=False):  # differences of large products
            norms = standard.square().sum(dim=1, keepdim=True) + self.landmarks.square().sum(dim=1)
            return (norms - 2 * standard @ self.landmarks.T).clamp(min=0)

    @torch.no_grad()
    def choose_landmarks(self, features: Array, tabular: Array | None = None) -> None:
        """Set the standardization, the rate and the landmarks: all samples, or as many evenly spaced ones as there are.

        Args:
            features: those of the training samples, float32 [N, K].
            tabular: their columns, float32 [N, C]; None without columns.
        """
        if self.ranks is not None:
            assert tabular is not None
            self.ranks.fit(tabular)
        scaler = StandardScaler()
        for _, inputs in self._batches(features, tabular):
            scaler.partial_fit(inputs.cpu().numpy())
        assert scaler.scale_ is not None
        self.mean.copy_(torch.from_numpy(scaler.mean_))
        divisors = np.concatenate([np.full(count, (count / weight) ** 0.5) for count, weight in self.groups])
        self.scale.copy_(torch.from_numpy(scaler.scale_ * divisors))
        rows = evenly_spaced(len(features), self.most)
        chosen = [inputs for _, inputs in self._batches(features[rows], None if tabular is None else tabular[rows])]
        standard = (torch.cat(chosen) - self.mean) / self.scale
        weight = torch.zeros(len(standard), device=standard.device)
        self.landmarks, self.weight = (nn.Parameter(tensor, requires_grad=False) for tensor in (standard, weight))
        distances = self.squared_distance(standard[evenly_spaced(len(standard), _MEASURED)])
        self.rate.fill_(GAMMA / max(float(distances.median()), 1e-12))

    def map(self, features: Array, tabular: Array | None = None) -> tuple[Array, Array]:
        """Return features whose products are the kernel, float32 [N, M], and what makes weights of landmarks of theirs.

        Args:
            features: float32 [N, K].
            tabular: as of `choose_landmarks`.

        Returns:
            The features, and a matrix [M, M] whose transpose times the weights of the features [M] is the weight of
            each landmark.
        """
        with torch.no_grad():
            own = torch.exp(-self.rate * self.squared_distance(self.landmarks)).cpu().numpy().astype(np.float64)
        own[np.diag_indices(len(own))] = 1 + _JITTER
        inverse = solve_triangular(cholesky(own, lower=True), np.eye(len(own)), lower=True)
        found = np.empty((len(features), len(own)), np.float32)
        for rows, similar in self.similarities(features, tabular):
            found[rows] = similar @ inverse.T
        return found, inverse

    @torch.no_grad()
    def similarities(self, features: Array, tabular: Array | None = None) -> Iterator[tuple[slice, Array]]:
        """Yield slices of the samples with their similarities to the landmarks, float32 [B, M]."""
        for rows, inputs in self._batches(features, tabular):
            yield rows, self.similarity(inputs).cpu().numpy()

    def _inputs(self, features: Tensor, tabular: Tensor | None) -> Tensor:
        """Return what is compared: features [B, K], and the ranks of the columns [B, C] if there are any."""
        features = features.float()
        if self.ranks is None:
            return features
        if tabular is None:
            tabular = torch.full_like(features[:, :1], torch.nan).expand(-1, len(self.ranks.knots))
        return torch.cat([features, self.ranks(tabular)], dim=1)

    def _batches(self, features: Array, tabular: Array | None) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the samples with their inputs, so that memory does not grow with their number."""
        device = self.mean.device
        for rows in (slice(start, start + _ROWS) for start in range(0, len(features), _ROWS)):
            columns = None if tabular is None else torch.tensor(tabular[rows], device=device)
            yield rows, self._inputs(torch.tensor(features[rows], device=device), columns)
