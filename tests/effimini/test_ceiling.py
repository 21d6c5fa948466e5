"""The noise ceiling, on ratings drawn from known true means."""

from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from effimini import ceiling
from effimini.metrics import Scatter, plcc

Array = npt.NDArray[np.float64]


class Made(NamedTuple):
    """Items with multinomial ratings."""

    truth: Array
    labels: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    categories: npt.NDArray[np.int64]
    scatter: float
    means: Array
    spreads: Array


def made(items: int, polarised: float, seed: int, *, middle: float = 2.6, alike: float = 0.0) -> Made:
    """Return items of three categories; a fraction of their ratings is 1 or 5 and the others are binomial.

    Args:
        items: number of items.
        polarised: that fraction.
        seed: of the draws.
        middle: log of the median rating count.
        alike: how much the spread of the true means falls per log(count).
    """
    random = np.random.default_rng(seed)
    counts = 1 + np.exp(random.normal(middle, 1.3, items)).astype(np.int64)
    categories = random.integers(0, 3, items)
    spread = 0.55 * np.maximum(1 - alike * np.log(counts), 0.3)
    truth = np.clip(4 - 0.2 * categories + spread * random.normal(size=items), 1.2, 4.9)
    high = (truth - 1) / 4
    shares = np.stack([(1 - polarised) * comb(4, k) * high**k * (1 - high) ** (4 - k) for k in range(5)], axis=1)
    shares[:, 0] += polarised * (1 - high)
    shares[:, 4] += polarised * high
    ratings, stars = random.multinomial(counts, shares), np.arange(1, 6)
    means = ratings @ stars / counts
    spreads = np.sqrt(np.maximum(ratings @ stars**2 / counts - means**2, 0))
    labels = means.round(1).astype(np.float32)
    return Made(truth, labels, counts, categories, polarised + (1 - polarised) / 4, means, spreads)


@pytest.mark.parametrize("polarised", [0, 0.3, 0.6])
def test_the_ceiling_is_the_plcc_of_the_true_means(polarised: float) -> None:
    drawn = made(50_000, polarised, 0)
    reached = plcc(drawn.truth, drawn.labels)
    assert ceiling.ceiling(drawn.labels, drawn.counts, drawn.scatter) == pytest.approx(reached, abs=0.01)
    for low, high in ((1, 5), (5, 10), (20, 50), (100, 10**9)):
        chosen = (drawn.counts >= low) & (drawn.counts < high)
        found = ceiling.ceiling(drawn.labels[chosen], drawn.counts[chosen], drawn.scatter)
        assert found == pytest.approx(plcc(drawn.truth[chosen], drawn.labels[chosen]), abs=0.03), (low, high)


@pytest.mark.parametrize("polarised", [0, 0.3, 0.6])
def test_the_scatter_is_estimated_from_labels(polarised: float) -> None:
    drawn = made(100_000, polarised, 1)
    found = ceiling.scatter_of_labels(drawn.labels, drawn.counts, drawn.categories)
    assert found.samples == (drawn.counts <= ceiling.FEW).sum()
    assert found.value == pytest.approx(drawn.scatter, abs=0.04)
    assert found.high - found.low < 0.15


def test_the_interval_holds_the_truth_of_small_data_even_if_popular_items_are_more_alike() -> None:
    inside = []
    for seed in range(10):
        drawn = made(2000, 0.4, seed, alike=0.08)
        scatter = ceiling.scatter_of_labels(drawn.labels, drawn.counts, drawn.categories)
        low, high = ceiling.ceiling_interval(drawn.labels, drawn.counts, scatter, 200, 0)
        inside.append(low <= plcc(drawn.truth, drawn.labels) <= high)
        assert low <= ceiling.ceiling(drawn.labels, drawn.counts, scatter.value) <= high
    assert sum(inside) >= 9


def test_the_scatter_of_reviews_is_that_of_their_ratings() -> None:
    for polarised in (0, 0.6):
        drawn = made(20_000, polarised, 2)
        several = drawn.counts > 1
        found = ceiling.scatter_of_reviews(drawn.means[several], drawn.spreads[several], drawn.counts[several])
        assert found == pytest.approx(drawn.scatter, abs=0.01)


def test_what_cannot_be_estimated_leaves_everything_possible() -> None:
    drawn = made(3000, 0.3, 3)
    few = drawn.counts <= ceiling.FEW
    none, sign = np.zeros(3000, np.int64), np.where(np.arange(3000) % 2, 1.0, -1.0)
    cases = {
        "no items with few ratings": (drawn.labels[~few], drawn.counts[~few]),
        "too few of them": (drawn.labels[: ceiling.ENOUGH // 2], drawn.counts[: ceiling.ENOUGH // 2]),
        "one count": (drawn.labels, none + 3),
        "equal labels": (np.full(3000, np.float32(4)), drawn.counts),
        "no counts": (drawn.labels, none),
        "labels that vary more with more ratings": (4 + sign * (0.6 - 0.5 / drawn.counts), drawn.counts),
    }
    for name, (labels, counts) in cases.items():
        assert ceiling.scatter_of_labels(labels, counts, none[: len(labels)]) == ceiling.UNKNOWN, name


def test_many_ratings_leave_a_high_ceiling_even_if_nothing_is_known_of_their_scatter() -> None:
    many = made(500, 0.6, 4, middle=8)
    low, high = ceiling.ceiling_interval(many.labels, many.counts, ceiling.UNKNOWN, 200, 0)
    assert 0.95 < low <= high <= 1
    few = made(500, 0.6, 4, middle=0)
    low, high = ceiling.ceiling_interval(few.labels, few.counts, ceiling.UNKNOWN, 200, 0)
    assert high - low > 0.5


def test_labels_without_variance_beyond_noise_have_ceiling_zero() -> None:
    assert ceiling.ceiling(np.full(9, 4.0), np.full(9, 3), 0.5) == 0
    noise = made(300, 0.6, 5, middle=0)
    assert ceiling.ceiling(noise.labels, np.ones(300, np.int64), ceiling.MOST) < 0.5
    assert ceiling.ceiling(noise.labels, np.zeros(300, np.int64), 0.5) == ceiling.ceiling(
        noise.labels, np.ones(300, np.int64), 0.5
    )


def test_the_interval_depends_on_the_seed_alone() -> None:
    drawn = made(300, 0.3, 6)
    scatter = Scatter(0.4, 0.3, 0.5, 300)
    assert ceiling.ceiling_interval(drawn.labels, drawn.counts, scatter, 50, 0) == ceiling.ceiling_interval(
        drawn.labels, drawn.counts, scatter, 50, 0
    )
    assert ceiling.ceiling_interval(drawn.labels, drawn.counts, scatter, 50, 1) != ceiling.ceiling_interval(
        drawn.labels, drawn.counts, scatter, 50, 0
    )
