"""Memory that is used again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shards.pool import Pool


@pytest.mark.parametrize(
    "alias",
    [
        lambda tensor: tensor.permute(1, 0)[1:],
        lambda tensor: tensor[0].numpy()[1:],
        lambda tensor: tensor.untyped_storage(),
        torch.utils.dlpack.to_dlpack,
    ],
)
def test_memory_is_used_again_once_nothing_refers_to_it(alias: Callable[[torch.Tensor], Any]) -> None:
    pool = Pool(2)
    array = pool.take(2, 3)
    memory = array.base
    held = alias(torch.from_numpy(array))
    del array
    other = pool.take(2, 3)
    assert other.base is not memory
    del held
    assert pool.take(2, 3).base is memory


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_a_pool_keeps_no_more_than_its_limit(spare: int) -> None:
    pool = Pool(spare)
    taken = [pool.take(1000) for _ in range(5)]
    memories = [array.base for array in taken]
    taken.clear()
    taken = [pool.take(1000) for _ in range(5)]
    assert sum(any(array.base is memory for memory in memories) for array in taken) == spare


def test_an_array_larger_than_the_unused_memory_is_new() -> None:
    pool = Pool(2)
    pool.take(2, 2)
    larger = pool.take(3, 3)
    assert (larger.shape, larger.dtype) == ((3, 3), np.uint8)
    larger[:] = 7
    assert pool.take(3, 3).base is not larger.base
    assert (larger == 7).all()
