"""How often epochs read the samples of weighted categories, over any shards, weights and epochs."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.core.errors import UserError
from shards.mixture import Mixture

WEIGHTS = st.sampled_from([0.5, 0.1, 0.333, 1.0, 2.0, 2.25, 3.7, 0.01, 1e-5])


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], list[str], dict[str, float], int | None]:
    """Draw shards of up to three categories, in any order, each with samples, and weights of some."""
    shards = draw(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ABC")), max_size=6))
    categories = sorted({name for _, name in shards})
    shards += [(draw(st.integers(1, 9)), name) for name in categories or ["A"]]
    names = [name for _, name in shards]
    weights = draw(st.dictionaries(st.sampled_from(names), WEIGHTS))
    return [size for size, _ in shards], names, weights, draw(st.none() | st.integers(0, 2**63 - 1))


@settings(deadline=None)
@given(mixtures(), st.integers(0, 1000), st.integers(1, 10))
def test_any_epochs_in_a_row_read_a_sample_as_often_as_its_weight_says(
    drawn: tuple[list[int], list[str], dict[str, float], int | None], first: int, epochs: int
) -> None:
    sizes, categories, weights, seed = drawn
    mixture = Mixture(sizes, categories, weights, seed)
    by_epoch = [[mixture.reads(shard, first + e) for shard in range(len(sizes))] for e in range(epochs)]
    for shard, category in enumerate(categories):
        expected = Fraction(str(weights.get(category, 1))) * epochs
        read = sum(reads[shard] for reads in by_epoch)
        assert set(np.asarray(read).tolist()) <= {floor(expected), ceil(expected)}
    for epoch, reads in enumerate(by_epoch):
        of_shard = [int(own.sum()) for own in reads]
        assert mixture.sizes(first + epoch).tolist() == of_shard
        assert mixture.fewest <= sum(of_shard) <= mixture.most
        for category in set(categories):
            own = [shard for shard, name in enumerate(categories) if name == category]
            expected = Fraction(str(weights.get(category, 1))) * sum(sizes[shard] for shard in own)
            assert sum(of_shard[shard] for shard in own) in {floor(expected), ceil(expected)}


def test_half_of_a_category_is_spread_over_its_shards_and_the_other_half_follows() -> None:
    mixture = Mixture([100] * 40, ["A", "B"] * 20, {"A": 0.5}, 7)
    first, second = ([mixture.reads(shard, epoch) for shard in range(40)] for epoch in (0, 1))
    both = [one + other for one, other in zip(first, second, strict=True)]
    assert all((reads == (2 if shard % 2 else 1)).all() for shard, reads in enumerate(both))
    assert all(48 <= one.sum() <= 52 for one in first[::2])
    assert all((mixture.reads(shard, 2) == first[shard]).all() for shard in range(40))
    other = Mixture([100] * 40, ["A", "B"] * 20, {"A": 0.5}, 8)
    differ = np.concatenate([first[shard] != other.reads(shard, 0) for shard in range(0, 40, 2)])
    assert 0.1 < differ.mean() < 0.9


def test_each_seed_has_its_samples_and_none_is_zero() -> None:
    def reads(seed: int | None) -> list[int]:
        return Mixture([99], ["A"], {"A": 0.5}, seed).reads(0, 0).tolist()

    assert reads(3) == reads(3)
    assert reads(None) == reads(0)
    assert len({tuple(reads(seed)) for seed in range(4)}) == 4


def test_a_category_may_have_no_samples() -> None:
    mixture = Mixture([0, 4, 0], ["A", "B", "B"], {"A": 2.0, "B": 0.5}, 1)
    assert mixture.sizes(0).tolist() == [0, 2, 0]
    assert mixture.reads(0, 0).tolist() == []


def test_a_billion_samples_are_counted_exactly() -> None:
    mixture = Mixture([10**6] * 1000, ["A"] * 1000, {"A": 1.234567}, 2**62)
    for epoch in (0, 999):
        sizes = mixture.sizes(epoch)
        assert sizes.sum() == 1_234_567_000
        assert sizes[617] == mixture.reads(617, epoch).sum()
        assert abs(sizes - 1_234_567).max() < 20


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"C": 2.0}, "train.mixture names C, which has no training samples here; the categories that have are A, B"),
        ({"A": 0.0}, r"train.mixture.A is 0.0; set it above 0"),
        ({"B": float("nan")}, r"train.mixture.B is nan; set it above 0"),
    ],
)
def test_a_weight_that_cannot_be_is_an_error(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Mixture([3, 4], ["A", "B"], weights, 1)
