"""Which samples a step of a training reads, and which steps read a sample.

Input: the shards and the parameters of a training; no tar is read. Output: ids, ``<category>/<parent_asin>``, or steps.
Guarantees: the same as `shards.loader` gives on any number of ranks and workers, because both ask `shards.sampler`.
Indexes in a local folder are read as they are: that their sha256 is that of the manifest is checked by a training and
by `effimini lint`.

Epochs and steps count from 1, as in the log of a training. A step of the run counts through all epochs.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table

from prep.core import buckets
from prep.core.errors import UserError
from prep.core.keys import item_id, item_key
from prep.core.params import Params
from prep.core.parts import TEST, TRAIN, VALIDATION
from shards import sampler, skip
from shards.location import ShardLocation
from shards.mixture import Mixture
from shards.reader import Shards
from shards.tokens import TokenizationConfig

_Positions = npt.NDArray[np.intp]
_OPEN = 4 * sampler.WINDOW  # indexes that are kept open


class BatchIds(msgspec.Struct, frozen=True):
    """The samples of a step, over all ranks: rank r of n reads those at r, r + n, r + 2n ..."""

    epoch: int
    step: int  # of the epoch
    step_of_run: int
    ids: list[str]
    skipped: bool  # whether train.skip leaves the step out


class Place(msgspec.Struct, frozen=True):
    """A step that reads a sample."""

    id: str
    tar: str  # its path in the location
    epoch: int
    step: int  # of the epoch
    step_of_run: int
    position: int  # in the step, from 0; with n ranks, rank position modulo n reads it
    skipped: bool  # whether train.skip leaves the step out


class Steps:
    """The steps of a training, of which nothing is read before it is asked for.

    Attributes:
        per_epoch: number of steps of an epoch.
    """

    def __init__(self, params: Params, location: ShardLocation) -> None:
        """Read the manifests.

        Args:
            params: those of the training; the sections source, text, model and train are read.
            location: of its shards.

        Raises:
            UserError: as `shards.reader.Shards`, or train.mixture or train.skip do not fit the shards.
        """
        self._recipe = params.train
        by_length = self._recipe.length_bucket_batches > 1
        tokenization = TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)
        self._shards = Shards(location, params.source.categories, TRAIN, tokenization if by_length else None)
        self._first = np.concatenate([[0], np.cumsum(self._shards.sizes)])
        self._index = lru_cache(_OPEN)(self._shards.unverified)
        self._mixture = (
            Mixture(self._shards.sizes, self._shards.categories, self._recipe.mixture, self._recipe.seed)
            if self._recipe.mixture
            else None
        )
        self.per_epoch = len(self._order(1))
        skip.check(self._recipe.skipped, self.per_epoch, self._recipe.epochs)

    def batch(self, step: int, epoch: int | None = None) -> BatchIds:
        """Return the ids of a step, in the order of the batch.

        Args:
            step: of `epoch`, or of the run if that is None.
            epoch: the epoch.

        Raises:
            UserError: there is no such step or epoch.
        """
        epochs = self._recipe.epochs
        last = self.per_epoch * (epochs if epoch is None else 1)
        if not 1 <= step <= last:
            whole = f"the run has {last:,} steps" if epoch is None else f"an epoch has {last:,} steps"
            raise UserError(f"--step is {step}, and {whole}; give one from 1 to {last}")
        if epoch is None:
            before, step = divmod(step - 1, self.per_epoch)
            epoch, step = before + 1, step + 1
        self._check(epoch)
        samples = self._order(epoch)[step - 1]
        of_run = self._of_run(epoch, step)
        return BatchIds(epoch, step, of_run, self._ids(samples), self._skipped(of_run))

    def where(self, identity: str, epochs: Sequence[int] = ()) -> list[Place]:
        """Return the steps of a sample: one in each epoch, for each category that has the id.

        With train.mixture an epoch may have none or several.

        Args:
            identity: ``<category>/<parent_asin>``, or a parent_asin.
            epochs: those to look at; all of train.epochs if empty.

        Raises:
            UserError: there is no such epoch, or the id is not in the training split.
        """
        for epoch in epochs:
            self._check(epoch)
        found = self._find(identity)
        places = []
        for epoch in epochs or range(1, self._recipe.epochs + 1):
            order = self._order(epoch)
            for sample in found:
                shard = int(np.searchsorted(self._first, sample, "right")) - 1
                tar = self._shards.name(shard).removeprefix(self._shards.location.full(""))
                name = self._ids(np.array([sample]))[0]
                for step, position in order.places_of(sample):
                    of_run = self._of_run(epoch, step + 1)
                    places.append(Place(name, tar, epoch, step + 1, of_run, position, self._skipped(of_run)))
        return places

    def _skipped(self, step_of_run: int) -> bool:
        return bool(skip.skipped(self._recipe.skipped, step_of_run, step_of_run))

    def _check(self, epoch: int) -> None:
        if not 1 <= epoch <= self._recipe.epochs:
            raise UserError(f"--epoch is {epoch}, and train.epochs is {self._recipe.epochs}; epochs count from 1")

    def _of_run(self, epoch: int, step: int) -> int:
        return (epoch - 1) * self.per_epoch + step

    def _order(self, epoch: int) -> sampler.EpochSampler:
        return sampler.EpochSampler(
            self._shards.sizes,
            batch_size=self._recipe.batch_size,
            seed=self._recipe.seed,
            epoch=epoch - 1,
            length_bucket_batches=self._recipe.length_bucket_batches,
            lengths=self._lengths,
            mixture=self._mixture,
        )

    def _places(
        self, samples: sampler.SampleNumbers
    ) -> Iterator[tuple[int, npt.NDArray[np.intp], sampler.SampleNumbers]]:
        """Yield each shard of `samples`, which of them it has, and their rows in it."""
        shards = np.searchsorted(self._first, samples, "right") - 1
        order = np.argsort(shards, kind="stable")
        found, starts = np.unique(shards[order], return_index=True)
        for shard, own in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            yield shard, own, samples[own] - self._first[shard]

    def _lengths(self, samples: sampler.SampleNumbers) -> npt.NDArray[np.int64]:
        lengths = np.empty(len(samples), np.int64)
        for shard, own, rows in self._places(samples):
            starts = self._index(shard)["tokens"].combine_chunks().offsets.to_numpy()
            lengths[own] = starts[rows + 1] - starts[rows]
        return lengths

    def _ids(self, samples: sampler.SampleNumbers) -> list[str]:
        ids = np.empty(len(samples), object)
        for shard, own, rows in self._places(samples):
            category = self._shards.categories[shard]
            ids[own] = [f"{category}/{item_id(key)}" for key in self._index(shard)["key"].take(rows).to_pylist()]
        return ids.tolist()

    def _find(self, identity: str) -> list[int]:
        """Return the numbers of the samples with an id.

        Raises:
            UserError: there is none.
        """
        shards, categories = self._shards, self._shards.categories
        only, key = _category_and_key(identity, categories)
        found = list(_near(shards, only, key))
        if not found:
            for split in (VALIDATION, TEST):
                if any(shard.split == split for about in shards.manifests for shard in about.shards):
                    others = Shards(shards.location, [about.category for about in shards.manifests], split, None)
                    for shard, _ in _near(others, only, key):
                        raise UserError(
                            f"{others.categories[shard]}/{item_id(key)} is in the {split} split, which no step of a "
                            f"training reads; its tar is {others.name(shard)}"
                        )
            # in shards that others made, samples may have any order
            every = (shard for shard, category in enumerate(categories) if only in {"", category})
            found = [(shard, row) for shard in every if (row := _row(shards.unverified(shard)["key"], key)) >= 0]
        if not found:
            raise UserError(
                f"{identity} is not in the training split of {', '.join(dict.fromkeys(categories))} in "
                f"{shards.location.url}; data/sample and data/exclusions say what became of an item"
            )
        return [int(self._first[shard]) + row for shard, row in found]


def _near(shards: Shards, only: str, key: str) -> Iterator[tuple[int, int]]:
    """Yield the shards and rows that have a key, one in a category, where shards have their samples in item order.

    The items of a part (of a band, or of a split) are sorted by a hash, which is even, so it says about where a key is.

    Args:
        shards: of a split.
        only: the category to look in; "" for all.
        key: the key.
    """
    order = int(buckets.item_order(pa.array([key]))[0])
    parts: dict[tuple[str, str], list[int]] = defaultdict(list)
    own = (
        (about.category, tar.part) for about in shards.manifests for tar in about.shards if tar.split == shards.split
    )
    for shard, (category, part) in enumerate(own):
        if only in {"", category}:
            parts[category, part].append(shard)
    for members in parts.values():
        ends = np.cumsum([shards.sizes[shard] for shard in members])
        place, before = int(np.searchsorted(ends, order / 2**64 * ends[-1], "right")), 0
        while 0 <= place < len(members):
            keys = shards.unverified(members[place])["key"]
            first, last = buckets.item_order(pa.array([keys[0].as_py(), keys[-1].as_py()])).tolist()
            step = int(order > last) - int(order < first)
            if not step:
                if (row := _row(keys, key)) >= 0:
                    yield members[place], row
                break
            if step == -before:  # it would be between the last two
                break
            place, before = place + step, step


def _row(keys: pa.ChunkedArray, key: str) -> int:
    """Return the row of a key, -1 if it is not there."""
    return int(pc.index(keys, key).as_py())


def _category_and_key(identity: str, categories: Sequence[str]) -> tuple[str, str]:
    """Return the category of an id, "" if it names none, and its key in an index: what ids are compared with."""
    category, _, key = identity.partition("/")
    return (category, item_key(key)) if category in categories else ("", item_key(identity))


def steps(params: Params, location: str | Path) -> Steps:
    """Return the steps of a training on the shards of a location; see `Steps`."""
    return Steps(params, ShardLocation(location, params.stream.cache_bytes, params.stream.connections))


def place_table(places: Sequence[Place]) -> Table:
    """Return the result of `Steps.where` as a table to print."""
    table = Table()
    skipped = any(place.skipped for place in places)
    for heading in ("id", "epoch", "step", "of the run", "position", "tar", *["left out"] * skipped):
        is_text = heading in {"id", "tar", "left out"}
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading == "id", overflow="fold")
    for place in places:
        numbers = (place.epoch, place.step, place.step_of_run, place.position)
        left_out = ["by train.skip" if place.skipped else ""] * skipped
        table.add_row(escape(place.id), *(f"{number:,}" for number in numbers), escape(place.tar), *left_out)
    return table
