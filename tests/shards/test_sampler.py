"""The order of an epoch over ranks, shards, length buckets and uneven sizes, on sample numbers only."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.core.errors import UserError
from shards.mixture import Mixture
from shards.sampler import EpochSampler, SampleNumbers, rank_slice

SIZES = {1: [37], 7: [5, 1, 9, 2, 11, 3, 8], 64: [(7 * i) % 11 + 1 for i in range(64)]}


def lengths(samples: SampleNumbers) -> SampleNumbers:
    return samples * 7919 % 97


@pytest.mark.parametrize("shards", [1, 7, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [4, 7, 32])
@pytest.mark.parametrize("length_bucket_batches", [1, 3, 1000])
@pytest.mark.parametrize("seed", [1, None])
def test_each_sample_once_and_even_batches_on_any_ranks(
    shards: int, world_size: int, batch_size: int, length_bucket_batches: int, seed: int | None
) -> None:
    sizes = SIZES[shards]
    epoch = EpochSampler(
        sizes, batch_size=batch_size, seed=seed, length_bucket_batches=length_bucket_batches, lengths=lengths, window=3
    )
    steps = [epoch[step] for step in range(len(epoch))]
    assert sorted(np.concatenate(steps)) == list(range(sum(sizes)))
    sizes_of_steps = [len(step) for step in steps]
    assert max(sizes_of_steps) <= batch_size
    assert max(sizes_of_steps) - min(sizes_of_steps) <= 1
    at = [[epoch.places_of(sample) for sample in step.tolist()] for step in steps]
    assert at == [[[(number, position)] for position in range(len(step))] for number, step in enumerate(steps)]
    for step in steps:
        shares = [rank_slice(step, rank, world_size) for rank in range(world_size)]
        assert sorted(np.concatenate(shares)) == sorted(step)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("length_bucket_batches", [1, 3])
def test_a_step_is_the_same_without_the_steps_before_it(length_bucket_batches: int) -> None:
    def epoch() -> EpochSampler:
        return EpochSampler(
            SIZES[64],
            batch_size=7,
            seed=5,
            epoch=2,
            length_bucket_batches=length_bucket_batches,
            lengths=lengths,
            window=4,
        )

    in_turn = [tuple(step) for step in (epoch()[s] for s in range(len(epoch())))]
    at_random = epoch()
    for step in np.random.default_rng(0).permutation(len(in_turn)):
        assert tuple(at_random[step]) == in_turn[step]


def test_the_order_is_that_of_earlier_versions() -> None:
    """A training that resumes after an upgrade reads the rest of its epoch."""
    given: dict[str, Any] = {"batch_size": 5, "seed": 42, "epoch": 1, "length_bucket_batches": 2, "lengths": lengths}
    epoch = EpochSampler([5, 1, 9, 2, 11, 3, 8], window=3, **given)
    expected = [
        [23, 34, 31, 17, 25], [33, 19, 35, 32, 26], [0, 36, 2, 24, 21], [18, 1, 37, 20, 3], [11, 22, 5, 16, 27],
        [38, 7, 4, 12, 6], [8, 30, 13, 10, 29], [15, 9, 28, 14],
    ]  # fmt: skip
    assert [epoch[step].tolist() for step in range(len(epoch))] == expected
    ones = Mixture(SIZES[7], ["A"] * 7, {"A": 1.0}, 42)
    weighted = EpochSampler(SIZES[7], window=3, mixture=ones, **given)
    assert [weighted[step].tolist() for step in range(len(weighted))] == expected


@pytest.mark.parametrize("shards", [7, 64])
@pytest.mark.parametrize("batch_size", [4, 7, 32])
@pytest.mark.parametrize("length_bucket_batches", [1, 3, 1000])
@pytest.mark.parametrize("seed", [1, None])
@pytest.mark.parametrize("weight", [0.3, 2.25])
def test_a_mixture_gives_even_batches_and_the_same_number_of_them_in_each_epoch(
    shards: int, batch_size: int, length_bucket_batches: int, seed: int | None, weight: float
) -> None:
    sizes, categories = SIZES[shards], [str(shard % 2) for shard in range(shards)]
    mixture = Mixture(sizes, categories, {"1": weight}, seed)
    numbers = set()
    for number in range(3):
        given = {"length_bucket_batches": length_bucket_batches, "lengths": lengths, "window": 3, "mixture": mixture}
        epoch, other = (EpochSampler(sizes, batch_size=batch_size, seed=seed, epoch=number, **given) for _ in range(2))  # type: ignore[arg-type]
        steps = [epoch[step] for step in range(len(epoch))]
        numbers.add(len(steps))
        reads = np.concatenate([mixture.reads(shard, number) for shard in range(shards)])
        found = np.bincount(np.concatenate(steps), minlength=sum(sizes))
        assert found.tolist() == reads.tolist()
        assert epoch.total == reads.sum()
        assert epoch.fewest == mixture.fewest
        assert len(epoch) == max(1, -(-mixture.most // batch_size))
        lasts = [len(step) for step in steps]
        assert max(lasts) <= batch_size
        assert max(lasts) - min(lasts) <= 1
        places: dict[int, list[tuple[int, int]]] = {sample: [] for sample in range(sum(sizes))}
        for step, samples in enumerate(steps):
            assert other[len(steps) - 1 - step].tolist() == steps[-1 - step].tolist()  # in any order of the steps
            for position, sample in enumerate(samples.tolist()):
                places[sample].append((step, position))
        assert all(other.places_of(sample) == at for sample, at in places.items())
    assert len(numbers) == 1


def test_a_mixture_that_leaves_steps_without_samples_is_an_error() -> None:
    mixture = Mixture([9], ["A"], {"A": 0.1}, 1)
    with pytest.raises(UserError, match=r"train.mixture leaves 0 samples for the 1 steps of an epoch; give it larger"):
        EpochSampler([9], batch_size=4, seed=1, mixture=mixture)


def test_the_order_depends_on_epoch_and_seed_only() -> None:
    def order(seed: int, **epoch: int) -> tuple[int, ...]:
        drawn = EpochSampler(SIZES[7], batch_size=4, seed=seed, **epoch)
        return tuple(int(sample) for step in range(len(drawn)) for sample in drawn[step])

    orders = {(s, e): order(s, epoch=e) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert order(2, epoch=1) == orders[2, 1]
    assert order(2) == orders[2, 0]


def test_without_a_seed_the_order_is_that_of_the_shards() -> None:
    epoch = EpochSampler(SIZES[7], batch_size=5, seed=None)
    assert [int(s) for step in range(len(epoch)) for s in epoch[step]] == list(range(sum(SIZES[7])))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 8))
def test_reads_stay_within_a_window_of_shards(sizes: list[int], window: int) -> None:
    epoch = EpochSampler(sizes, batch_size=1, seed=0, window=window)
    samples = np.array([epoch[step][0] for step in range(len(epoch))])
    shard = np.repeat(np.arange(len(sizes)), sizes)[samples]
    assert sorted(samples) == list(range(sum(sizes)))
    last_seen = {s: int(np.flatnonzero(shard == s)[-1]) for s in shard}
    open_at = [len({s for s in set(shard[: i + 1]) if last_seen[s] > i}) for i in range(len(shard))]
    assert max(open_at) <= window
    for step, of_step in enumerate(shard):
        assert of_step in epoch.shards_of(step)[:window]
        assert len(epoch.shards_of(step)) <= 2 * window


@pytest.mark.parametrize("length_bucket_batches", [1, 4])
def test_shards_of_returns_the_shards_read_around_a_step(length_bucket_batches: int) -> None:
    epoch = EpochSampler(
        SIZES[64], batch_size=7, seed=1, length_bucket_batches=length_bucket_batches, lengths=lengths, window=4
    )
    shard = np.repeat(np.arange(64), SIZES[64])
    for step in range(len(epoch)):
        assert set(shard[epoch[step]]) <= set(epoch.shards_of(step))


@pytest.mark.parametrize("near", [1, 4])
def test_shards_of_returns_the_windows_of_a_bucket_and_the_next_one(near: int) -> None:
    epoch = EpochSampler(SIZES[64], batch_size=7, seed=None, length_bucket_batches=near, lengths=lengths, window=4)
    shard = np.repeat(np.arange(64), SIZES[64])
    for step in range(len(epoch)):
        begin = step - step % near
        read = np.concatenate([shard[epoch[s]] for s in range(begin, min(begin + near, len(epoch)))])
        expected = range(read.min() // 4 * 4, min((read.max() // 4 + 2) * 4, 64))
        assert epoch.shards_of(step).tolist() == list(expected)


def test_a_step_draws_no_window_but_its_own_and_an_epoch_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [10] * 40
    mixture = Mixture(sizes, ["A"] * 40, {"A": 1.0}, 1)
    reads, drawn = mixture.reads, []
    monkeypatch.setattr(mixture, "reads", lambda shard, epoch: (drawn.append(shard), reads(shard, epoch))[1])
    epoch = EpochSampler(sizes, batch_size=16, seed=1, length_bucket_batches=3, window=4, mixture=mixture)
    assert len(epoch[len(epoch) - 1]) == 16
    assert len(drawn) == 4
    drawn.clear()
    for step in range(len(epoch)):
        assert len(epoch[step]) == 16
    assert sorted(drawn) == list(range(40))


def test_samples_of_a_window_are_shuffled() -> None:
    epoch = EpochSampler([500, 500], batch_size=500, seed=3)
    assert 200 < (epoch[0] < 500).sum() < 300


def test_length_bucketing_groups_similar_lengths_and_shuffles_the_batches() -> None:
    random = np.random.default_rng(0)
    long = random.integers(10, 257, 6400)
    drawn, pooled = (
        EpochSampler(
            [640] * 10,
            batch_size=64,
            seed=0,
            length_bucket_batches=length_bucket_batches,
            lengths=lambda samples: long[samples],
        )
        for length_bucket_batches in (1, 50)
    )
    steps = range(len(drawn))

    def padding(epoch: EpochSampler) -> float:
        return 1 - long.sum() / sum(long[epoch[s]].max() * len(epoch[s]) for s in steps)

    assert padding(pooled) < 0.05
    assert padding(drawn) > 0.4
    means = np.array([long[pooled[s]].mean() for s in steps])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_samples_of_equal_length_keep_their_order() -> None:
    def parity(samples: SampleNumbers) -> SampleNumbers:
        return samples % 2

    epoch = EpochSampler([100] * 3, batch_size=50, seed=None, length_bucket_batches=3, lengths=parity)
    order = [int(sample) for step in range(len(epoch)) for sample in epoch[step]]
    assert order == [*range(0, 150, 2), *range(1, 150, 2), *range(150, 300, 2), *range(151, 300, 2)]


def test_a_batch_that_is_not_sorted_with_others_keeps_its_order() -> None:
    def steps(**given: Any) -> list[list[int]]:
        epoch = EpochSampler(SIZES[64], batch_size=40, seed=1, length_bucket_batches=1, **given)
        return [epoch[step].tolist() for step in range(len(epoch))]

    assert steps(lengths=lengths) == steps()
