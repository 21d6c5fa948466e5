"""The batches of epoch after epoch, on one of any number of ranks, from any step on.

In: a `ShardDataset`. Out: its `Batch`es. Guaranteed (promises 5 and 6): the batches are a pure function of the
manifests, the seed, the batch size and the pool, cut by rank; workers change nothing. The whole state is a few
values of JSON, and a state of other shards or another order is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict

import torch

from prep.core.errors import UserError
from shards import sampler
from shards.prefetch import prefetch
from shards.stream import Batch, ShardDataset


class LoaderState(TypedDict):
    """The place of the batch that comes next, and what its meaning depends on."""

    shards: str  # their fingerprint
    batch_size: int
    seed: int | None
    length_bucket_batches: int
    epoch: int
    step: int


class Loader:
    """The batches of one rank: iterating gives the rest of the epoch at hand and moves on to the next.

    Attributes:
        epoch, step: the place of the batch that comes next, both from 0.
        padding: share of the tokens of the epoch at hand that is padding.
        damaged: images of the epoch at hand that could not be read, each with its reason.
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
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            dataset: the samples of a split.
            batch_size: samples of a global batch, over all ranks, at most.
            seed: of the run; None gives the shards' own order in every epoch.
            rank: of this process, of `world_size`.
            world_size: how many processes share a global batch.
            workers: threads that read ahead; they change nothing but the speed. 0 reads when asked.
            length_bucket_batches: consecutive batches that are sorted by length together, so that they are padded
                little; 1 for none.
            max_damaged_fraction: of a rank's samples of an epoch, whose image may be unreadable before reading stops.

        Raises:
            UserError: a global batch has fewer samples than there are ranks.
        """
        self.epoch = self.step = 0
        self.damaged: list[str] = []
        self._tokens = self._places = 0
        self._dataset, self._rank, self._world_size, self._workers = dataset, rank, world_size, workers
        self._batch_size, self._seed, self._length_bucket_batches, self._max_damaged_fraction = (
            batch_size,
            seed,
            length_bucket_batches,
            max_damaged_fraction,
        )
        self._length = len(self._batches(dataset))
        if len(dataset) // self._length < world_size:
            raise UserError(
                f"{len(dataset)} {dataset.split} samples in batches of {batch_size} leave some of {world_size} ranks "
                "without work; raise train.batch_size or use fewer ranks"
            )

    def __len__(self) -> int:
        return self._length

    @property
    def padding(self) -> float:
        """Share of the tokens of the epoch at hand that is padding."""
        return 1 - self._tokens / max(1, self._places)

    def __iter__(self) -> Iterator[Batch]:
        self.damaged, self._tokens, self._places = [], 0, 0
        readers = [self._reader() for _ in range(max(1, self._workers))]
        steps = self._prefetched_steps()
        batches = prefetch(readers, steps) if self._workers else map(readers[0], steps)
        for batch in batches:
            self.step += 1
            self._count(batch)
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> LoaderState:
        """Return the state after the batches taken so far, as JSON types."""
        ended = self.step == len(self)
        return {
            "shards": self._dataset.fingerprint,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "length_bucket_batches": self._length_bucket_batches,
            "epoch": self.epoch + ended,
            "step": 0 if ended else self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks and workers.

        Raises:
            UserError: it is the state of other shards, or of another order.
        """
        for name, value in self.state_dict().items():
            if name not in {"epoch", "step"} and state.get(name) != value:
                raise UserError(
                    f"the state to resume is of {name} {state.get(name)} and this run's is {value}; "
                    "restore what it was, or start anew"
                )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _batches(self, dataset: ShardDataset) -> sampler.EpochSampler:
        return sampler.EpochSampler(
            dataset.shards.sizes,
            batch_size=self._batch_size,
            seed=self._seed,
            epoch=self.epoch,
            length_bucket_batches=self._length_bucket_batches,
            lengths=dataset.lengths,
        )

    def _prefetched_steps(self) -> Iterator[int]:
        """Yield the steps of the rest of the epoch, beginning to download what each will read."""
        batches = self._batches(self._dataset)
        for step in range(self.step, len(self)):
            self._dataset.shards.prefetch(batches.shards_of(step))
            yield step

    def _reader(self) -> Callable[[int], Batch]:
        """Return what reads this rank's part of a step of the epoch at hand, for one thread."""
        dataset = self._dataset.reopened()
        batches = self._batches(dataset)
        gpu = torch.cuda.current_device() if torch.cuda.is_available() else None

        def read(step: int) -> Batch:
            whole = batches[step]
            batch = dataset.batch(sampler.rank_slice(whole, self._rank, self._world_size), len(whole))
            return batch if gpu is None else _pinned(batch, gpu)

        return read

    def _count(self, batch: Batch) -> None:
        """Count padding and damage, and stop when there is more damage than its budget."""
        self._tokens += int(batch.mask.sum())
        self._places += batch.mask.numel()
        self.damaged += batch.damaged
        if len(self.damaged) > self._max_damaged_fraction * len(self._dataset) / self._world_size:
            raise UserError(
                f"{len(self.damaged)} images cannot be read, over the budget of {self._max_damaged_fraction:.1%} of "
                f"{len(self._dataset)} {self._dataset.split} samples; the last one is {self.damaged[-1]}; run "
                "`effimini lint` on the shards and `dvc checkout`, or raise stream.max_damaged_fraction"
            )


def _pinned(batch: Batch, gpu: int) -> Batch:
    """Return a batch in pinned memory, from which copies to `gpu` overlap with its work."""
    with torch.cuda.device(gpu):  # or a new thread would take memory of GPU 0
        tensors = {name: value for name, value in batch._asdict().items() if isinstance(value, torch.Tensor)}
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return batch._replace(**pinned)
