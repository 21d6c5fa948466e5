import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from effimini.inference import predict_split
from effimini.metrics import plcc
from effimini.model import EffiMini
from effimini.ranks import Ranks, ranks
from effimini.train import Trainer, schedule, train
from prep import files
from prep.faults import UserError
from prep.params import Params
from shards.stream import ShardDataset

from .conftest import ROOT, replace
from .two_ranks import gradients

ONE = Ranks(0, 1, torch.device("cpu"))


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): files.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def trained(params: Params, data: Path, out: Path) -> tuple[list[dict[str, float]], dict[str, str]]:
    history = train(params, data / "shards", data / "weights.json", out / "models", out / "results/train")
    return history, tree(out)


def test_the_learning_rate_is_the_one_computed_by_hand() -> None:
    found = [schedule(step, 10, 0.2) for step in range(10)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert found == pytest.approx([0.0, 0.5, *cosine])
    assert schedule(0, 10, 0.0) == 1.0


def test_the_same_training_gives_the_same_files(small: Params, data: Path, tmp_path: Path) -> None:
    first, files_first = trained(small, data, tmp_path / "a")
    second, files_second = trained(small, data, tmp_path / "b")
    assert first == second
    assert files_first == files_second
    assert {"models/best/model.safetensors", "models/last/config.json", "results/train/metrics.json"} <= set(
        files_first
    )
    assert "results/train/plots/metrics/validation/plcc.tsv" in files_first
    other, _ = trained(replace(small, train={"seed": 1}), data, tmp_path / "c")
    assert other != first


def test_training_learns_and_keeps_the_best_epoch(small: Params, run: Path) -> None:
    metrics = files.read_json(run / "results/train/metrics.json")
    rows = (run / "results/train/plots/metrics/validation/plcc.tsv").read_text().splitlines()[1:]
    by_epoch = [float(row.split("\t")[1]) for row in rows]
    assert metrics["best"] == {"epoch": by_epoch.index(max(by_epoch)) + 1, "validation_plcc": max(by_epoch)}
    losses = (run / "results/train/plots/metrics/train/loss.tsv").read_text().splitlines()[1:]
    first, *_, last = (float(row.split("\t")[1]) for row in losses)
    assert last < 0.8 * first
    validation = ShardDataset(run / "data/shards", small.source.categories, "validation")
    best = EffiMini.from_pretrained(run / "models/best")
    stars = predict_split(best, validation, ONE, small)
    assert plcc(stars, validation.labels) == pytest.approx(max(by_epoch), abs=1e-6)


def test_a_stopped_training_goes_on_with_the_losses_of_an_undisturbed_one(
    small: Params, data: Path, tmp_path: Path
) -> None:
    whole, files_whole = trained(small, data, tmp_path / "whole")
    for _ in range(2):  # stopped twice, each time in the middle of the epoch after a finished one
        stopped = Trainer(small, data / "shards", data / "weights.json", ONE)
        stopped.epoch()
        stopped._train()
    assert trained(small, data, tmp_path / "resumed") == (whole, files_whole)
    assert not any((files.store() / "train").iterdir()), "the state is dropped when the training is done"


def test_other_parameters_do_not_take_up_the_state(small: Params, data: Path) -> None:
    Trainer(small, data / "shards", data / "weights.json", ONE).epoch()
    same = Trainer(replace(small, stream={"workers": 1}), data / "shards", data / "weights.json", ONE)
    assert same.loader.epoch == 1
    other = Trainer(replace(small, train={"seed": 3}), data / "shards", data / "weights.json", ONE)
    assert other.loader.epoch == 0


def test_training_stops_when_no_epoch_gets_better(small: Params, data: Path) -> None:
    trainer = Trainer(replace(small, train={"patience": 2}), data / "shards", data / "weights.json", ONE)
    trainer.epoch()
    assert not trainer.finished()
    trainer.progress.best = 2.0  # no PLCC is better
    trainer.epoch()
    assert not trainer.finished()
    trainer.progress.stale = 2
    assert trainer.finished()


def test_a_loss_that_is_not_finite_is_a_sentence(small: Params, data: Path, tmp_path: Path) -> None:
    wild = replace(small, train={"learning_rate": 1e30})
    with pytest.raises(UserError, match=r"step \d+ in epoch 1 .* lower train.learning_rate"):
        trained(wild, data, tmp_path)
    assert not (tmp_path / "models").exists()


def test_two_ranks_take_the_step_of_one(small: Params, data: Path, tmp_path: Path) -> None:
    params = replace(small, train={"batch_size": 15, "epochs": 2})  # odd: the ranks' shares differ in size
    (tmp_path / "given").write_bytes(pickle.dumps((params, data)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.effimini.two_ranks"]
    done = subprocess.run(
        [sys.executable, *command, tmp_path / "given", tmp_path],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    theirs = torch.load(tmp_path / "gradients.pt", weights_only=True)
    ours = gradients(params, data, ONE)
    assert theirs.keys() == ours.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-6, msg=name)

    # the validation PLCC they agreed on is that of every sample counted once
    last = EffiMini.from_pretrained(tmp_path / "models/last")
    validation = ShardDataset(data / "shards", params.source.categories, "validation")
    with ranks() as here:
        stars = predict_split(last, validation, here, params)
    found = files.read_json(tmp_path / "results/train/metrics.json")
    assert found["validation"]["plcc"] == pytest.approx(plcc(stars, validation.labels), abs=1e-5)
