"""Features of frozen encoders, computed once and cached, so that training on them takes seconds.

Input: a model and the samples of a split. Output: an array in the local store, and samples that carry a row of it
instead of image and text. Guarantees: the cache key includes the encoders' weights, the shards and the precision; the
array is written atomically and memory-mapped.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from effimini.distributed import Distributed
from effimini.inference import each_sample
from effimini.model import EffiMini
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params
from shards import sampler
from shards.stream import Batch, ShardDataset

FORMAT = 4  # increment when the same encoders give different features
_ROWS_PER_CHUNK = 100_000  # rows standardized at once


class Head(nn.Module):
    """The head of a model, called like the model but with features instead of images."""

    def __init__(self, model: EffiMini) -> None:
        super().__init__()
        self.head = model.head  # so that only the head is put in training mode
        self._score = model.score

    def forward(self, features: Tensor, *_: Tensor) -> Tensor:
        """Return the stars, float32 [B], of features float32 [B, F + D]."""
        return self._score(features)


class FeatureDataset(ShardDataset):
    """A split whose batches contain features, float32 [B, F + D], instead of images, and no text.

    Attributes:
        features: the features of all samples, float32 [N, F + D].
        kernel_inputs: the inputs of the model's kernel, float32 [N, L * D + F].
    """

    def __init__(self, dataset: ShardDataset, features: npt.NDArray[np.float32], model: EffiMini) -> None:
        """Create a dataset with the samples of `dataset` and their `features` as `model.features` returns them."""
        self.__dict__.update(dataset.__dict__)
        self.features = features[:, -len(model.feature_mean) :]
        self.kernel_inputs = features[:, : model.kernel_width]

    def batch(self, samples: sampler.SampleNumbers, global_size: int) -> Batch:
        """Return the features of `samples`, a part of a global batch of `global_size`, on the CPU."""
        no_text = torch.zeros((len(samples), 1), dtype=torch.int64)
        return Batch(
            images=torch.from_numpy(self.features[samples]),
            tokens=no_text,
            mask=no_text + 1,
            has_image=torch.from_numpy(self.has_image[samples]),
            label=torch.from_numpy(self.labels[samples]),
            rating_number=torch.from_numpy(self.rating_number[samples]),
            review_count=torch.from_numpy(self.review_count[samples]),
            tabular=torch.from_numpy(self.tabular[samples]),
            keys=[self.keys[sample] for sample in samples],
            global_size=global_size,
            damaged=[],
        )


def of_split(model: EffiMini, dataset: ShardDataset, dist: Distributed, params: Params) -> FeatureDataset:
    """Return `dataset` with the features of the model's encoders, read from the local store or computed.

    Raises:
        UserError: there is more than one rank.
    """
    if dist.world_size > 1:
        raise UserError(
            f"train.freeze_encoders is true and there are {dist.world_size} ranks; use one process, or set it to false"
        )
    name = files.fingerprint(FORMAT, dataset.fingerprint, _encoder_fingerprint(model), model.autocast)
    path = files.store() / "features" / f"{name}.npy"
    if not files.intact(path):
        with files.atomic_write(path) as partial:
            _compute_features(partial, model, dataset, dist, params)
            files.seal(path, files.digest(partial))
    return FeatureDataset(dataset, np.load(path, mmap_mode="r"), model)


def standardize(model: EffiMini, train: FeatureDataset) -> None:
    """Make the model standardize its features with the mean and standard deviation of the training split.

    Frozen encoders give features of very different scales, from which a head learns little.
    """
    scaler = StandardScaler()
    for start in range(0, len(train), _ROWS_PER_CHUNK):
        scaler.partial_fit(train.features[start : start + _ROWS_PER_CHUNK])
    model.feature_mean.copy_(torch.from_numpy(scaler.mean_))
    model.feature_scale.copy_(torch.from_numpy(scaler.scale_))


def _compute_features(path: Path, model: EffiMini, dataset: ShardDataset, dist: Distributed, params: Params) -> None:
    rows: np.memmap[Any, np.dtype[np.float32]] | None = None
    row_of = {key: row for row, key in enumerate(dataset.keys)}
    model.eval()
    for keys, found in each_sample(lambda *inputs: model.features(*inputs[:4]), dataset, dist, params):
        if rows is None:
            shape = (len(dataset), found.shape[1])
            rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            with path.open("r+b") as file:  # on a full disk, writing to the map would kill the process
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        rows[[row_of[key] for key in keys]] = found
    assert rows is not None
    rows.flush()


def _encoder_fingerprint(model: EffiMini) -> str:
    """Return the hex SHA-256 of the encoders' tensors, the text pooling and the layers that the kernel reads."""
    digest = hashlib.sha256(repr((model.config.pooling, model.layers)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(("image.", "text.")):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
