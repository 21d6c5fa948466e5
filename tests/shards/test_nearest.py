"""The search for nearest neighbours, against a comparison of all vectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import nearest
from shards.nearest import NONE, NearestIndex, Numbers, Vectors


def brute_force(vectors: Vectors, queries: Vectors, count: int, max_distance: float = np.inf) -> list[Numbers]:
    """Return the positions and squared distances of the nearest of the distinct vectors."""
    first = np.sort(np.unique(vectors, axis=0, return_index=True)[1])
    a, b = queries.astype(np.float64), vectors[first].astype(np.float64)
    distances = np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1)
    keys = distances * 2**26 + first
    keys[distances > max_distance] = np.inf
    keys = np.concatenate([keys, np.full((len(queries), count), np.inf)], axis=1)
    keys = np.sort(np.partition(keys, count - 1, axis=1)[:, :count], axis=1)
    exists = keys < np.inf
    positions, found = np.full((2, *keys.shape), NONE)
    positions[exists], found[exists] = keys[exists] % 2**26, keys[exists] // 2**26
    return [positions, found]


def clusters(seed: int, number: int, dimensions: int = 64) -> Vectors:
    """Return vectors of +-1 in clusters of 50, each up to 3 flips from a centre of its cluster; some are equal."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (number // 50, dimensions))
    vectors = centres[rng.integers(0, len(centres), number)]
    for _ in range(3):
        flipped = rng.integers(0, dimensions, number)
        vectors[np.arange(number), flipped] *= rng.choice(np.array([-1, 1], np.int8), number)
    return vectors


def random(seed: int, number: int, dimensions: int) -> Vectors:
    return np.random.default_rng(seed).integers(-127, 128, (number, dimensions)).astype(np.int8)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.integers(0, 60),
    st.integers(0, 20),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([0, 1, 2.5, 6, np.inf]),
)
def test_small_sets_with_ties_and_copies(
    number: int, queries: int, dimensions: int, count: int, max_distance: float
) -> None:
    rng = np.random.default_rng(number * 100 + queries)
    vectors, asking = (rng.integers(-2, 3, (rows, dimensions)).astype(np.int8) for rows in (number, queries))
    found = NearestIndex(vectors).search(asking, count, max_distance)
    np.testing.assert_array_equal(found, brute_force(vectors, asking, count, max_distance))


def test_the_largest_distances_are_exact() -> None:
    vectors = np.stack([np.full(256, 127), np.full(256, -127), np.r_[-126, np.full(255, -127)]]).astype(np.int8)
    positions, distances = NearestIndex(vectors).search(vectors[:1], 3)
    assert positions.tolist() == [[0, 2, 1]]
    assert distances.tolist() == [[0, 253**2 + 255 * 254**2, 256 * 254**2]]


def test_vectors_in_cells_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells of all levels are searched, so that nothing is missed: ties and copies are in any of them."""
    monkeypatch.setattr(nearest, "_CELL", 8)
    monkeypatch.setattr(nearest, "_SMALL", 20)
    monkeypatch.setattr(nearest, "_CELLS_SEARCHED", 200)
    monkeypatch.setattr(nearest, "_QUERIES", 70)
    monkeypatch.setattr(nearest, "_PAIRS", 64)
    rng = np.random.default_rng(0)
    vectors, queries = (rng.integers(-3, 4, (rows, 4)).astype(np.int8) for rows in (2000, 300))
    for count, max_distance in ((1, np.inf), (9, np.inf), (4, 2)):
        found = NearestIndex(vectors).search(queries, count, max_distance)
        np.testing.assert_array_equal(found, brute_force(vectors, queries, count, max_distance))


def test_recall_on_clusters() -> None:
    vectors, queries = clusters(1, 20_000), clusters(2, 20_000)[:400]
    positions, distances = NearestIndex(vectors).search(queries, 4, 12)
    _, expected = brute_force(vectors, queries, 4, 12)
    assert (expected[:, 0] != NONE).mean() > 0.9
    assert (distances == expected)[expected != NONE].mean() > 0.99
    exists = positions != NONE
    rows = np.nonzero(exists)[0]
    stated = np.square(queries[rows].astype(np.int64) - vectors[positions[exists]]).sum(1)
    np.testing.assert_array_equal(stated, distances[exists])


def test_neighbours_in_noise_are_found() -> None:
    """Descriptors of one picture differ by noise; nothing else is near."""
    vectors = random(1, 20_000, 96)
    noise = np.random.default_rng(2).integers(-20, 21, (1000, 96))
    queries = (vectors[:1000].astype(int) + noise).clip(-127, 127).astype(np.int8)
    positions, _ = NearestIndex(vectors).search(queries, 2, 40**2 * 64)
    assert (positions[:, 0] == np.arange(1000)).mean() > 0.99
    assert (positions[:, 1] == NONE).all()


def test_the_order_of_queries_and_their_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = NearestIndex(clusters(1, 10_000)), clusters(2, 3000)
    positions, distances = index.search(queries, 3, 40)
    order = np.random.default_rng(0).permutation(len(queries))
    monkeypatch.setattr(nearest, "_QUERIES", 700)
    np.testing.assert_array_equal(index.search(queries[order], 3, 40), (positions[order], distances[order]))


def test_copies_cost_nothing_and_the_first_is_found() -> None:
    vectors = np.repeat(random(1, 50, 16), 200, axis=0)
    index = NearestIndex(vectors)
    assert len(index._vectors) == 50
    positions, distances = index.search(vectors, 2)
    np.testing.assert_array_equal(positions[:, 0], np.arange(len(vectors)) // 200 * 200)
    assert (distances[:, 1] > 0).all()


def test_no_cell_of_a_dense_cluster_is_crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector in the middle is the nearest of all centres to most others, so it may not stay a centre."""
    monkeypatch.setattr(nearest, "_CELL", 16)
    monkeypatch.setattr(nearest, "_SMALL", 64)
    monkeypatch.setattr(nearest, "_CROWDED", 300)
    number = 6000
    vectors = np.zeros((number, 64), np.int8)
    for column in np.random.default_rng(0).integers(0, 64, (4, number)):
        vectors[np.arange(number), column] = 9  # four of 64 away from the middle
    vectors[:400] = np.eye(64, dtype=np.int8)[np.arange(400) % 64] * (np.arange(400)[:, None] // 64 + 1)
    index = NearestIndex(vectors)
    assert np.diff(index._starts).max() <= 300
    monkeypatch.setattr(nearest, "_ROUNDS", 1)
    assert np.diff(NearestIndex(vectors)._starts).max() > 300


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_vectors_than_neighbours(number: int) -> None:
    found = NearestIndex(np.ones((number, 8), np.int8)).search(np.ones((2, 8), np.int8), 3)
    np.testing.assert_array_equal(found, [[[0] * number + [NONE] * (3 - number)] * 2] * 2)


def test_no_queries() -> None:
    positions, distances = NearestIndex(random(1, 5000, 8)).search(np.empty((0, 8), np.int8), 3)
    assert positions.shape == distances.shape == (0, 3)
