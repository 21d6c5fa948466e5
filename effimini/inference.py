"""Stars for every sample of a split, in the dataset's order, whatever the ranks and workers.

In: a model and the samples of a split. Out: one number a sample. Each sample is predicted once (promise 5).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from effimini.distributed import Distributed
from prep.core.errors import UserError
from prep.core.params import Params
from prep.core.progress import bar
from shards.loader import Loader
from shards.stream import Batch, ShardDataset
from shards.tokens import TokenizationConfig

LENGTH_BUCKET_BATCHES = 64  # batches sorted by length together: the order changes no prediction but by rounding
Modality: TypeAlias = Literal["both", "image", "text"]
STARS = (1.0, 5.0)  # a prediction is clamped to these (reference section 1)


def open_split(
    location: str | Path, params: Params, split: str, tokenization: TokenizationConfig, size: int
) -> ShardDataset:
    """Open a split of shards for a model that reads images of `size` px a side and texts as `tokenization` says.

    Raises:
        UserError: as `ShardDataset`, or the images have another size.
    """
    stream = params.stream
    dataset = ShardDataset(
        location,
        params.source.categories,
        split,
        tokenization,
        cache_bytes=stream.cache_bytes,
        connections=stream.connections,
    )
    if (found := dataset.shards.image_size) != size:
        raise UserError(
            f"{location} holds images of {found} px and the model reads {size}; set images.resolution to {found}"
        )
    return dataset


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the inputs of `EffiMini.forward` on `device`."""
    images, tokens, mask, has_image = (tensor.to(device, non_blocking=True) for tensor in batch[:4])
    return images, tokens, mask, has_image


def predict_split(
    model: nn.Module, dataset: ShardDataset, dist: Distributed, params: Params, seen: Modality = "both"
) -> npt.NDArray[np.float32]:
    """Return the model's stars, float32 [N], not clamped, in the order of ``dataset.keys``; the same on every rank.

    The model is put in evaluation mode.

    Args:
        model: is given the inputs of `EffiMini.forward`.
        dataset: the samples.
        dist: this process among the others.
        params: as for `each_sample`.
        seen: what of a sample the model is shown. Of a text that it is not shown the first token is left, which every
            text has.
    """
    model.eval()

    def function(images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, has_image: torch.Tensor) -> Any:
        if seen == "image":
            tokens, mask = tokens[:, :1], mask[:, :1]
        elif seen == "text":
            has_image = torch.zeros_like(has_image)
        return model(images, tokens, mask, has_image)

    keys: list[str] = []
    stars: list[npt.NDArray[np.float32]] = []
    for of_batch, found in each_sample(function, dataset, dist, params):
        keys += of_batch
        stars.append(found)
    gathered = dist.all_gather((keys, np.concatenate(stars)))
    of_key = {key: value for keys, values in gathered for key, value in zip(keys, values, strict=True)}
    return np.array([of_key[key] for key in dataset.keys], np.float32)


@torch.inference_mode()
def each_sample(
    function: Callable[..., torch.Tensor], dataset: ShardDataset, dist: Distributed, params: Params
) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Yield keys and what `function` gives for them, float32 [B, ...], of this rank's batches: each sample once.

    Args:
        function: is given the inputs of `EffiMini.forward`.
        dataset: the samples.
        dist: this process among the others.
        params: the sections train and stream are read.
    """
    loader = Loader(
        dataset,
        batch_size=params.train.batch_size,
        seed=None,
        rank=dist.rank,
        world_size=dist.world_size,
        workers=params.stream.workers,
        length_bucket_batches=LENGTH_BUCKET_BATCHES,
        max_damaged_fraction=params.stream.max_damaged_fraction,
    )
    for batch in bar(loader, f"predict {dataset.split}", len(loader)) if dist.rank == 0 else loader:
        yield batch.keys, function(*to_device(batch, dist.device)).float().cpu().numpy()


def clamp(stars: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return stars within [1, 5]."""
    return np.clip(stars, *STARS)
