import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from effimini.loss import weighted_huber
from prep.core.params import WeightsParams
from prep.weights import SampleWeights, constant, sample_weights

WEIGHTS = SampleWeights("rating_number", mean=2.0, clip=1.5, samples=3)


def test_a_weight_is_log1p_of_the_count_over_the_mean_and_clipped() -> None:
    found = sample_weights(np.array([0, 4, 1000]), WEIGHTS)
    assert found.tolist() == pytest.approx([0.0, math.log(5) / 2, 1.5])
    assert found.dtype == np.float32


def test_a_weight_that_is_half_at_a_count_is_a_ratio() -> None:
    found = sample_weights(np.array([0, 50, 150, 10**9]), replace(WEIGHTS, mean=0.5, half_at=50))
    assert found.tolist() == pytest.approx([0.0, 1.0, 1.5, 1.5])
    counts = np.array([0, 50, 150])
    made = constant(counts, WeightsParams(count="rating_number", half_at=50, clip=5.0))
    assert made.mean == pytest.approx((0 + 0.5 + 0.75) / 3)
    assert sample_weights(counts, made).mean() == pytest.approx(1)


def test_a_formula_says_what_a_weight_is() -> None:
    counts = np.array([0, 4, 1000], np.int64)
    for weights in (WEIGHTS, replace(WEIGHTS, half_at=50), replace(WEIGHTS, count="none")):
        stated = weights.formula.replace("at most ", "").split(", ")
        value = eval(stated[0], {"log1p": np.log1p, "rating_number": counts})
        expected = np.minimum(value, float(stated[1]) if stated[1:] else 1)
        np.testing.assert_allclose(sample_weights(counts, weights), expected * np.ones(3), rtol=1e-3)


def test_without_a_count_every_weight_is_one() -> None:
    assert sample_weights(np.array([0, 4, 1000]), replace(WEIGHTS, count="none")).tolist() == [1.0, 1.0, 1.0]


def test_the_loss_of_a_worked_example() -> None:
    predictions, labels = torch.tensor([3.0, 1.0, 4.5]), torch.tensor([3.5, 4.0, 4.5])
    weights = torch.tensor([2.0, 0.5, 1.0])
    # 2 x 0.5 x 0.5^2 + 0.5 x (3 - 0.5) + 0, over 3 samples
    expected = (2 * 0.125 + 0.5 * 2.5) / 3
    assert float(weighted_huber(predictions, labels, weights, 1.0, 3)) == pytest.approx(expected)


def test_delta_moves_where_the_loss_turns_linear() -> None:
    one = torch.ones(1)
    # delta x (|error| - delta / 2)
    assert float(weighted_huber(3 * one, one, one, 0.5, 1)) == pytest.approx(0.5 * (2 - 0.25))


@given(st.lists(st.floats(1, 5), min_size=2, max_size=12), st.integers(1, 4))
def test_the_losses_of_the_ranks_add_up_to_that_of_the_global_batch(stars: list[float], world: int) -> None:
    predictions, labels = torch.tensor(stars), torch.full((len(stars),), 3.0)
    weights = torch.arange(1.0, len(stars) + 1)
    whole = weighted_huber(predictions, labels, weights, 1.0, len(stars))
    shares = [
        weighted_huber(predictions[r::world], labels[r::world], weights[r::world], 1.0, len(stars))
        for r in range(world)
    ]
    assert float(sum(shares)) == pytest.approx(float(whole), rel=1e-5)
