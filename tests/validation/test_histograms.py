"""Histograms count every value once, in the same bins for all categories."""

import itertools

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from validation import profile
from validation.histograms import BINS, histograms

UNITS = {"stars": 0.01, "count": 1, "time": profile.DAY}
VALUES = st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**6)), unique_by=lambda pair: pair[0], max_size=20)


def counts(pairs: list[tuple[int, int]], scale: float) -> pd.Series:
    values = sorted(pairs)
    return pd.Series([rows for _, rows in values], [value * scale for value, _ in values], dtype="int64")


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(profile.PROFILED_COLUMNS, "small", UNITS)


def read(shown: str) -> float:
    return float(shown.replace(",", ""))


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_every_value_is_in_the_bin_that_names_it(drawn: list[list[tuple[int, int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profile.PROFILED_COLUMNS, "small", {"count": 1})
        counted = {str(number): {"count": counts(pairs, 1)} for number, pairs in enumerate(drawn)}
        found = histograms("small", counted)
    bins = [each["count"] for each in found.values() if each["count"]]
    assert len({tuple((low, high) for low, high, _ in each) for each in bins}) <= 1
    for pairs, each in zip(drawn, found.values(), strict=True):
        assert len(each["count"]) <= BINS
        assert sum(rows for *_, rows in each["count"]) == sum(rows for _, rows in pairs)
        for low, high, rows in each["count"]:
            assert rows == sum(count for value, count in pairs if read(low) <= value <= read(high))


@pytest.mark.usefixtures("units")
def test_ratings_are_in_tenths_counts_on_a_log_scale_and_times_in_days() -> None:
    stars = counts([(100, 1), (109, 2), (110, 4), (470, 8), (500, 16)], 0.01)
    numbers = counts([(1, 5), (2, 3), (1000, 2), (10**6, 1)], 1)
    times = counts([(0, 1), (364, 2)], 1)
    found = histograms("small", {"A": {"stars": stars, "count": numbers, "time": times}})["A"]
    assert [rows for *_, rows in found["stars"] if rows] == [3, 4, 8, 16]
    assert len(found["stars"]) == 41
    assert found["stars"][0] == ("1", "1.09", 3)
    assert found["stars"][-1] == ("5", "5", 16)
    assert [tuple(each) for each in found["count"][:2]] == [("1", "1", 5), ("2", "3", 3)]
    sizes = [read(high) + 1 - read(low) for low, high, _ in found["count"]]
    assert all(a <= b for a, b in itertools.pairwise(sizes))
    assert sizes[-1] > 10**5
    assert found["time"][0] == ("1970-01-01", "1970-01-11", 1)
    assert found["time"][-1] == ("1970-12-21", "1970-12-31", 2)
    assert histograms("small", {"A": dict.fromkeys(UNITS, counts([], 1))}) == {"A": {name: [] for name in UNITS}}
