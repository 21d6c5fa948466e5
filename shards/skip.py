"""Steps of a training that are left out.

Input: ranges of steps of the run, (first, last), counted from 1 through all epochs. Output: sets of steps, or an error.
Guarantees: a step that is left out is not read and takes no optimizer step, and all others keep their number, their
samples and their learning rate.
"""

from collections.abc import Sequence

from prep.core.errors import UserError

Ranges = Sequence[Sequence[int]]


def skipped(ranges: Ranges, first: int, last: int) -> set[int]:
    """Return the steps from `first` to `last` that are left out."""
    return {step for start, end in ranges for step in range(max(start, first), min(end, last) + 1)}


def check(ranges: Ranges, per_epoch: int, epochs: int) -> None:
    """Check that the run has the steps, and that each epoch keeps one.

    Args:
        ranges: as in train.skip.
        per_epoch: number of steps of an epoch.
        epochs: number of epochs.

    Raises:
        UserError: it does not.
    """
    steps = per_epoch * epochs
    for _, last in ranges:
        if last > steps:
            raise UserError(
                f"train.skip names step {last}, and the run has {steps:,} steps; name steps from 1 to {steps}"
            )
    for epoch in {(step - 1) // per_epoch + 1 for step in skipped(ranges, 1, steps)}:
        if len(skipped(ranges, (epoch - 1) * per_epoch + 1, epoch * per_epoch)) == per_epoch:
            raise UserError(f"train.skip leaves out all {per_epoch:,} steps of epoch {epoch}; leave it one")
