"""Trackers get the metrics of DVCLive and the curve by step, and change no byte of a training."""

import csv
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from effimini import trackers
from effimini.stop import Stopped
from effimini.train import Trainer, train
from prep.core.errors import UserError
from prep.core.params import Params
from tests.clone import ROOT

from .test_train import trained, tree

SETTINGS = {"source": "demo", "epochs": 2}


def of_dvclive(results: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by metric."""
    found = {}
    for path in (results / "plots/metrics").rglob("*.tsv"):
        with path.open(newline="") as file:
            name = path.relative_to(results / "plots/metrics").with_suffix("").as_posix()
            column = path.stem
            rows = csv.DictReader(file, delimiter="\t")
            found[name] = [(int(row["step"]), float(row[column])) for row in rows]
    return found


def of_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) by scalar of TensorBoard's event files, and check that there is one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    assert "settings/text_summary" in events.Tags()["tensors"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_gets_the_metrics_of_dvclive_and_no_byte_changes(
    small: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trained(small, data, tmp_path / "a")
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / "store"))
    out = tmp_path / "b"
    train(small, data / "shards", data / "weights.json", out / "models", out / "results/train", "tensorboard")
    metrics = of_dvclive(out / "results/train")
    (out / "results/train/time.json").unlink()
    assert tree(out) == expected
    curve = pd.read_csv(out / "results/train/steps.csv")
    found = of_events(trackers.EVENTS)
    by_step = {f"steps/{name}": name for name in ("loss", "gradient_norm", "learning_rate")}
    assert found.keys() == metrics.keys() | by_step.keys()
    assert {"train/loss", "validation/plcc"} <= found.keys()
    last = [int(curve["step"].max()) * epoch // small.train.epochs for epoch in range(1, small.train.epochs + 1)]
    for name, values in metrics.items():
        expected_values = [pytest.approx(value, rel=1e-6) for _, value in values]  # float32
        assert found[name] == list(zip(last, expected_values, strict=True))
    for name, column in by_step.items():
        expected_values = [pytest.approx(value, rel=1e-5) for value in curve[column]]
        assert found[name] == list(zip(curve["step"], expected_values, strict=True))


@contextmanager
def recorded(sent: list[tuple[int, float]], settings: Mapping[str, Any]) -> Iterator[trackers.Log]:
    assert settings["source"] == "demo"
    yield lambda metrics, step: sent.append((step, metrics.get("steps/loss") or metrics["train/loss"]))


def test_a_resumed_training_sends_the_epochs_before_it_again(
    small: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[list[tuple[int, float]]] = []

    def started(settings: Mapping[str, Any]) -> Any:
        runs.append([])
        return recorded(runs[-1], settings)

    monkeypatch.setattr(trackers, "TRACKERS", {"wandb": started})
    run = Trainer.run

    def stopped(self: Trainer) -> Iterator[dict[str, float]]:
        for metrics in run(self):
            yield metrics
            raise Stopped

    words = (small, data / "shards", data / "weights.json", tmp_path / "models", tmp_path / "results", "wandb")
    monkeypatch.setattr(Trainer, "run", stopped)
    with pytest.raises(Stopped):
        train(*words)
    monkeypatch.setattr(Trainer, "run", run)
    history = train(*words).epochs
    curve = pd.read_csv(tmp_path / "results/steps.csv")
    steps = len(curve) // small.train.epochs
    expected = [(step, pytest.approx(loss, rel=1e-5)) for step, loss in zip(curve["step"], curve["loss"], strict=True)]
    for epoch, metrics in reversed(list(enumerate(history, 1))):  # after the points of each epoch
        expected.insert(epoch * steps, (epoch * steps, metrics["train/loss"]))
    assert runs[1] == expected
    assert runs[0] == runs[1][: steps + 1]
    assert len(history) == small.train.epochs > 1


def test_a_tracker_that_fails_is_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    @contextmanager
    def broken(_: trackers.Settings) -> Iterator[trackers.Log]:
        def send(metrics: Mapping[str, float], step: int) -> None:
            raise ConnectionError("no route. Try later.")

        yield send

    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": broken})
    with caplog.at_level(logging.WARNING), trackers.start("mlflow", SETTINGS) as track:
        track({"a": 1.0}, 0)
        track({"a": 1.0}, 1)
    assert caplog.messages == ["the tracker mlflow failed (no route); training goes on without it"]


def test_a_tracker_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tracker neptune; choose from none, tensorboard, mlflow, wandb"):
        trackers.start("neptune", SETTINGS)
    for name in ("mlflow", "wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
        with pytest.raises(UserError, match=rf"{name} is not installed .* `pip install effimini\[{name}\]`"):
            trackers.start(name, SETTINGS).__enter__()

    @contextmanager
    def broken(_: trackers.Settings) -> Iterator[trackers.Log]:
        raise ConnectionError("no route. Try later.")
        yield

    monkeypatch.setattr(trackers, "TRACKERS", {"mlflow": broken})
    with pytest.raises(UserError, match=r"the tracker mlflow does not start \(no route\)"):
        trackers.start("mlflow", SETTINGS).__enter__()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_real_tracker_keeps_a_run_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, because these libraries start threads and processes."""
    pytest.importorskip(name, reason=f"{name} is not installed: it does not fit the pinned environment")
    code = (
        "from effimini import trackers\n"
        f"with trackers.start({name!r}, {SETTINGS!r}) as track:\n"
        "    for epoch in range(2): track({'train/loss': 1.5 - epoch, 'validation/plcc': 0.5}, epoch)\n"
    )
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    if name == "wandb":
        (kept,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
        assert kept.stat().st_size
        return
    import mlflow

    (found,) = mlflow.search_runs(output_format="list")
    assert found.data.metrics == {"train/loss": 0.5, "validation/plcc": 0.5}
    assert found.data.params == {key: str(value) for key, value in SETTINGS.items()}
    assert found.info.status == "FINISHED"


def test_the_tracker_is_an_option_or_a_variable(monkeypatch: pytest.MonkeyPatch, small: Params) -> None:
    from typer.testing import CliRunner

    from effimini.cli import app

    asked: list[str] = []
    monkeypatch.setattr("effimini.cli.stages.load_project_params", lambda path: small)
    monkeypatch.setattr("effimini.precheck.shards", lambda *words: None)
    monkeypatch.setattr("effimini.train.train", lambda *words, tracker: asked.append(tracker))
    for words, variable in (([], {}), (["--tracker", "mlflow"], {}), ([], {"EFFIMINI_TRACKER": "wandb"})):
        assert CliRunner().invoke(app, ["train", *words], env=variable).exit_code == 0
    assert asked == ["none", "mlflow", "wandb"]
    assert CliRunner().invoke(app, ["train", "--tracker", "neptune"]).exit_code == 2
