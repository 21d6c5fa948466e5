"""Prediction of every sample of a split, in the order of the dataset.

Input: a model and the samples of a split. Output: one number per sample. Guarantees: each sample is predicted exactly
once, and the result does not depend on the number of ranks and workers.
"""

from collections.abc import Callable, Iterator, Sequence
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
from prep.core.tables.shards import STARS
from shards.loader import Loader
from shards.stream import Batch, ShardDataset
from shards.tokens import TokenizationConfig

LENGTH_BUCKET_BATCHES = 64  # batches sorted together by text length; affects predictions only by rounding
Modality: TypeAlias = Literal["both", "image", "text"]


def open_split(
    location: str | Path,
    params: Params,
    split: str,
    tokenization: TokenizationConfig,
    size: int,
    tabular: Sequence[str] = (),
) -> ShardDataset:
    """Open a split for a model of images of `size` x `size` px, texts by `tokenization`, and the columns `tabular`.

    Raises:
        UserError: as `ShardDataset`, or the images have a different size.
    """
    stream = params.stream
    dataset = ShardDataset(
        location,
        params.source.categories,
        split,
        tokenization,
        cache_bytes=stream.cache_bytes,
        connections=stream.connections,
        tabular=tabular,
    )
    if (found := dataset.shards.image_size) != size:
        raise UserError(
            f"{location} contains images of {found} px and the model reads {size} px; set images.resolution to {found}"
        )
    return dataset


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return the inputs of `EffiMini.forward` on `device`."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in (*batch[:4], batch.tabular))


def predict_split(
    model: nn.Module, dataset: ShardDataset, dist: Distributed, params: Params, seen: Modality = "both"
) -> npt.NDArray[np.float32]:
    """Return the model's unclamped stars, float32 [N], in the order of ``dataset.keys``; the same on every rank.

    The model is put in evaluation mode.

    Args:
        model: a module with the inputs of `EffiMini.forward`.
        dataset: the samples.
        dist: this process.
        params: as for `each_sample`.
        seen: the modality to show to the model. If it is "image", the text is reduced to its first token, which every
            text has.
    """
    model.eval()

    def function(
        images: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, has_image: torch.Tensor, tabular: torch.Tensor
    ) -> Any:
        if seen == "image":
            tokens, mask = tokens[:, :1], mask[:, :1]
        elif seen == "text":
            has_image = torch.zeros_like(has_image)
        return model(images, tokens, mask, has_image, tabular)

    keys: list[str] = []
    stars: list[npt.NDArray[np.float32]] = []
    for batch_keys, batch_stars in each_sample(function, dataset, dist, params):
        keys += batch_keys
        stars.append(batch_stars)
    gathered = dist.all_gather((keys, np.concatenate(stars)))
    star_of = {key: value for keys, values in gathered for key, value in zip(keys, values, strict=True)}
    return np.array([star_of[key] for key in dataset.keys], np.float32)


@torch.inference_mode()
def each_sample(
    function: Callable[..., torch.Tensor], dataset: ShardDataset, dist: Distributed, params: Params
) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Yield the keys and the output of `function`, float32 [B, ...], of each batch of this rank.

    Args:
        function: a function with the inputs of `EffiMini.forward`.
        dataset: the samples.
        dist: this process.
        params: the parameters; the sections train and stream are read.
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
    for batch in bar(loader, f"predict {dataset.split}: batches", len(loader)) if dist.rank == 0 else loader:
        yield batch.keys, function(*to_device(batch, dist.device)).float().cpu().numpy()


def clamp(stars: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return `stars` clamped to [1, 5]."""
    return np.clip(stars, *STARS)
