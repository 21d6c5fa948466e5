"""The batches of epoch after epoch, on one of any number of ranks, from any step on.

In: a `ShardDataset`. Out: its `Batch`es. Guaranteed (promises 5 and 6): the batches are a pure function of the
manifests, the seed, the batch size and the pool, cut by rank; loader workers change nothing. The whole state is a few
values of JSON, and a state of other shards or another order is refused.
"""

import signal
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from prep.faults import UserError
from shards import order
from shards.stream import Batch, ShardDataset

_SMALL = ("has_image", "label", "rating_number", "review_count")


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
        world: int = 1,
        workers: int = 0,
        pool: int = 1,
        damaged_share: float = 0.0,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            dataset: the samples of a split.
            batch_size: samples of a global batch, over all ranks, at most.
            seed: of the run; None gives the shards' own order in every epoch.
            rank: of this process, of `world`.
            world: how many processes share a global batch.
            workers: loader processes; they change nothing but the speed.
            pool: consecutive batches that are sorted by length together, so that they are padded little; 1 for none.
            damaged_share: of a rank's samples of an epoch, whose image may be unreadable before reading stops.

        Raises:
            UserError: a global batch has fewer samples than there are ranks.
        """
        self.epoch = self.step = 0
        self.damaged: list[str] = []
        self._tokens = self._places = 0
        self._dataset, self._rank, self._world, self._workers = dataset, rank, world, workers
        self._batch_size, self._seed, self._pool, self._damaged_share = batch_size, seed, pool, damaged_share
        self._length = len(self._batches())
        if len(dataset) // self._length < world:
            raise UserError(
                f"{len(dataset)} {dataset.split} samples in batches of {batch_size} leave {world} ranks without work; "
                "raise train.batch_size or use fewer ranks"
            )

    def __len__(self) -> int:
        return self._length

    @property
    def padding(self) -> float:
        """Share of the tokens of the epoch at hand that is padding."""
        return 1 - self._tokens / max(1, self._places)

    def __iter__(self) -> Iterator[Batch]:
        self.damaged, self._tokens, self._places = [], 0, 0
        steps = _Steps(self._dataset, self._batches(), self._rank, self._world)
        reader: DataLoader[Batch | UserError] = DataLoader(
            steps,
            batch_size=None,
            sampler=range(self.step, len(self)),
            num_workers=self._workers,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals,
            pin_memory=torch.cuda.is_available(),
        )
        for read in reader:
            if isinstance(read, UserError):
                raise read
            self.step += 1
            batch = _unpacked(read) if self._workers else read
            self._count(batch)
            yield batch
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the batches taken so far, as JSON types."""
        ended = self.step == len(self)
        return {**self._identity(), "epoch": self.epoch + ended, "step": 0 if ended else self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks and workers.

        Raises:
            UserError: it is the state of other shards, or of another order.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise UserError(
                    f"the state to resume is of {name} {state.get(name)} and this run's is {value}; "
                    "restore what it was, or start anew"
                )
        self.epoch, self.step = int(state["epoch"]), int(state["step"])

    def _identity(self) -> dict[str, Any]:
        """Return what the meaning of (epoch, step) depends on."""
        return {
            "shards": self._dataset.fingerprint,
            "batch_size": self._batch_size,
            "seed": self._seed,
            "pool": self._pool,
        }

    def _batches(self) -> order.Epoch:
        return order.Epoch(
            self._dataset.shards.sizes,
            batch_size=self._batch_size,
            seed=self._seed,
            epoch=self.epoch,
            pool=self._pool,
            lengths=self._dataset.lengths,
        )

    def _count(self, batch: Batch) -> None:
        """Count padding and damage, and stop when there is more damage than its budget."""
        self._tokens += int(batch.mask.sum())
        self._places += batch.mask.numel()
        self.damaged += batch.damaged
        if len(self.damaged) > self._damaged_share * len(self._dataset) / self._world:
            raise UserError(
                f"{len(self.damaged)} images cannot be read, over the budget of {self._damaged_share:.1%} of "
                f"{len(self._dataset)} {self._dataset.split} samples; the last one is {self.damaged[-1]}; run "
                "`effimini lint` on the shards and `dvc checkout`, or raise stream.damaged_share"
            )


class _Steps(Dataset["Batch | UserError"]):
    """The batches of one rank in one epoch, by step."""

    def __init__(self, samples: ShardDataset, batches: order.Epoch, rank: int, world: int) -> None:
        self._samples, self._batches, self._rank, self._world = samples, batches, rank, world

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            worker = get_worker_info()
            turn = worker.id / worker.num_workers if worker else 0
            self._samples.shards.read_ahead(self._batches.shards_of(step), turn)
            whole = self._batches[step]
            batch = self._samples.batch(order.rank_share(whole, self._rank, self._world), len(whole))
            return _packed(batch) if worker else batch
        except UserError as error:  # raised in a worker it would arrive as a traceback
            return error


def _packed(batch: Batch) -> Any:
    """Make the small tensors arrays: each tensor that leaves a worker costs a connection to it, arrays go along."""
    small: dict[str, Any] = {name: getattr(batch, name).numpy() for name in _SMALL}
    return batch._replace(**small | {"tokens": batch.tokens.int().numpy(), "mask": batch.mask.bool().numpy()})


def _unpacked(batch: Any) -> Batch:
    """Undo `_packed`."""
    small = {name: torch.from_numpy(getattr(batch, name)) for name in ("tokens", "mask", *_SMALL)}
    whole: Batch = batch._replace(**small | {name: small[name].long() for name in ("tokens", "mask")})
    return whole


def _leave_signals(_: int) -> None:
    """Let who made the worker end it: it inherits handlers of signals that are not meant for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _as_it_is(batch: Any) -> Any:
    return batch
