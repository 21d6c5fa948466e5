"""The samples of a split by number, and batches of them ready for the model.

Input: ``<location>/<category>/`` tars, indexes and manifests. Output: `Batch`es. Guarantees: no sample is buffered or
skipped; an image that cannot be read is listed in its batch, and its sample is treated as one without an image.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from prep.core.errors import UserError
from prep.core.tables.shards import SampleMetadata
from shards import sampler, tokens
from shards.images.pixels import decode
from shards.location import CACHE_BYTES, CONNECTIONS, ShardLocation
from shards.pool import Pool
from shards.reader import Index, Shards
from shards.tokens import TokenizationConfig


class Batch(NamedTuple):
    """The samples of one step on one rank."""

    images: torch.Tensor  # uint8 [B, 3, H, W], channels last in memory
    tokens: torch.Tensor  # int64 [B, T], padded to the longest of the batch
    mask: torch.Tensor  # int64 [B, T], 1 for tokens, 0 for padding
    has_image: torch.Tensor  # bool [B]
    label: torch.Tensor  # float32 [B], average_rating in stars
    rating_number: torch.Tensor  # int64 [B]
    review_count: torch.Tensor  # int64 [B]
    tabular: torch.Tensor  # float32 [B, C], NaN where missing; C columns as in `ShardDataset.tabular_names`
    keys: list[str]  # <category>/<parent_asin>
    global_size: int  # samples of this step over all ranks
    damaged: list[str]  # images that could not be read, each with its reason; has_image is False for them


class Sample(TypedDict):
    """The content of a sample in its tar."""

    image: bytes  # JPEG
    metadata: SampleMetadata


class ShardDataset(Dataset[Sample]):
    """The samples of one split, by number.

    Attributes:
        shards: the shards that contain them.
        split: name of the split.
        tabular_names: the tabular columns of a batch, in order; empty for shards of an older format.
        fingerprint: of the shards; if equal, the samples and their order are equal.
    """

    def __init__(
        self,
        location: str | Path,
        categories: Sequence[str],
        split: str,
        tokenization: TokenizationConfig | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
        connections: int = CONNECTIONS,
        tabular: Sequence[str] | None = None,
    ) -> None:
        """Read the manifests of `categories`.

        Args:
            location: a folder with one folder of shards per category, or its URL (see `shards.location`).
            categories: to read, in this order.
            split: train, validation or test.
            tokenization: tokenizer, fields and length of the text; None uses the token ids of the indexes.
            cache_bytes: size limit of the cache of remote files.
            connections: concurrent downloads per process.
            tabular: names of the tabular columns of a batch, in order; None: all of the shards.

        Raises:
            UserError: see `Shards`, or the shards lack one of `tabular`.
        """
        self.split = split
        self.shards = Shards(ShardLocation(location, cache_bytes, connections), categories, split, tokenization)
        self.fingerprint = self.shards.fingerprint
        self._choose_columns(self.shards.tabular if tabular is None else tabular)
        self._first = np.concatenate([[0], np.cumsum(self.shards.sizes)])
        self._pool = Pool(0)

    def __len__(self) -> int:
        return int(self._first[-1])

    def reusing(self, spare: int) -> "ShardDataset":
        """Return a copy whose batches use the memory of their images again, `spare` batches of it at most unused."""
        other = copy(self)
        other._pool = Pool(spare)
        return other

    def with_columns(self, tabular: Sequence[str]) -> Self:
        """Return a copy with other tabular columns.

        Raises:
            UserError: the shards lack one of them.
        """
        other = copy(self)
        other.__dict__.pop("tabular", None)
        other._choose_columns(tabular)
        return other

    def __getitem__(self, i: int) -> Sample:
        return {"image": self.image(i), "metadata": self.metadata(i)}

    def __getitems__(self, samples: Sequence[int]) -> Batch:
        """Return `samples` decoded: what a torch `DataLoader` asks for, together with `collate`."""
        return self.batch(np.asarray(samples), len(samples))

    @staticmethod
    def collate(batch: Batch) -> Batch:
        """Return the batch as it is: the ``collate_fn`` of a torch `DataLoader`, since nothing is left to collate."""
        return batch

    def image(self, i: int) -> bytes:
        """Return the JPEG bytes of sample `i`; a 1x1 px placeholder if it has no image.

        Raises:
            UserError: the tar is missing or damaged.
        """
        return bytes(self.shards.member(*self._place(i), "jpg"))

    def metadata(self, i: int) -> SampleMetadata:
        """Return the metadata of sample `i`.

        Raises:
            UserError: the tar is missing or damaged, or its JSON is not metadata.
        """
        return self.shards.metadata(*self._place(i))

    @cached_property
    def keys(self) -> list[str]:
        """``<category>/<parent_asin>`` of every sample."""
        of_shard = enumerate(self.shards.categories)
        return [f"{category}/{key}" for s, category in of_shard for key in self.shards.index(s).keys.to_pylist()]

    @property
    def categories(self) -> list[str]:
        """The category of every sample."""
        return np.repeat(self.shards.categories, self.shards.sizes).tolist()

    @cached_property
    def labels(self) -> npt.NDArray[np.float32]:
        """average_rating of every sample, stars."""
        return self._column("label")

    @cached_property
    def rating_number(self) -> npt.NDArray[np.int64]:
        """rating_number of every sample."""
        return self._column("rating_number")

    @cached_property
    def review_count(self) -> npt.NDArray[np.int64]:
        """review_count of every sample."""
        return self._column("review_count")

    @cached_property
    def has_image(self) -> npt.NDArray[np.bool_]:
        """Whether a sample has an image, of every sample."""
        return self._column("has_image")

    @cached_property
    def tabular(self) -> npt.NDArray[np.float32]:
        """The tabular columns of every sample, [N, C], NaN where missing."""
        return self._column("tabular")[:, self._tabular]

    def tabular_column(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tabular column of every sample, float32 [N], NaN where it is missing or the shards lack it."""
        if name not in self.shards.tabular:
            return np.full(len(self), np.nan, np.float32)
        return self._column("tabular")[:, self.shards.tabular.index(name)]

    def lengths(self, samples: sampler.SampleNumbers) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each of `samples`."""
        shards, rows = self._places(samples)
        found = np.empty(len(samples), np.int64)
        for shard in np.unique(shards):
            of_shard = shards == shard
            starts, at = self.shards.index(int(shard)).token_starts, rows[of_shard]
            found[of_shard] = starts[at + 1] - starts[at]
        return found

    def texts(self) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Yield the token ids of every sample."""
        for shard in range(len(self.shards.sizes)):
            index = self.shards.index(shard)
            for begin, end in pairwise(index.token_starts.tolist()):
                yield index.token_ids[begin:end]

    def batch(self, samples: sampler.SampleNumbers, global_size: int) -> Batch:
        """Read and decode `samples`, a part of a step of `global_size` samples, on the CPU; threads may do so at once.

        Raises:
            UserError: a tar or an index is missing, or an index is invalid.
        """
        shards, rows = (numbers.tolist() for numbers in self._places(samples))
        indexes = [self.shards.index(shard) for shard in shards]
        found = np.empty(len(rows), indexes[0].rows.dtype)
        for line, (index, row) in enumerate(zip(indexes, rows, strict=True)):
            found[line] = index.rows[row]

        def each(name: str) -> Iterator[tuple[Index, int, int]]:
            return zip(indexes, found[f"{name}_start"].tolist(), found[f"{name}_end"].tolist(), strict=True)

        def column(name: str) -> torch.Tensor:
            return torch.from_numpy(found[name].copy())

        names = [index.key(start, end) for index, start, end in each("key")]
        keys = [f"{self.shards.categories[shard]}/{name}" for shard, name in zip(shards, names, strict=True)]
        ids = [index.token_ids[start:end] for index, start, end in each("token")]
        padded, mask = tokens.pad(ids, indexes[0].pad_id)
        images, has_image, damaged = self._images(shards, found, keys)
        return Batch(
            images=images,
            tokens=torch.from_numpy(padded),
            mask=torch.from_numpy(mask),
            has_image=torch.from_numpy(has_image),
            label=column("label"),
            rating_number=column("rating_number"),
            review_count=column("review_count"),
            tabular=column("tabular")[:, self._tabular],
            keys=keys,
            global_size=global_size,
            damaged=damaged,
        )

    def _choose_columns(self, names: Sequence[str]) -> None:
        """Set the tabular columns of a batch."""
        if missing := [name for name in names if name not in self.shards.tabular]:
            raise UserError(
                f"{self.shards.location.url} has no tabular column {', '.join(missing)}, which model.tabular names; "
                "make the shards again, or leave it out"
            )
        self.tabular_names = tuple(names)
        self._tabular = [self.shards.tabular.index(name) for name in names]

    def _images(
        self, shards: Sequence[int], found: npt.NDArray[np.void], keys: Sequence[str]
    ) -> tuple[torch.Tensor, npt.NDArray[np.bool_], list[str]]:
        """Return the images as uint8 [B, 3, H, W], whether each sample has one, and the errors of damaged ones."""
        side = self.shards.image_size
        pixels = self._pool.take(len(found), side, side, 3)
        has_image = found["has_image"].copy()
        damaged = []
        places = (found[name].tolist() for name in ("has_image", "jpg_offset", "jpg_length"))
        for line, (into, shard, has, first, length) in enumerate(zip(pixels, shards, *places, strict=True)):
            try:
                if has:
                    height, width, _ = decode(self.shards.content(shard, first, length), into).shape
                    if (height, width) != (side, side):
                        raise ValueError(f"it has {width} x {height} px, expected {side} x {side}")
                    continue
            except ValueError as error:
                damaged.append(f"the image of {keys[line]} in {self.shards.name(shard)} ({error})")
                has_image[line] = False
            into[:] = 0  # any value works: the model multiplies the features by 0
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), has_image, damaged

    def _place(self, i: int) -> tuple[int, int]:
        """Return the shard of sample `i`, and its row there."""
        shards, rows = self._places(np.array([i]))
        return int(shards[0]), int(rows[0])

    def _places(self, samples: sampler.SampleNumbers) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the shard of each sample, and its row in the shard."""
        shards = np.searchsorted(self._first, samples, "right") - 1
        return shards, samples - self._first[shards]

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(self.shards.index(s), name) for s in range(len(self.shards.sizes))])
