import dataclasses
import time
from pathlib import Path

import pytest
import torch

from effimini import time_profile
from effimini.clock import Clock
from effimini.distributed import Distributed
from effimini.train import train
from prep.core import files
from prep.core.params import Params

ONE = Distributed(0, 1, torch.device("cpu"))


def test_the_clock_counts_each_moment_once() -> None:
    clock = Clock(ONE.device, {})
    begun = time.perf_counter()
    for name in ("data", "forward", "data", "backward"):
        clock.start(name)
        time.sleep(0.01)
        clock.read()
    clock.stop()
    passed = time.perf_counter() - begun
    clock.stop()  # nothing runs
    assert set(clock.seconds) == {"data", "forward", "backward"}
    assert 0.04 <= sum(clock.seconds.values()) <= passed
    assert clock.seconds["data"] >= 0.02


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [
        ({"data": 2.0, "forward": 3.0, "backward": 5.0, "optimizer": 1.0}, "waiting for data: raise stream.workers"),
        ({"data": 0.1, "forward": 3.0, "backward": 5.0, "optimizer": 1.0}, "in the backward pass"),
        ({"data": 0.1, "forward": 1.0, "backward": 2.0, "optimizer": 4.0}, "raise train.batch_size"),
        ({"data": 2.0, "forward": 3.0, "backward": 5.0, "optimizer": 1.0, "features": 99.0}, "the encoders, run once"),
        ({"data": 2.0, "forward": 3.0, "backward": 5.0, "optimizer": 1.0, "features": 0.0}, "the number of steps"),
    ],
)
def test_the_bottleneck_is_named(seconds: dict[str, float], bound: str) -> None:
    found = time_profile.time_profile({**seconds, "validation": 7.0}, 22.0, ONE)
    assert bound in found.bound
    assert sum(found.shares.values()) == pytest.approx(1)
    steps = sum(seconds[name] for name in time_profile.OF_STEPS)
    assert found.samples_per_second == pytest.approx(22 / steps)
    assert f"data {seconds['data'] / steps:.1%}" in time_profile.describe(found)
    assert "validation 7.0 s" in time_profile.describe(found)


def test_a_training_accounts_for_its_time(
    small: Params, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.perf_counter()
    with caplog.at_level("INFO"):
        train(small, data / "shards", data / "weights.json", tmp_path / "models", tmp_path / "results")
    passed = time.perf_counter() - begun
    found = files.read_json(tmp_path / "results/time.json")
    assert set(found["seconds"]) == {*time_profile.OF_STEPS, "validation", "saving"}
    assert 0 < sum(found["seconds"].values()) < passed
    steps = sum(found["seconds"][name] for name in time_profile.OF_STEPS)
    assert found["samples_per_second"] == pytest.approx(3 * 80 / steps)  # three epochs
    assert found["peak_memory"] > 10**8
    assert f"bottleneck: {found['bound']}" in caplog.text


def test_a_training_with_frozen_encoders_accounts_for_its_features(small: Params, data: Path, tmp_path: Path) -> None:
    frozen = dataclasses.replace(small, train=dataclasses.replace(small.train, freeze_encoders=True))
    train(frozen, data / "shards", data / "weights.json", tmp_path / "models", tmp_path / "results")
    found = files.read_json(tmp_path / "results/time.json")
    assert found["seconds"][time_profile.FEATURES] > 0
    assert "stream.workers" not in found["bound"]
