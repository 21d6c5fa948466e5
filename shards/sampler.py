"""An epoch's order, as a pure function: which sample stands in which batch of which rank.

In: the sample counts of the shards, a seed, an epoch, the samples a batch, and how long each sample is. Out: arrays of
sample numbers, by step. Guaranteed (promise 5): each sample stands in one batch of one rank an epoch; every rank has
the same number of batches; the global batches are the same whatever the ranks, and differ by at most one sample in
size, as do the ranks' shares of one. A step is had without the steps before it: what is computed for it is a window of
shards, however many samples there are.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

SampleNumbers = npt.NDArray[np.int64]
Lengths = Callable[[SampleNumbers], npt.NDArray[np.int64]]
Drawn = TypeVar("Drawn")

WINDOW = 64  # shards whose samples are mixed: reads stay local in time


class EpochSampler:
    """The global batches of an epoch: ``epoch[step]`` holds the sample numbers of a step.

    The shards are shuffled and cut into windows, and the samples of a window are shuffled among themselves. A pool of
    consecutive batches may then be sorted by length, so that a batch is padded little; its batches are shuffled again.
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
    ) -> None:
        """Describe an epoch; nothing is drawn before a step is asked for.

        Args:
            sizes: samples of each shard; sample numbers count through the shards in turn.
            batch_size: samples of a global batch, at most.
            seed: of the run; None keeps the shards' own order.
            epoch: from 0; another epoch, another order.
            length_bucket_batches: batches that are sorted by length together; 1 leaves them as they are drawn.
            lengths: gives the length of each sample asked for; needed for a pool.
            window: shards a window.
        """
        self._seed, self._epoch, self._length_bucket_batches, self._lengths, self._width = (
            seed,
            epoch,
            length_bucket_batches,
            lengths,
            window,
        )
        self._shards = self._permuted(np.arange(len(sizes)), 0)
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        in_order = np.concatenate([[0], np.cumsum(np.asarray(sizes)[self._shards])])
        # where in the order of the epoch each window begins, and the end
        self._windows = np.append(in_order[:-1:window], in_order[-1])
        self._total = int(in_order[-1])
        self._steps = max(1, -(-self._total // batch_size))
        self._drawn_windows: dict[int, SampleNumbers] = {}
        self._drawn_buckets: dict[int, list[SampleNumbers]] = {}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> SampleNumbers:
        number, place = divmod(step, self._length_bucket_batches)
        return _last_two(self._drawn_buckets, number, self._draw_bucket)[place]

    def shards_of(self, step: int) -> npt.NDArray[np.int64]:
        """Return the shards that are read around `step`, in the order of the epoch: its windows and the one after."""
        first = self._window_at(self._bound(step - step % self._length_bucket_batches))
        last = self._window_at(
            self._bound(min(step - step % self._length_bucket_batches + self._length_bucket_batches, self._steps)) - 1
        )
        return self._shards[first * self._width : (last + 2) * self._width]

    def _bound(self, step: int) -> int:
        """Return where in the order of the epoch a step begins: even batches, the larger ones first."""
        least, larger = divmod(self._total, self._steps)
        return step * least + min(step, larger)

    def _window_at(self, position: int) -> int:
        return int(np.searchsorted(self._windows, position, "right")) - 1

    def _of_window(self, number: int, begin: int, end: int) -> SampleNumbers:
        """Return those samples of a window that stand from `begin` to `end` in the order of the epoch."""
        first = int(self._windows[number])
        return _last_two(self._drawn_windows, number, self._draw_window)[max(0, begin - first) : end - first]

    def _draw_window(self, number: int) -> SampleNumbers:
        shards = self._shards[number * self._width : (number + 1) * self._width]
        samples = np.concatenate([np.arange(self._first[s], self._first[s + 1]) for s in shards])
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

    def _permuted(self, numbers: npt.NDArray[np.int64], *what: int) -> npt.NDArray[np.int64]:
        if self._seed is None:
            return numbers
        return np.random.default_rng([self._seed, self._epoch, *what]).permutation(numbers)


def rank_slice(batch: SampleNumbers, rank: int, world_size: int) -> SampleNumbers:
    """Return the samples of a global batch that one of `world_size` ranks takes."""
    return batch[rank::world_size]


def _last_two(drawn: dict[int, Drawn], number: int, draw: Callable[[int], Drawn]) -> Drawn:
    """Return what was drawn as `number`; two are kept, as a pool may reach into the next window."""
    if number not in drawn:
        while len(drawn) > 1:
            del drawn[next(iter(drawn))]
        drawn[number] = draw(number)
    return drawn[number]
