"""A resumable loader: the batches of one rank, epoch after epoch, starting at any step.

Input: a `ShardDataset`. Output: its `Batch`es. Guarantees: the batches are a pure function of the manifests, the seed,
the batch size, the length bucketing, the mixture, the steps that are left out, and the rank; the number of workers does
not change them. The complete state is a few JSON values; a state of other shards or another order is rejected.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypedDict

import torch

from prep.core.errors import UserError
from shards import sampler
from shards.mixture import Mixture
from shards.prefetch import DEPTH, prefetch
from shards.skip import Ranges, skipped
from shards.stream import Batch, ShardDataset


class LoaderState(TypedDict):
    """Epoch and step of the next batch, and the settings that the order depends on."""

    shards: str  # fingerprint
    batch_size: int
    seed: int | None
    length_bucket_batches: int
    mixture: dict[str, float]
    skip: list[list[int]]
    epoch: int
    step: int


class Loader:
    """The batches of one rank: iterating yields the rest of the current epoch and then advances to the next.

    Attributes:
        epoch, step: of the next batch, both from 0.
        padding: fraction of the tokens of the current epoch that is padding.
        damaged: images of the current epoch that could not be read, each with its reason.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        length_bucket_batches: int = 1,
        max_damaged_fraction: float = 0.0,
        mixture: Mapping[str, float] | None = None,
        skip: Ranges = (),
    ) -> None:
        """Configure the batches; nothing is read yet.

        Args:
            dataset: the samples of a split.
            batch_size: maximal number of samples of a global batch, over all ranks.
            seed: of the run; None keeps the order of the shards in every epoch.
            rank: of this process, from 0 to `world_size` - 1.
            world_size: number of processes that divide a global batch.
            workers: threads that prefetch; they affect only the speed. 0 reads on demand.
            length_bucket_batches: number of consecutive batches that are sorted by length together, to reduce padding;
                1 disables it.
            max_damaged_fraction: of a rank's samples of an epoch; reading stops if more images are unreadable.
            mixture: how often per epoch the samples of a category are read, above 0; once if it is not named.
            skip: steps that are left out, as (first, last), counted from 1 through all epochs.

        Raises:
            UserError: a global batch has fewer samples than there are ranks, or as `Mixture`.
        """
        self.epoch = self.step = 0
        self.damaged: list[str] = []
        self._tokens = self._places = self._samples = 0
        self._dataset, self._rank, self._world_size, self._workers = dataset, rank, world_size, workers
        self._batch_size, self._seed, self._length_bucket_batches, self._max_damaged_fraction = (
            batch_size,
            seed,
            length_bucket_batches,
            max_damaged_fraction,
        )
        self._weights, self._skip = dict(mixture or {}), [list(steps) for steps in skip]
        self._mixture = (
            Mixture(dataset.shards.sizes, dataset.shards.categories, self._weights, seed) if self._weights else None
        )
        first = self._batches(dataset)
        self._length = len(first)
        if first.fewest // self._length < world_size:
            raise UserError(
                f"{first.fewest} {dataset.split} samples in batches of {batch_size} leave some of {world_size} ranks "
                "without work; raise train.batch_size or use fewer ranks"
            )

    def __len__(self) -> int:
        return self._length

    @property
    def padding(self) -> float:
        """Fraction of the tokens of the current epoch that is padding; 0 before its first batch."""
        return 1 - self._tokens / self._places if self._places else 0.0

    def __iter__(self) -> Iterator[Batch]:
        self.damaged, self._tokens, self._places = [], 0, 0
        threads = max(1, self._workers)
        dataset = self._dataset.reusing(DEPTH * threads)
        orders = [self._batches(dataset) for _ in range(threads)]
        self._samples = orders[0].total
        readers = [self._reader(dataset, order) for order in orders]
        steps = list(self.remaining())
        wanted = self._prefetched(steps)
        batches = prefetch(readers, wanted) if self._workers else map(readers[0], wanted)
        for step, batch in zip(steps, batches, strict=True):
            self.step = step + 1
            self._count(batch)
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def remaining(self) -> Iterator[int]:
        """Yield the steps of the current epoch that are still to come, from 0."""
        before = self.epoch * len(self)
        left_out = skipped(self._skip, before + 1, before + len(self))
        return (step for step in range(self.step, len(self)) if before + step + 1 not in left_out)

    def state_dict(self) -> LoaderState:
        """Return the state after the batches yielded so far, as JSON types."""
        ended = next(self.remaining(), None) is None
        return {
            "shards": self._dataset.fingerprint,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "length_bucket_batches": self._length_bucket_batches,
            "mixture": self._weights,
            "skip": self._skip,
            "epoch": self.epoch + ended,
            "step": 0 if ended else self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, on any number of ranks and workers. Steps after it may be left out, or not any more.

        Raises:
            UserError: the state belongs to other shards or another order, or to other steps left out before it.
        """
        state = {"mixture": {}, "skip": []} | dict(state)  # those of an earlier version have neither
        for name, value in self.state_dict().items():
            if name not in {"epoch", "step", "skip"} and state.get(name) != value:
                raise UserError(
                    f"the state to resume has {name} {state.get(name)}, and this run has {value}; "
                    "restore the former value, or start a new run"
                )
        epoch, step = int(state["epoch"]), int(state["step"])
        before = epoch * len(self) + step
        then, now = (skipped(ranges, 1, before) for ranges in (state["skip"], self._skip))
        if then != now:
            step = min(then ^ now)
            took, has = ("left out", "does not name") if step in then else ("took", "names")
            raise UserError(
                f"the state to resume, of after step {before}, {took} step {step}, which train.skip {has}; change "
                f"train.skip from step {before + 1} on only, or start a new run"
            )
        self.epoch, self.step = epoch, step

    def _batches(self, dataset: ShardDataset) -> sampler.EpochSampler:
        return sampler.EpochSampler(
            dataset.shards.sizes,
            batch_size=self._batch_size,
            seed=self._seed,
            epoch=self.epoch,
            length_bucket_batches=self._length_bucket_batches,
            lengths=dataset.lengths,
            mixture=self._mixture,
        )

    def _prefetched(self, steps: Iterable[int]) -> Iterator[int]:
        """Yield steps of the epoch; start downloading the shards that each will read."""
        batches = self._batches(self._dataset)
        for step in steps:
            self._dataset.shards.prefetch(batches.shards_of(step))
            yield step

    def _reader(self, dataset: ShardDataset, batches: sampler.EpochSampler) -> Callable[[int], Batch]:
        """Return a function that reads this rank's part of a step, for use in one thread."""
        gpu = torch.cuda.current_device() if torch.cuda.is_available() else None

        def read(step: int) -> Batch:
            samples = batches[step]
            batch = dataset.batch(sampler.rank_slice(samples, self._rank, self._world_size), len(samples))
            return batch if gpu is None else _pinned(batch, gpu)

        return read

    def _count(self, batch: Batch) -> None:
        """Count padding and damaged images.

        Raises:
            UserError: more images are damaged than the budget allows.
        """
        self._tokens += int(batch.mask.sum())
        self._places += batch.mask.numel()
        self.damaged += batch.damaged
        if len(self.damaged) > self._max_damaged_fraction * self._samples / self._world_size:
            raise UserError(
                f"{len(self.damaged)} images cannot be read, over the budget of {self._max_damaged_fraction:.1%} of "
                f"{self._samples} {self._dataset.split} samples; the last one is {self.damaged[-1]}; run "
                "`effimini lint` on the shards and `dvc checkout`, or raise stream.max_damaged_fraction"
            )


def _pinned(batch: Batch, gpu: int) -> Batch:
    """Return a batch in pinned memory, so that copies to `gpu` overlap with computation."""
    with torch.cuda.device(gpu):  # otherwise a new thread would allocate memory on GPU 0
        tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)}
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return batch._replace(**pinned)
