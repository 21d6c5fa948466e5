"""The stream: batches of samples out of the shards, ready for the model.

In: ``data/shards/<category>/`` tars, indexes and manifests. Out: `Batch`es. Guaranteed (promises 5 and 6): the
batches of an epoch are a pure function of the manifests, the seed and the epoch, cut by rank and started at any
step; loader workers change nothing. The whole state of a reader is thus (manifest fingerprint, epoch, step).
Nothing is buffered and nothing is skipped.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from prep import files
from prep.faults import UserError
from shards import order
from shards.pixels import decode


class Batch(NamedTuple):
    """The samples of one step on one rank."""

    images: torch.Tensor  # uint8 [B, 3, H, W]
    tokens: torch.Tensor  # int64 [B, T], padded to the longest of the batch
    mask: torch.Tensor  # int64 [B, T], 1 where a token stands
    has_image: torch.Tensor  # bool [B]
    label: torch.Tensor  # float32 [B], average_rating in stars
    rating_number: torch.Tensor  # int64 [B]
    review_count: torch.Tensor  # int64 [B]
    keys: list[str]  # <category>/<parent_asin>
    global_size: int  # samples of this step over all ranks


class ShardDataset(Dataset[dict[str, Any]]):
    """The samples of one split, by number, through the shards' indexes.

    Attributes:
        keys: ``<category>/<parent_asin>`` of each sample.
        labels: float32, average_rating in stars.
        rating_number, review_count: int64.
        has_image: bool.
        image_size: height and width of the images, px.
        sizes: samples of each shard.
        fingerprint: of the shards read: equal fingerprints, equal samples in equal places.
    """

    def __init__(self, folder: Path, categories: Sequence[str], split: str) -> None:
        """Open the indexes of `split` in ``folder/<category>`` for each of `categories`.

        Raises:
            UserError: a manifest or an index is absent, or the split holds no sample.
        """
        self.split = split
        manifests = {category: files.read_json(folder / category / "manifest.json") for category in categories}
        shards = [
            (folder / category / shard["name"], category, shard)
            for category, manifest in manifests.items()
            for shard in manifest["shards"]
            if shard["split"] == split
        ]
        if not shards:
            raise UserError(f"{folder} holds no {split} sample of {', '.join(categories)}; run `dvc repro shard`")
        self.fingerprint = files.fingerprint([(c, s["name"], s["sha256"], s["index_sha256"]) for _, c, s in shards])
        self.image_size = int(manifests[categories[0]]["images"]["size"])
        self._tars = [path for path, _, _ in shards]
        indexes = [_read_index(path.with_suffix(".arrow")) for path in self._tars]
        self.sizes = [len(index) for index in indexes]
        self._shard = np.repeat(np.arange(len(shards)), self.sizes)
        self._index = pa.concat_tables(indexes)
        self.categories = [shards[s][1] for s in self._shard]
        self.keys = [f"{c}/{key}" for c, key in zip(self.categories, self._index["key"].to_pylist(), strict=True)]
        self.labels = self._index["average_rating"].to_numpy()
        self.rating_number = self._index["rating_number"].to_numpy()
        self.review_count = self._index["review_count"].to_numpy()
        self.has_image = self._index["has_image"].to_numpy()
        self.pad_id = int(indexes[0].schema.metadata[b"pad_id"])
        self._jpg = self._index["jpg_offset"].to_numpy(), self._index["jpg_length"].to_numpy()
        self._json = self._index["json_offset"].to_numpy(), self._index["json_length"].to_numpy()
        self._tokens = self._index["tokens"].combine_chunks()

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.image(i), "facts": self.facts(i)}

    def image(self, i: int) -> bytes:
        """Return the JPEG bytes of sample `i`; 1x1 px where it has no image."""
        return self._read(i, *self._jpg)

    def facts(self, i: int) -> dict[str, Any]:
        """Return the facts of sample `i`: `shards.tar.FACTS` by name."""
        facts: dict[str, Any] = json.loads(self._read(i, *self._json))
        return facts

    def batch(self, samples: order.Samples, global_size: int) -> Batch:
        """Read and decode `samples`, a part of a step of `global_size`, on CPU.

        Raises:
            UserError: an image is not of the size that the manifest states, or a tar ends too early.
        """
        ids = [self._tokens[int(i)].values.to_numpy() for i in samples]
        padded = np.full((len(ids), max(map(len, ids))), self.pad_id, np.int64)
        mask = np.zeros_like(padded)
        for row, sample_ids in enumerate(ids):
            padded[row, : len(sample_ids)] = sample_ids
            mask[row, : len(sample_ids)] = 1
        return Batch(
            images=torch.from_numpy(self._pixels(samples)),
            tokens=torch.from_numpy(padded),
            mask=torch.from_numpy(mask),
            has_image=torch.from_numpy(self.has_image[samples]),
            label=torch.from_numpy(self.labels[samples]),
            rating_number=torch.from_numpy(self.rating_number[samples]),
            review_count=torch.from_numpy(self.review_count[samples]),
            keys=[self.keys[i] for i in samples],
            global_size=global_size,
        )

    def _pixels(self, samples: order.Samples) -> npt.NDArray[np.uint8]:
        side = self.image_size
        # without an image any pixels do: the model multiplies their features by 0
        pixels = np.zeros((len(samples), side, side, 3), np.uint8)
        for row, i in enumerate(samples):
            if self.has_image[i]:
                picture = decode(self.image(i))
                if picture.shape != (side, side, 3):
                    raise UserError(
                        f"{self._tars[self._shard[i]]}: the image of {self.keys[i]} is {picture.shape[:2]} px, "
                        f"not {side} a side as its manifest says; run `dvc repro shard`"
                    )
                pixels[row] = picture
        return pixels.transpose(0, 3, 1, 2)

    def _read(self, i: int, offsets: Any, lengths: Any) -> bytes:
        tar = self._tars[self._shard[i]]
        descriptor = os.open(tar, os.O_RDONLY)
        try:
            content = os.pread(descriptor, int(lengths[i]), int(offsets[i]))
        finally:
            os.close(descriptor)
        if len(content) < lengths[i]:
            raise UserError(f"{tar} ends before sample {self.keys[i]}; run `dvc checkout` or `dvc repro shard`")
        return content


class _Steps(Dataset[Batch]):
    """The batches of one rank in one epoch, by step."""

    def __init__(self, samples: ShardDataset, steps: list[order.Samples], rank: int, world: int) -> None:
        self._samples, self._steps, self._rank, self._world = samples, steps, rank, world

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> Batch:
        whole = self._steps[step]
        return self._samples.batch(order.rank_share(whole, self._rank, self._world), len(whole))


def _as_it_is(batch: Any) -> Any:
    return batch


def batches(
    dataset: ShardDataset,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    start: int = 0,
    shuffle: bool = True,
) -> DataLoader[Batch]:
    """Return a loader of the batches of one rank in one epoch, from step `start` on.

    Args:
        dataset: the samples of a split.
        batch_size: samples of a global batch, over all ranks, at most.
        seed: of the run.
        epoch: from 0.
        rank: of this process, of `world`.
        world: how many processes share a global batch.
        workers: loader processes; they change nothing but the speed.
        start: the step to resume at.
        shuffle: False gives the shards' own order.

    Raises:
        UserError: a global batch has fewer samples than there are ranks.
    """
    samples = order.epoch_order(dataset.sizes, seed, epoch) if shuffle else np.arange(len(dataset))
    steps = order.global_batches(samples, batch_size)
    if len(steps[-1]) < world:
        raise UserError(
            f"{len(dataset)} {dataset.split} samples in batches of {batch_size} leave {world} ranks without work; "
            "raise train.batch_size or use fewer ranks"
        )
    every_step = _Steps(dataset, steps, rank, world)
    return DataLoader(
        every_step,
        batch_size=None,
        sampler=range(start, len(steps)),
        num_workers=workers,
        collate_fn=_as_it_is,
    )


def _read_index(path: Path) -> pa.Table:
    """Map an index into memory.

    Raises:
        UserError: it is absent or no Arrow file.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} is no index ({error}); run `dvc checkout` or `dvc repro shard`") from error
