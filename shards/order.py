"""An epoch's order, as a pure function: which sample stands in which batch of which rank.

In: the sample counts of the shards, a seed, an epoch, and the numbers of ranks and samples a batch. Out: arrays of
sample numbers. Guaranteed (promise 5): each sample stands in one batch of one rank an epoch; every rank has the
same number of batches; the global batches are the same whatever the ranks, and differ by at most one sample in
size, as do the ranks' shares of one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int64]

WINDOW = 64  # shards whose samples are mixed: reads stay local in time


def epoch_order(sizes: Sequence[int], seed: int, epoch: int, window: int = WINDOW) -> Samples:
    """Return every sample number once, in the order of an epoch.

    The shards are shuffled and cut into windows, and the samples of a window are shuffled among themselves.

    Args:
        sizes: samples of each shard; sample numbers count through the shards in turn.
        seed: of the run.
        epoch: from 0; another epoch, another order.
        window: shards a window.
    """
    random = np.random.default_rng([seed, epoch])
    first = np.concatenate([[0], np.cumsum(sizes)])
    shards = random.permutation(len(sizes))
    windows = [
        random.permutation(np.concatenate([np.arange(first[s], first[s + 1]) for s in shards[at : at + window]]))
        for at in range(0, len(shards), window)
    ]
    return np.concatenate(windows).astype(np.int64)


def global_batches(order: Samples, batch_size: int) -> list[Samples]:
    """Cut an order into as few even batches as hold at most `batch_size` samples each."""
    return np.array_split(order, max(1, -(-len(order) // batch_size)))


def rank_share(batch: Samples, rank: int, world: int) -> Samples:
    """Return the samples of a global batch that one of `world` ranks takes."""
    return batch[rank::world]
