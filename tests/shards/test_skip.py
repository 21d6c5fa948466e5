"""Which steps are left out, over the ends of epochs and of the run."""

import pytest

from prep.core.errors import UserError
from shards.skip import check, skipped


def test_the_steps_of_ranges_within_bounds() -> None:
    assert skipped([(2, 3), (5, 9)], 3, 6) == {3, 5, 6}
    assert skipped([(2, 3), (3, 4)], 1, 9) == {2, 3, 4}
    assert skipped([(2, 3)], 4, 6) == skipped([], 1, 9) == set()


@pytest.mark.parametrize("ranges", [[], [(1, 2)], [(2, 3), (5, 6)], [(3, 5)], [(6, 6)]])
def test_steps_that_leave_each_epoch_one_pass(ranges: list[tuple[int, int]]) -> None:
    check(ranges, per_epoch=3, epochs=2)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(2, 7)], "train.skip names step 7, and the run has 6 steps; name steps from 1 to 6"),
        ([(1, 3)], "train.skip leaves out all 3 steps of epoch 1; leave it one"),
        ([(3, 4), (5, 6)], "train.skip leaves out all 3 steps of epoch 2; leave it one"),
    ],
)
def test_steps_that_are_not_there_or_all_of_an_epoch_are_an_error(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(ranges, per_epoch=3, epochs=2)


@pytest.mark.parametrize("step", [1, 2])
def test_the_only_step_of_an_epoch_stays(step: int) -> None:
    with pytest.raises(UserError, match=f"train.skip leaves out all 1 steps of epoch {step}; leave it one"):
        check([(step, step)], per_epoch=1, epochs=2)
