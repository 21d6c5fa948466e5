"""The curve of a training: loss, gradient norm and learning rate, at most 100 points an epoch.

Input: the loss, gradient norm and learning rate of each step. Output: points, and ``results/train/steps.csv``.
Guarantees: the steps since the last point are kept in the checkpoint with the points, so a resumed training has the
points of an uninterrupted one.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pandas as pd

from prep.core import writers

STEPS_FILE = "steps.csv"
POINTS = 100  # of an epoch, at most


class Point(msgspec.Struct, frozen=True):
    """The mean over some consecutive steps."""

    step: int  # the last of them, counted from 1 through all epochs
    epoch: float  # that step in epochs; 1.0 is the end of the first
    loss: float  # weighted Huber loss in stars, mean over the samples
    gradient_norm: float  # before clipping, mean over the steps
    learning_rate: float  # of the encoders, in the last step

    def metrics(self) -> dict[str, float]:
        """Return the values by their names in a tracker."""
        return {f"steps/{name}": getattr(self, name) for name in ("loss", "gradient_norm", "learning_rate")}


class TrainingCurve(msgspec.Struct):
    """The points so far, and the steps since the last one."""

    points: list[Point] = []
    step: int = 0  # the last one
    learning_rate: float = 0.0  # of the last step
    loss: float = 0.0  # summed over the samples since the last point
    gradient_norm: float = 0.0  # summed over the steps since the last point
    samples: int = 0
    steps: int = 0

    def add(self, step: int, loss: float, gradient_norm: float, learning_rate: float, samples: int) -> None:
        """Add a step.

        Args:
            step: its number, counted from 1 through all epochs.
            loss: mean loss over the global batch.
            gradient_norm: before clipping.
            learning_rate: of the encoders.
            samples: size of the global batch.
        """
        self.step, self.learning_rate = step, learning_rate
        self.loss, self.gradient_norm = self.loss + loss * samples, self.gradient_norm + gradient_norm
        self.samples, self.steps = self.samples + samples, self.steps + 1

    def close(self, steps_per_epoch: int) -> Point | None:
        """Make a point of the steps since the last one, and return it; None if there are none."""
        if not self.steps:
            return None
        loss, norm = self.loss / self.samples, self.gradient_norm / self.steps
        point = Point(self.step, self.step / steps_per_epoch, loss, norm, self.learning_rate)
        self.points.append(point)
        self.loss, self.gradient_norm, self.samples, self.steps = 0.0, 0.0, 0, 0
        return point


def write_points(points: Sequence[Point], path: Path) -> None:
    """Write points as CSV, a row each with the fields of `Point` as columns."""
    writers.write_csv(path, pd.DataFrame(map(msgspec.structs.asdict, points), columns=Point.__struct_fields__))
