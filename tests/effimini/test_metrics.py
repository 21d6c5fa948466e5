import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from effimini import cost, metrics

stars = st.lists(st.tuples(st.integers(10, 50), st.integers(10, 50)), min_size=3, max_size=40)


@given(stars)
def test_plcc_and_srcc_agree_with_scipy(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs).T / 10
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert metrics.plcc(x, y) == metrics.srcc(x, y) == 0
    else:
        assert metrics.plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
        assert metrics.srcc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_a_constant_prediction_has_plcc_zero() -> None:
    labels = np.array([1.0, 2.0, 3.0])
    assert metrics.plcc(np.full(3, 4.2, np.float32), labels) == 0
    assert metrics.plcc_interval(np.full(3, 4.2), labels, 100, 0) == (0, 0)
    assert metrics.plcc(labels[:1], labels[:1]) == 0
    assert metrics.plcc(labels[:2], labels[:2]) == pytest.approx(1)


def test_the_errors_of_a_worked_example() -> None:
    predictions, labels = np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 3.0])
    assert metrics.mae(predictions, labels) == pytest.approx(1.0)
    assert metrics.rmse(predictions, labels) == pytest.approx(math.sqrt(5 / 3))


def test_float32_is_computed_with_in_double_precision() -> None:
    predictions, labels = np.random.default_rng(3).uniform(1, 5, (2, 1000)).astype(np.float32)
    for metric in (metrics.plcc, metrics.mae, metrics.rmse):
        assert metric(predictions, labels) == metric(predictions.astype(np.float64), labels.astype(np.float64))


def test_the_interval_contains_the_value_narrows_with_samples_and_depends_on_the_seed() -> None:
    random = np.random.default_rng(1)
    labels = random.normal(size=400)
    predictions = labels + random.normal(size=400)
    low, high = metrics.plcc_interval(predictions, labels, 300, 0)
    assert low < metrics.plcc(predictions, labels) < high
    few_low, few_high = metrics.plcc_interval(predictions[:40], labels[:40], 300, 0)
    assert few_high - few_low > high - low
    assert metrics.plcc_interval(predictions, labels, 300, 0) == (low, high)
    assert metrics.plcc_interval(predictions, labels, 300, 1) != (low, high)
    draws = np.random.default_rng(2).integers(0, 400, (4000, 400))
    drawn = np.array([metrics.plcc(predictions[rows], labels[rows]) for rows in draws])
    low, high = metrics.plcc_interval(predictions, labels, 4000, 0)
    assert (drawn < low).mean() == pytest.approx(0.025, abs=0.005)
    assert (drawn > high).mean() == pytest.approx(0.025, abs=0.005)
    two = np.array([1.0, 2.0])  # a resample has both in half of the cases, and no correlation otherwise
    assert metrics.plcc_interval(two, two, 100, 0) == (0, pytest.approx(1))


def test_a_lead_is_paired_by_sample() -> None:
    random = np.random.default_rng(2)
    labels = random.normal(size=300)
    hard = random.normal(size=300)  # errors that both make
    ours, theirs = labels + hard, labels + 1.3 * hard
    lead, low, high = metrics.lead(ours, theirs, labels, 300, 0)
    assert lead == pytest.approx(metrics.plcc(ours, labels) - metrics.plcc(theirs, labels))
    assert 0 < low < lead < high
    alone = metrics.plcc_interval(ours, labels, 300, 0)
    assert high - low < (alone[1] - alone[0]) / 2
    assert metrics.lead(ours, theirs, labels, 300, 0) == (lead, low, high)
    assert metrics.lead(ours, theirs, labels, 300, 1)[1:] != (low, high)
    assert metrics.lead(ours, ours, labels, 50, 0) == (0, 0, 0)


def test_cost_and_efficiency_are_those_of_the_paper() -> None:
    c = cost.cost(27_706_365, 6_811_000_000)
    assert round(c, 3) == 0.097
    assert cost.efficiency(c) == 1.10
    assert round(metrics.ces(0.36, cost.efficiency(c)), 2) == 0.40


def test_efficiency_is_capped_and_drops_above_a_cost_of_one() -> None:
    assert cost.efficiency(1.0) == 1.0
    assert cost.efficiency(math.exp(-1)) == pytest.approx(1.05)
    assert cost.efficiency(math.e) == pytest.approx(1 / 3)
    assert metrics.ces(-0.5, 1.1) == 0
