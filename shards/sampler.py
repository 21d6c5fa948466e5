"""The order of an epoch as a pure function: the samples of each batch of each rank.

Input: the sample counts of the shards, a seed, an epoch, the batch size, the length of each sample, and a mixture.
Output: arrays of sample numbers, by step. Guarantees: without a mixture each sample is in exactly one batch of one rank
per epoch, with one as often as it says; all ranks have the same number of batches, and so have all epochs; the global
batches do not depend on the number of ranks; their sizes differ by at most one sample in an epoch, and so do the sizes
of the ranks' parts of a batch. A step is computed without the steps before it, from a window of shards, independently
of the total number of samples.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from prep.core.errors import UserError
from shards.mixture import Mixture

SampleNumbers = npt.NDArray[np.int64]
Lengths = Callable[[SampleNumbers], npt.NDArray[np.int64]]

WINDOW = 64  # shards whose samples are shuffled together, so that few shards are read at a time


class EpochSampler:
    """The global batches of an epoch: ``sampler[step]`` returns the sample numbers of a step.

    The shards are shuffled and divided into windows, and the samples of each window are shuffled, repeats among them.
    Then the samples of several consecutive batches may be sorted by length to reduce padding; the order of these
    batches is shuffled again.

    Attributes:
        total: samples that the epoch reads, repeats counted.
        fewest: samples that any epoch reads at least.

    Raises:
        UserError: an epoch of the mixture has fewer samples than steps.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        seed: int | None,
        epoch: int = 0,
        length_bucket_batches: int = 1,
        lengths: Lengths | None = None,
        window: int = WINDOW,
        mixture: Mixture | None = None,
    ) -> None:
        """Configure an epoch; nothing is computed before the first step is requested.

        Args:
            sizes: number of samples of each shard; samples are numbered consecutively through the shards.
            batch_size: maximal number of samples of a global batch.
            seed: of the run; None keeps the order of the shards.
            epoch: from 0; each epoch has a different order.
            length_bucket_batches: number of batches that are sorted by length together; 1 disables sorting.
            lengths: returns the lengths of the given samples; required if `length_bucket_batches` is above 1.
            window: number of shards per window.
            mixture: how often each sample is read; None: once.
        """
        self._seed, self._epoch, self._length_bucket_batches, self._lengths, self._width = (
            seed,
            epoch,
            length_bucket_batches,
            lengths,
            window,
        )
        self._mixture = mixture
        self._shards = self._permuted(np.arange(len(sizes)), 0)
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        read = np.asarray(sizes if mixture is None else mixture.sizes(epoch))
        in_order = np.concatenate([[0], np.cumsum(read[self._shards])])
        # first position of each window in the order of the epoch, and the end
        self._windows = np.append(in_order[:-1:window], in_order[-1])
        self.total = int(in_order[-1])
        self.fewest, most = (self.total, self.total) if mixture is None else (mixture.fewest, mixture.most)
        self._steps = max(1, -(-most // batch_size))
        if self.fewest < self._steps:
            raise UserError(
                f"train.mixture leaves {self.fewest} samples for the {self._steps} steps of an epoch; give it larger "
                "weights, or raise train.batch_size"
            )
        # steps are mostly read in order
        self._window = lru_cache(1)(self._draw_window)
        self._bucket = lru_cache(1)(self._draw_bucket)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> SampleNumbers:
        number, batch = divmod(step, self._length_bucket_batches)
        return self._bucket(number)[batch]

    def places_of(self, sample: int) -> list[tuple[int, int]]:
        """Return each step that has a sample, and its position there: one, or with a mixture none or several."""
        shard = int(np.searchsorted(self._first, sample, "right")) - 1
        window = int(np.flatnonzero(self._shards == shard)[0]) // self._width
        drawn = self._window(window)
        positions = int(self._windows[window]) + np.flatnonzero(drawn == sample)
        near = self._length_bucket_batches
        buckets = {self._step_at(position) // near for position in positions.tolist()}
        steps = (step for bucket in sorted(buckets) for step in range(bucket * near, (bucket + 1) * near))
        return [
            (step, position)
            for step in steps
            if step < self._steps
            for position in np.flatnonzero(self[step] == sample).tolist()
        ]

    def shards_of(self, step: int) -> npt.NDArray[np.int64]:
        """Return the shards read around `step`, in the order of the epoch: those of its windows and of the next one."""
        first = self._window_at(self._bound(step - step % self._length_bucket_batches))
        last = self._window_at(
            self._bound(min(step - step % self._length_bucket_batches + self._length_bucket_batches, self._steps)) - 1
        )
        return self._shards[first * self._width : (last + 2) * self._width]

    def _bound(self, step: int) -> int:
        """Return the first position of a step in the order of the epoch: batches are even, larger ones first."""
        least, larger = divmod(self.total, self._steps)
        return step * least + min(step, larger)

    def _step_at(self, position: int) -> int:
        """Return the step of a position in the order of the epoch before it is sorted: the inverse of `_bound`."""
        least, larger = divmod(self.total, self._steps)
        of_larger = larger * (least + 1)
        return position // (least + 1) if position < of_larger else larger + (position - of_larger) // least

    def _window_at(self, position: int) -> int:
        return int(np.searchsorted(self._windows, position, "right")) - 1

    def _of_window(self, number: int, begin: int, end: int) -> SampleNumbers:
        """Return the samples of a window at positions `begin` to `end` in the order of the epoch."""
        first = int(self._windows[number])
        return self._window(number)[max(0, begin - first) : end - first]

    def _draw_window(self, number: int) -> SampleNumbers:
        shards = self._shards[number * self._width : (number + 1) * self._width]
        samples = np.concatenate([np.arange(self._first[s], self._first[s + 1]) for s in shards])
        if self._mixture is not None:
            samples = samples.repeat(np.concatenate([self._mixture.reads(int(s), self._epoch) for s in shards]))
        return self._permuted(samples, 1, number)

    def _draw_bucket(self, number: int) -> list[SampleNumbers]:
        steps = range(
            number * self._length_bucket_batches, min((number + 1) * self._length_bucket_batches, self._steps)
        )
        bounds = [self._bound(step) for step in (*steps, steps.stop)]
        windows = range(self._window_at(bounds[0]), self._window_at(bounds[-1] - 1) + 1)
        samples = np.concatenate([self._of_window(w, bounds[0], bounds[-1]) for w in windows])
        if self._lengths is not None and len(steps) > 1:
            samples = samples[np.argsort(self._lengths(samples), kind="stable")]
        batches = np.split(samples, np.subtract(bounds[1:-1], bounds[0]))
        return [batches[b] for b in self._permuted(np.arange(len(batches)), 2, number)]

    def _permuted(self, numbers: npt.NDArray[np.int64], *key: int) -> npt.NDArray[np.int64]:
        if self._seed is None or len(numbers) == 1:
            return numbers
        return np.random.default_rng([self._seed, self._epoch, *key]).permutation(numbers)


def rank_slice(batch: SampleNumbers, rank: int, world_size: int) -> SampleNumbers:
    """Return the samples of a global batch that belong to rank `rank` of `world_size`."""
    return batch[rank::world_size]
