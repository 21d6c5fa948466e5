import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep import strata

ITEMS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(10, 50), st.integers(0, 3000)),  # group, tenths of a star, count
    min_size=1,
    max_size=150,
)


def place(items: list[tuple[int, int, int]], ids: list[str] | None = None, salt: str = "s") -> dict[str, float]:
    """Return u by id; the default ids number the items."""
    ids = ids or [f"I{i}" for i in range(len(items))]
    ratings = np.array([tenths / 10 for _, tenths, _ in items])
    counts = np.array([count for *_, count in items])
    order = strata.order_of([f"G{group}" for group, _, _ in items], salt)
    u = strata.positions(strata.stratum_of(ratings, counts), order, pa.array(ids), salt)
    return dict(zip(ids, u.tolist(), strict=True))


@given(ITEMS, st.randoms())
def test_positions_do_not_depend_on_the_row_order(items: list, random) -> None:
    rows = [(f"I{i}", item) for i, item in enumerate(items)]
    random.shuffle(rows)
    assert place([item for _, item in rows], [name for name, _ in rows]) == place(items)


@given(ITEMS, st.integers(1, 20))
def test_a_fraction_of_every_stratum_is_selected_to_within_one_item(items: list, twentieths: int) -> None:
    u = place(items)
    strata_of: dict[tuple[int, int], list[float]] = {}
    for name, (_, tenths, count) in zip(u, items, strict=True):
        bucket = int(strata.count_bucket(np.array([count]))[0])
        strata_of.setdefault((tenths, bucket), []).append(u[name])
    for members in strata_of.values():
        taken = sum(value < twentieths / 20 for value in members)
        assert abs(taken - len(members) * twentieths / 20) < 1
        assert all(0 <= value < 1 for value in members)


@given(
    st.lists(st.integers(0, 19), min_size=1, max_size=200),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 300),
)
def test_limits_are_nested_and_reach_the_minimum(bands: list[int], one: int, other: int, minimum: int) -> None:
    small, large = sorted((one, other))
    array = np.array(bands)
    limits = [strata.limit(array, f / 20, 20, minimum) for f in (small, large)]
    assert limits[0] <= limits[1] <= 20
    assert limits[0] >= small
    assert (array < limits[0]).sum() >= min(minimum, len(bands))


def test_the_minimum_selects_no_more_bands_than_needed() -> None:
    bands = np.repeat(np.arange(20), 10)
    assert strata.limit(bands, 0.05, 20, 0) == 1
    assert strata.limit(bands, 0.05, 20, 30) == 3
    assert strata.limit(bands, 0.05, 20, 31) == 4
    assert strata.limit(bands, 0.5, 20, 31) == 10
    assert strata.limit(bands, 0.05, 20, 10**6) == 20
    assert strata.limit(bands[:0], 0.05, 20, 10) == 1


@given(ITEMS, st.floats(0.05, 1), st.integers(0, 200))
def test_a_minimum_of_evaluation_items_is_reached_and_not_exceeded(items: list, fraction: float, minimum: int) -> None:
    u = np.array(list(place(items).values()))
    taken = (u < strata.least(u, fraction, minimum)).sum()
    assert taken == max((u < fraction).sum(), min(minimum, len(u)))


def test_positions_that_are_equal_still_reach_the_minimum() -> None:
    assert strata.least(np.array([0.5, 0.5, 0.75]), 0.1, 1) == np.nextafter(0.5, 1)
    assert strata.least(np.empty(0), 0.1, 5) == 1


def test_any_minimum_is_reached_exactly() -> None:
    u = np.random.default_rng(0).permutation(np.arange(1000) / 1000)
    assert [(u < strata.least(u, 0.0, minimum)).sum() for minimum in range(1001)] == list(range(1001))


def test_strata_of_one_item_are_selected_without_bias() -> None:
    many = np.arange(1000, dtype=np.int16)
    u = strata.positions(many, many.astype(np.uint64), pa.array([f"I{i}" for i in many]), "s")
    assert abs((u < 0.3).mean() - 0.3) < 0.05  # over three standard deviations


def test_no_position_is_rounded_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strata, "units", lambda _, keys: np.full(len(keys), np.nextafter(1, 0)))
    assert max(place([(0, 40, 1), (1, 40, 1)]).values()) < 1


def test_a_stratum_is_a_rating_and_a_count_bucket() -> None:
    found = strata.stratum_of(np.array([4.3, 1.0, 4.3, 3.9]), np.array([0, 2, 700, 10**6]))
    assert found.dtype == np.int16
    stars, counts = strata.names_of(found)
    assert stars.tolist() == [4.3, 1.0, 4.3, 3.9]
    assert counts.tolist() == [0, 2, 100, 1000]


def test_items_of_a_stratum_are_sorted_by_group_hash_then_by_id() -> None:
    order = np.array([9, 4, 9, 1], np.uint64)
    u = strata.positions(np.zeros(4, np.int16), order, pa.array(["B", "C", "A", "D"]), "s")
    assert np.argsort(u).tolist() == [3, 1, 2, 0]
    assert np.allclose(np.diff(np.sort(u)), 1 / 4)


def test_splits_have_their_fractions_and_depend_only_on_the_group() -> None:
    groups = [f"G{i}" for i in range(20_000)]
    splits = strata.split_of(groups, "s", 0.1, 0.2).tolist()
    assert abs(splits.count("validation") / 20_000 - 0.1) < 0.01  # over three standard deviations
    assert abs(splits.count("test") / 20_000 - 0.2) < 0.01  # over three standard deviations
    assert splits[:100] == strata.split_of(groups[:100], "s", 0.1, 0.2).tolist()
    assert splits != strata.split_of(groups, "pepper", 0.1, 0.2).tolist()


def test_a_position_at_a_bound_is_in_the_split_above_it() -> None:
    positions = np.array([0, np.nextafter(0.25, 0), 0.25, np.nextafter(0.75, 0), 0.75, 1])
    expected = ["test", "test", "validation", "validation", "train", "train"]
    assert strata.split_at(positions, 0.5, 0.25).tolist() == expected
    assert strata.split_at(positions, 0.0, 0.0).tolist() == ["train"] * 6


def test_the_groups_that_appeared_last_have_the_smallest_positions() -> None:
    u = strata.time_positions(np.array([0.0, 0.3, 0.9, 1.0, np.nan]))
    assert np.allclose(u, [1, 0.7, 0.1, 0, 1], atol=1e-9)
    assert u[2] < 0.1  # so 10 % are the tenth that appeared last
    assert u[4] == 1


def test_counts_are_assigned_to_buckets() -> None:
    counts = np.array([0, 1, 2, 4, 5, 99, 100, 1000, 10**7])
    assert strata.count_bucket(counts).tolist() == [0, 0, 1, 1, 2, 5, 6, 7, 7]
