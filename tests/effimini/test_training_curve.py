"""The curve of a training has the steps that were taken, each once."""

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path

import pandas as pd
import pytest
import torch

from effimini import train as stage
from effimini.distributed import Distributed
from effimini.train import StepResult, Trainer, train
from effimini.training_curve import Point, TrainingCurve
from prep.core.params import Params
from shards.stream import Batch

from .conftest import replace

ONE = Distributed(0, 1, torch.device("cpu"))


def test_a_point_is_the_mean_since_the_last_one() -> None:
    curve = TrainingCurve()
    assert curve.close(4) is None
    curve.add(1, 0.5, 3.0, 0.1, 2)
    curve.add(2, 0.25, 1.0, 0.2, 6)
    assert curve.close(4) == Point(2, 0.5, (2 * 0.5 + 6 * 0.25) / 8, 2.0, 0.2)
    assert curve.close(4) is None
    curve.add(5, 1.5, 4.0, 0.1, 3)
    assert curve.close(4) == Point(5, 1.25, 1.5, 4.0, 0.1)
    assert [point.step for point in curve.points] == [2, 5]


def test_the_points_of_an_epoch_are_its_steps(small: Params, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points for each epoch of five steps; the last step of the first epoch is left out, the others are not."""
    monkeypatch.setattr(stage, "POINTS", 2)
    taken: dict[int, tuple[StepResult, float]] = {}

    class Watched(Trainer):
        def step(self, epoch: int, step: int, batch: Batch) -> StepResult:
            result = super().step(epoch, step, batch)
            taken[self.progress.steps] = result, self.optimizer.param_groups[0]["lr"]
            return result

    params = replace(small, train={"epochs": 2, "skip": (5,)})
    sent: list[tuple[Mapping[str, float], int]] = []

    def track(metrics: Mapping[str, float], step: int) -> None:
        sent.append((metrics, step))

    trainer = Watched(params, data / "shards", data / "weights.json", ONE, track=track)
    history = list(trainer.run())
    points = trainer.progress.curve.points
    assert [(point.step, point.epoch) for point in points] == [(3, 0.6), (4, 0.8), (8, 1.6), (10, 2.0)]
    for point, steps in zip(points, ((1, 2, 3), (4,), (6, 7, 8), (9, 10)), strict=True):
        results = [taken[step][0] for step in steps]
        samples = sum(result.size for result in results)
        assert point.loss == pytest.approx(sum(float(r.sums[0]) * r.size for r in results) / samples)
        assert point.gradient_norm == pytest.approx(sum(float(r.norm) for r in results) / len(results))
        assert point.learning_rate == taken[steps[-1]][1]
    epochs = [sum(taken[step][0].size for step in steps) for steps in ((1, 2, 3), (4,), (6, 7, 8), (9, 10))]
    for number, metrics in enumerate(history):
        (first, second), (size, rest) = points[2 * number :][:2], epochs[2 * number :][:2]
        assert metrics["train/loss"] == pytest.approx((first.loss * size + second.loss * rest) / (size + rest))
    of_points, of_epochs = [(point.metrics(), point.step) for point in points], zip(history, (5, 10), strict=True)
    assert sent == sorted([*of_points, *of_epochs], key=itemgetter(1))


def test_the_file_has_a_row_for_each_point(small: Params, data: Path, tmp_path: Path) -> None:
    train(small, data / "shards", data / "weights.json", tmp_path / "models", tmp_path / "results")
    table = pd.read_csv(tmp_path / "results/steps.csv")
    assert list(table) == ["step", "epoch", "loss", "gradient_norm", "learning_rate"]
    steps = len(table) // small.train.epochs
    assert list(table["step"]) == list(range(1, steps * small.train.epochs + 1))
    assert list(table["epoch"]) == pytest.approx([step / steps for step in table["step"]], rel=1e-5)
    assert table["learning_rate"].iloc[-1] < table["learning_rate"].max()


def test_the_report_shows_the_curve(run: Path) -> None:
    page = (run / "results/report.html").read_text()
    assert ">gradient norm</text>" in page
    assert ">train, steps</text>" in page
