"""Promise 5 on numbers alone: the order of an epoch over ranks, shards and uneven sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import order

SIZES = {1: [37], 7: [5, 1, 9, 2, 11, 3, 8], 64: [(7 * i) % 11 + 1 for i in range(64)]}


@pytest.mark.parametrize("shards", [1, 7, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [4, 7, 32])
def test_each_sample_once_and_the_same_global_batches_on_any_ranks(shards: int, world: int, batch_size: int) -> None:
    sizes = SIZES[shards]
    steps = order.global_batches(order.epoch_order(sizes, 1, 0), batch_size)
    assert sorted(np.concatenate(steps)) == list(range(sum(sizes)))
    lengths = [len(step) for step in steps]
    assert max(lengths) <= batch_size
    assert max(lengths) - min(lengths) <= 1
    for step in steps:
        shares = [order.rank_share(step, rank, world) for rank in range(world)]
        assert sorted(np.concatenate(shares)) == sorted(step)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_another_epoch_or_seed_gives_another_order_and_the_same_gives_the_same() -> None:
    orders = {(s, e): tuple(order.epoch_order(SIZES[7], s, e)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert tuple(order.epoch_order(SIZES[7], 2, 1)) == orders[2, 1]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 8))
def test_reads_stay_within_a_window_of_shards(sizes: list[int], window: int) -> None:
    samples = order.epoch_order(sizes, 0, 0, window)
    shard = np.repeat(np.arange(len(sizes)), sizes)[samples]
    assert sorted(samples) == list(range(sum(sizes)))
    last_seen = {s: int(np.flatnonzero(shard == s)[-1]) for s in shard}
    open_at = [len({s for s in set(shard[: i + 1]) if last_seen[s] > i}) for i in range(len(shard))]
    assert max(open_at) <= window


def test_samples_of_a_window_are_mixed() -> None:
    samples = order.epoch_order([500, 500], 3, 0)
    assert 200 < (samples[:500] < 500).sum() < 300
