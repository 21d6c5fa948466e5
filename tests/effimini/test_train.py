import math
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from effimini import calibration, checkpoint
from effimini import train as stage
from effimini.calibration import Line, apply_line, fit_line
from effimini.distributed import Distributed, init_distributed
from effimini.inference import open_split, predict_split
from effimini.metrics import plcc, rmse
from effimini.model import EffiMini, build
from effimini.stop import Stopped
from effimini.train import StepResult, Trainer, prepare, schedule, train
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params
from shards.stream import Batch, ShardDataset
from shards.tokens import TokenizationConfig

from .conftest import ROOT, replace
from .two_ranks import Interrupted, gradients

ONE = Distributed(0, 1, torch.device("cpu"))


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): files.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def trained_on(params: Params) -> TokenizationConfig:
    return TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)


def trained(params: Params, data: Path, out: Path) -> tuple[list[dict[str, float]], dict[str, str]]:
    history = train(params, data / "shards", data / "weights.json", out / "models", out / "results/train").epochs
    (out / "results/train/time.json").unlink()  # times differ between runs
    return history, tree(out)


def test_the_learning_rate_schedule_of_a_worked_example() -> None:
    found = [schedule(step, 10, 0.2) for step in range(10)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert found == pytest.approx([0.0, 0.5, *cosine])
    assert schedule(0, 10, 0.0) == 1.0


def test_a_warmup_takes_at_least_one_step() -> None:
    assert [schedule(step, 5, 0.1) for step in range(2)] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("setting", "convolutions", "products"),
    [("all", True, True), ("convolutions", True, False), ("none", False, False)],  # torch's own default is the second
)
def test_tf32_is_used_as_configured(
    small: Params, data: Path, tmp_path: Path, setting: str, convolutions: bool, products: bool
) -> None:
    trained(replace(small, train={"tf32": setting, "epochs": 1}), data, tmp_path)
    assert torch.backends.cudnn.allow_tf32 is convolutions
    assert torch.backends.cuda.matmul.allow_tf32 is products


def test_the_same_training_gives_the_same_files(small: Params, data: Path, tmp_path: Path) -> None:
    first, files_first = trained(small, data, tmp_path / "a")
    second, files_second = trained(small, data, tmp_path / "b")
    assert first == second
    assert files_first == files_second
    assert {"models/best/model.safetensors", "models/last/config.json", "results/train/metrics.json"} <= set(
        files_first
    )
    assert {"results/train/plots/metrics/validation/plcc.tsv", "results/train/steps.csv"} <= set(files_first)
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
    line, best.config = best.config.calibration, msgspec.structs.replace(best.config, calibration=None)
    scores = predict_split(best, validation, ONE, small)
    assert line is not None
    np.testing.assert_allclose(apply_line(line, scores), stars, atol=1e-5)
    assert rmse(stars, validation.labels) <= rmse(scores, validation.labels)
    again = fit_line(scores, validation.labels)
    assert again is not None
    assert (line.intercept, line.slope) == pytest.approx((again.intercept, again.slope), abs=1e-3)


@pytest.mark.parametrize("freeze", [False, True])
def test_calibration_changes_no_loss_and_no_weight(
    small: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: bool
) -> None:
    """The metrics of an epoch and the choice of the best one do not see the line of the epoch before."""
    params = replace(small, train={"epochs": 2, "freeze_encoders": freeze}, model={"hashed_ngrams": 1 << 10})
    histories = []
    for name, line in (("none", None), ("steep", Line(300.0, 90.0))):
        monkeypatch.setattr(calibration, "fit_line", lambda *_, line=line: line)
        histories.append(trained(params, data, tmp_path / name))
        assert EffiMini.from_pretrained(tmp_path / name / "models/best").config.calibration == line
    (without, files_without), (steep, files_steep) = histories
    assert without == steep
    weights = "models/best/model.safetensors"
    assert files_without[weights] == files_steep[weights]


def test_all_files_of_a_run_have_the_mode_of_a_new_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    modes = {str(p.relative_to(run)): oct(p.stat().st_mode & 0o777) for p in run.rglob("*") if p.is_file()}
    assert "models/best/model.safetensors" in modes
    usual = oct((tmp_path / "new").stat().st_mode & 0o777)
    assert {name: mode for name, mode in modes.items() if mode != usual} == {}


def interrupted(params: Params, data: Path, after: int) -> int:
    """Train until a SIGTERM comes in step `after`; return the number of steps of the checkpoint."""
    trainer = Interrupted(params, data / "shards", data / "weights.json", ONE)
    trainer.after = after
    with pytest.raises(Stopped) as stopped:
        list(trainer.run())
    assert stopped.value.code == 128 + signal.SIGTERM
    state = checkpoint.newest_checkpoint(trainer.state)
    assert state is not None
    return checkpoint.steps_of(state)


def test_a_training_stopped_after_any_step_resumes_with_the_losses_of_an_uninterrupted_one(
    small: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "POINTS", 2)  # of the curve, so that checkpoints fall between two of them
    params = replace(small, train={"epochs": 2})
    whole, files_whole = trained(params, data, tmp_path / "whole")
    steps = len(Trainer(params, data / "shards", data / "weights.json", ONE).loader)
    for after in range(1, 2 * steps):
        out = tmp_path / str(after)
        saved = interrupted(params, data, after)
        assert after <= saved <= after + 2  # the flag is sent with the next step, when one more is already queued
        if after + 4 < 2 * steps:
            interrupted(replace(params, train={"save_every_steps": 2}), data, saved + 1)  # and once more
        assert trained(params, data, out) == (whole, files_whole), after
    assert not any((files.store() / "train").iterdir()), "the checkpoint is removed when the training is done"


def skipping(params: Params, *steps: int | str) -> Params:
    return replace(params, train={"skip": steps})


def test_steps_to_skip_are_neither_read_nor_taken_and_change_no_other(small: Params, data: Path) -> None:
    """The result is that of a training that reads these batches and ignores them."""
    params = replace(small, train={"epochs": 2})
    left_out, taken = {2, 3, 5, 6}, []

    class Ignoring(Trainer):
        def step(self, epoch: int, step: int, batch: Batch) -> StepResult:
            taken.append((epoch * len(self.loader) + step + 1, batch.keys))
            if taken[-1][0] in left_out and not self.params.train.skip:
                return StepResult(torch.zeros(2), torch.zeros(()), 0, (epoch, step), 0.0)
            return super().step(epoch, step, batch)

        def _check_step(self, result: StepResult) -> bool:
            return result.size > 0 and super()._check_step(result)

    ends = []
    for asked in (params, skipping(params, "2-3", 6, 5)):
        trainer = Ignoring(asked, data / "shards", data / "weights.json", ONE)
        history = list(trainer.run())
        ends.append((history, {name: value.tolist() for name, value in trainer.model.state_dict().items()}))
        shutil.rmtree(trainer.state)
    assert ends[0] == ends[1]
    steps = 2 * len(trainer.loader)
    assert taken[steps:] == [(step, keys) for step, keys in taken[:steps] if step not in left_out]


@pytest.mark.parametrize(("after", "skip"), [(1, ("4", "8-9")), (4, ("7-9",)), (7, (10,))])
def test_a_training_stopped_before_the_steps_to_skip_resumes_like_one_that_skips_them_from_the_start(
    small: Params, data: Path, tmp_path: Path, after: int, skip: tuple[int | str, ...]
) -> None:
    params = replace(small, train={"epochs": 2})  # of 5 steps
    whole = trained(skipping(params, *skip), data, tmp_path / "whole")
    assert interrupted(params, data, after) < skipping(params, *skip).train.skipped[0][0]
    assert trained(skipping(params, *skip), data, tmp_path / "resumed") == whole


def test_steps_that_a_checkpoint_has_trained_cannot_be_skipped(small: Params, data: Path) -> None:
    params = skipping(small, 2)
    saved = interrupted(params, data, 4)
    for skip, message in (
        ((2, 3), "took step 3, which train.skip names"),
        ((), "left out step 2, which train.skip does not"),
    ):
        with pytest.raises(
            UserError, match=rf"the state to resume, of after step {saved}, {message}.*new run: remove /"
        ):
            Trainer(skipping(params, *skip), data / "shards", data / "weights.json", ONE)
    for skip, message in (
        ((16,), "train.skip names step 16, and the run has 15 steps; name steps from 1 to 15"),
        (("4-11",), "train.skip leaves out all 5 steps of epoch 2; leave it one"),
    ):
        with pytest.raises(UserError, match=message):
            Trainer(skipping(params, *skip), data / "shards", data / "weights.json", ONE)


def test_a_killed_training_resumes_with_steps_to_skip(small: Params, data: Path, tmp_path: Path) -> None:
    """The purpose: from step 10 on something is wrong, and the checkpoint of step 9 is good."""
    params = replace(small, train={"epochs": 2, "save_every_steps": 3, "mixture": {"Alpha": 1.5}})  # of 7 steps
    (tmp_path / "given").write_bytes(pickle.dumps((params, data)))
    command = [sys.executable, "-m", "tests.effimini.two_ranks", tmp_path / "given", tmp_path, "12", "KILL"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    skip = skipping(params, "10-11", 13)
    assert Trainer(skip, data / "shards", data / "weights.json", ONE).progress.steps == 9
    resumed = trained(skip, data, tmp_path / "resumed")
    assert trained(skip, data, tmp_path / "whole") == resumed


def test_a_training_on_a_mixture_resumes_with_the_losses_of_an_uninterrupted_one(
    small: Params, data: Path, tmp_path: Path
) -> None:
    params = replace(small, train={"epochs": 2, "mixture": {"Alpha": 0.5, "Beta": 2}})
    whole = trained(params, data, tmp_path / "whole")
    for after in (2, 8):
        interrupted(params, data, after)
        trainer = Trainer(params, data / "shards", data / "weights.json", ONE)
        assert trainer.progress.steps >= after
        assert trained(params, data, tmp_path / str(after)) == whole
    assert trained(small, data, tmp_path / "plain")[0] != whole[0]


def test_a_mixture_weighs_the_features_of_frozen_encoders(small: Params, data: Path) -> None:
    params = replace(small, train={"freeze_encoders": True, "epochs": 1, "mixture": {"Alpha": 3}})
    trainer = Trainer(params, data / "shards", data / "weights.json", ONE)
    read = [key for batch in trainer.loader for key in batch.keys]
    assert {key: read.count(key) for key in read} == {
        key: 3 if key.startswith("Alpha/") else 1 for key in trainer.data.keys
    }
    trainer.loader.epoch = 0
    next(trainer.run())
    assert trainer.progress.trained == len(read) == 4 * len(trainer.data) // 2


def test_a_checkpoint_is_saved_every_few_steps_and_replaces_the_last(small: Params, data: Path) -> None:
    params = replace(small, train={"save_every_steps": 2})
    trainer = Trainer(params, data / "shards", data / "weights.json", ONE)
    states: list[str] = []

    class Watched(Interrupted):
        def step(self, epoch: int, step: int, batch: Batch) -> StepResult:
            states.extend(path.name for path in self.state.glob("*"))
            return super().step(epoch, step, batch)

    trainer.__class__ = Watched
    next(trainer.run())
    assert set(states) == {f"{step:09d}" for step in range(2, len(trainer.loader), 2)}
    assert [path.name for path in trainer.state.iterdir()] == [f"{len(trainer.loader):09d}"]


def test_a_signal_while_validating_keeps_the_epoch(small: Params, data: Path, tmp_path: Path) -> None:
    whole, files_whole = trained(small, data, tmp_path / "whole")
    trainer = Trainer(small, data / "shards", data / "weights.json", ONE)

    def come(*_: object) -> None:
        if not trainer.network.training:
            os.kill(os.getpid(), signal.SIGINT)

    trainer.network.register_forward_hook(come)
    with pytest.raises(Stopped) as stopped:
        list(trainer.run())
    assert stopped.value.code == 128 + signal.SIGINT
    again = Trainer(small, data / "shards", data / "weights.json", ONE)
    assert (again.loader.epoch, again.progress.history) == (1, [])
    assert trained(small, data, tmp_path / "resumed") == (whole, files_whole)


def test_the_command_ends_cleanly_when_it_is_stopped(small: Params, data: Path, tmp_path: Path) -> None:
    """A real process with loader workers, and a real SIGTERM at any moment of its training."""
    (tmp_path / "params.yaml").write_bytes(msgspec.json.encode(replace(small, stream={"workers": 2})))  # YAML too
    command = [sys.executable, "-m", "effimini.cli", "train", "--data", str(data)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:  # after the first epoch, in the middle of training
            if line.startswith("epoch 1 "):
                break
        running.send_signal(signal.SIGTERM)
        log = running.stderr.read()
    assert (running.returncode, log.count("\n")) == (128 + signal.SIGTERM, log.count("epoch ") + 1), log
    assert re.search(r"stopped by a signal after step \d+; run the same command to resume\n$", log)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "resuming an interrupted training after step" in done.stderr
    _, uninterrupted = trained(small, data, tmp_path / "whole")
    assert tree(tmp_path / "models") == {
        name.removeprefix("models/"): sha for name, sha in uninterrupted.items() if name.startswith("models/")
    }


def test_a_full_disk_keeps_the_previous_checkpoint(small: Params, data: Path, tmp_path: Path) -> None:
    whole = trained(small, data, tmp_path / "whole")
    running = Trainer(small, data / "shards", data / "weights.json", ONE).run()
    next(running)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # no file may be larger
    try:
        with pytest.raises(
            UserError, match=r"checkpoint cannot be written .* the checkpoint of step \d+ is kept: free disk space"
        ):
            next(running)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert trained(small, data, tmp_path / "resumed") == whole


def test_a_kill_while_the_checkpoint_is_removed_does_not_stop_the_next_run(
    small: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, remove = trained(small, data, tmp_path / "whole"), shutil.rmtree

    def killed(folder: Path, **how: bool) -> None:
        if folder.parent.name == "train":
            next(folder.rglob("optimizer.pt")).unlink()
            raise KeyboardInterrupt
        remove(folder, **how)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        trained(small, data, tmp_path / "again")
    assert trained(small, data, tmp_path / "again") == whole
    assert list((files.store() / "train").iterdir()) == []


def test_the_checkpoint_of_a_step_stays_until_the_next_one_of_that_step_is_complete(
    small: Params, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every_step = replace(small, train={"save_every_steps": 1})
    trainer = Trainer(every_step, data / "shards", data / "weights.json", ONE)
    publish, seen = files._publish, list[set[str]]()

    def published(new: Path, path: Path, old: Path) -> None:
        if path.parent == trainer.state:
            seen.append({one.name for one in path.parent.glob("[0-9]*")})
        publish(new, path, old)

    monkeypatch.setattr(files, "_publish", published)
    next(trainer.run())
    steps = len(trainer.loader)
    assert seen[-1] == {f"{steps:09d}"}
    assert {one.name for one in trainer.state.iterdir()} == {f"{steps:09d}+"}
    assert Trainer(every_step, data / "shards", data / "weights.json", ONE).progress.steps == steps


def test_curves_appear_whole_or_not_at_all(
    small: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = set[Path](), files._sync
    monkeypatch.setattr(files, "_sync", lambda path: (synced.add(path), sync(path)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dvclive.Live.next_step", lambda live: (_ for _ in ()).throw(KeyboardInterrupt))
        trained(small, data, tmp_path)
    assert not (tmp_path / "results/train").exists()
    trained(small, data, tmp_path)
    assert "plcc.tsv" in {path.name for path in synced}


def test_a_damaged_checkpoint_is_an_error(small: Params, data: Path) -> None:
    trainer = Trainer(small, data / "shards", data / "weights.json", ONE)
    next(trainer.run())
    state = checkpoint.newest_checkpoint(trainer.state)
    assert state is not None
    written = sorted(path for path in state.rglob("*") if path.is_file())
    assert {"optimizer.pt", "progress.json", "sha256.json", "last/model.safetensors", "best/config.json"} <= {
        str(path.relative_to(state)) for path in written
    }
    for file in written:
        whole = file.read_bytes()
        flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
        for content in (flipped, whole[: len(whole) // 2], b"", b"nothing", None):
            file.unlink()  # it may be a hard link to the best model
            if content is not None:
                file.write_bytes(content)
            elif file.name == checkpoint.HASHES:  # as an older version wrote it
                continue
            with pytest.raises(UserError, match=r"checkpoint in .* cannot be read \(.*\); remove .* to start again"):
                Trainer(small, data / "shards", data / "weights.json", ONE)
        file.write_bytes(whole)
    assert Trainer(small, data / "shards", data / "weights.json", ONE).progress.steps == trainer.progress.steps


def test_a_checkpoint_of_another_model_is_an_error(small: Params, data: Path) -> None:
    wider = replace(small, model={"hidden": (32, 8)})
    trainer, other = (Trainer(params, data / "shards", data / "weights.json", ONE) for params in (small, wider))
    next(other.run())
    shutil.copytree(other.state, trainer.state)
    with pytest.raises(UserError, match=r"checkpoint in .* cannot be read \(.*\); remove .* to start again") as error:
        Trainer(small, data / "shards", data / "weights.json", ONE)
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_checksums_is_of_an_older_version(
    small: Params, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(small, data / "shards", data / "weights.json", ONE)
    next(trainer.run())
    state = checkpoint.newest_checkpoint(trainer.state)
    assert state is not None
    (state / checkpoint.HASHES).unlink()
    assert Trainer(small, data / "shards", data / "weights.json", ONE).progress.history == trainer.progress.history
    assert "is of an older version, without checksums" in caplog.text


def started(data: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a training of the parameters in `folder`, with its log on a pipe."""
    command = [sys.executable, "-m", "effimini.cli", "train", "--data", str(data)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str], text: str) -> str:
    """Return the first line of a log with `text`."""
    assert process.stderr is not None
    return next(line for line in process.stderr if text in line)


def test_a_second_training_waits_for_the_first(small: Params, data: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(msgspec.json.encode(small))
    with started(data, tmp_path) as first:
        line_of(first, "epoch 1 ")
        first.send_signal(signal.SIGSTOP)
        with started(data, tmp_path) as second:
            assert f"is in use by another run (process {first.pid} on " in line_of(second, "waiting for it to end")
            first.send_signal(signal.SIGCONT)
            assert first.communicate()[1].count("epoch ") == 2
            assert second.communicate()[1].count("epoch ") == 3
    assert (first.returncode, second.returncode) == (0, 0)
    _, alone = trained(small, data, tmp_path / "alone")
    found = {f"models/{name}": sha for name, sha in tree(tmp_path / "models").items()}
    assert found == {name: sha for name, sha in alone.items() if name.startswith("models/")}


def test_a_training_takes_over_from_one_that_is_killed(small: Params, data: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(msgspec.json.encode(small))
    with started(data, tmp_path) as first:
        line_of(first, "epoch 1 ")
        first.send_signal(signal.SIGSTOP)
        with started(data, tmp_path) as second:
            line_of(second, "waiting for it to end")
            first.kill()
            log = second.communicate()[1]
    assert (second.returncode, log.count("resuming an interrupted training")) == (0, 1), log
    _, alone = trained(small, data, tmp_path / "alone")
    found = {f"models/{name}": sha for name, sha in tree(tmp_path / "models").items()}
    assert found == {name: sha for name, sha in alone.items() if name.startswith("models/")}


def test_a_training_that_waits_too_long_ends_with_one_sentence(
    small: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_bytes(msgspec.json.encode(small))
    monkeypatch.setattr(stage, "LOCK_TIMEOUT", 0.1)
    with started(data, tmp_path) as first:
        line_of(first, "epoch 1 ")
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match=rf"is in use by another run \(process {first.pid} on .*; wait for it"):
            train(small, data / "shards", data / "weights.json", tmp_path / "models", tmp_path / "results/train")
        first.kill()


def test_running_out_of_memory_is_an_error(small: Params, data: Path) -> None:
    trainer = Trainer(small, data / "shards", data / "weights.json", ONE)
    trainer.network.register_forward_hook(lambda *_: torch.empty(10**15))
    with pytest.raises(
        UserError,
        match=r"cpu is out of memory .*batch_size 16 with train\.gradient_accumulation_steps 1; raise the latter",
    ):
        list(trainer.run())


@pytest.mark.parametrize("micro_batches", [2, 3, 99])
def test_micro_batches_add_up_to_a_step(small: Params, data: Path, micro_batches: int) -> None:
    ours, parts = (
        gradients(replace(small, train={"gradient_accumulation_steps": n, "batch_size": 15}), data, ONE)
        for n in (1, micro_batches)
    )
    assert ours.keys() == parts.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("recipe", "tolerance"),
    [({"precision": "bf16"}, 0.05), pytest.param({"compile": True}, 1e-4, marks=pytest.mark.slow)],
)
def test_faster_arithmetic_changes_scores_by_rounding(
    small: Params, data: Path, recipe: dict[str, object], tolerance: float
) -> None:
    whole = Trainer(small, data / "shards", data / "weights.json", ONE)
    expected = predict_split(whole.scores, whole.data, ONE, small)
    other = Trainer(replace(small, train=recipe), data / "shards", data / "weights.json", ONE)
    found = predict_split(other.scores, other.data, ONE, small)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < tolerance
    next(other.run())
    assert math.isfinite(other.progress.history[0]["train/loss"])


def test_frozen_encoders_run_once(small: Params, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    frozen = replace(small, train={"freeze_encoders": True, "learning_rate": 0.01})
    trainer = Trainer(frozen, tmp_path / "data/shards", tmp_path / "data/weights.json", ONE)
    live = open_split(data / "shards", small, "train", trained_on(small), small.images.resolution)
    expected = predict_split(trainer.model, live, ONE, small)
    np.testing.assert_allclose(predict_split(trainer.scores, trainer.data, ONE, small), expected, rtol=1e-5)
    raw = np.array(trainer.data.features)
    np.testing.assert_allclose(trainer.model.feature_mean, raw.mean(axis=0), rtol=1e-4, atol=1e-6)
    spread = raw.std(axis=0)
    np.testing.assert_allclose(trainer.model.feature_scale, np.where(spread > 1e-6, spread, 1), rtol=1e-3)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    for path in tmp_path.rglob("*.tar"):
        path.unlink()  # the features are in the store: no image or text is read again
    history, _ = trained(frozen, tmp_path / "data", tmp_path / "out")
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    after = EffiMini.from_pretrained(tmp_path / "out/models/last").state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in before if name.startswith("head.")}
    with pytest.raises(UserError, match=r"train.freeze_encoders is true and there are 2 ranks"):
        Trainer(frozen, data / "shards", data / "weights.json", Distributed(0, 2, torch.device("cpu")))


def test_sync_batchnorm_keeps_the_outputs(small: Params, data: Path) -> None:
    params = replace(small, train={"sync_batchnorm": True})
    with pytest.raises(UserError, match="train.sync_batchnorm is true and there is no GPU"):
        prepare(build(params), params, Distributed(0, 2, torch.device("cpu")))
    model = build(params).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = model.image(images)
    converted = prepare(model, params, Distributed(0, 2, torch.device("cuda")))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.image.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in converted.image.modules())
    torch.testing.assert_close(converted.image(images), expected)


def test_other_parameters_do_not_resume_the_training(small: Params, data: Path) -> None:
    next(Trainer(small, data / "shards", data / "weights.json", ONE).run())
    same = Trainer(replace(small, stream={"workers": 1}), data / "shards", data / "weights.json", ONE)
    assert same.loader.epoch == 1
    other = Trainer(replace(small, train={"seed": 3}), data / "shards", data / "weights.json", ONE)
    assert other.loader.epoch == 0


def test_training_stops_after_epochs_without_improvement(small: Params, data: Path) -> None:
    trainer = Trainer(replace(small, train={"patience": 2, "epochs": 9}), data / "shards", data / "weights.json", ONE)
    running = trainer.run()
    next(running)
    trainer.progress.best = 2.0  # no PLCC is better
    assert len(list(running)) == 2
    assert trainer.finished()


def test_a_gradient_that_is_not_finite_is_an_error(small: Params, data: Path, tmp_path: Path) -> None:
    wild = replace(small, train={"learning_rate": 1e12})
    with pytest.raises(UserError, match=r"step \d+ in epoch 1 .* lower train.learning_rate"):
        trained(wild, data, tmp_path)
    assert not (tmp_path / "models").exists()


def on_two_ranks(params: Params, data: Path, out: Path, after: int = 0) -> subprocess.CompletedProcess[str]:
    """Train under torchrun; rank 1 gets a SIGTERM after a step, 0 for never."""
    out.mkdir(exist_ok=True)
    (out / "given").write_bytes(pickle.dumps((params, data)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.effimini.two_ranks"]
    return subprocess.run(
        [sys.executable, *command, out / "given", out, str(after)],
        cwd=out, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip


def test_two_ranks_take_the_step_of_one(small: Params, data: Path, tmp_path: Path) -> None:
    # odd: the parts of the ranks differ in size, and their micro-batches too
    params = replace(small, train={"batch_size": 15, "epochs": 2, "gradient_accumulation_steps": 2, "skip": ("8-9",)})
    done = on_two_ranks(params, data, tmp_path)
    assert done.returncode == 0, done.stderr

    theirs = torch.load(tmp_path / "gradients.pt", weights_only=True)
    ours = gradients(replace(params, train={"gradient_accumulation_steps": 1}), data, ONE)
    assert theirs.keys() == ours.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-6, msg=name)

    # the validation PLCC counts every sample once
    last = EffiMini.from_pretrained(tmp_path / "models/last")
    validation = ShardDataset(data / "shards", params.source.categories, "validation")
    with init_distributed() as dist:
        stars = predict_split(last, validation, dist, params)
    found = files.read_json(tmp_path / "results/train/metrics.json")
    assert found["validation"]["plcc"] == pytest.approx(plcc(stars, validation.labels), abs=1e-5)

    # a signal to one rank stops both after the same step, and they resume with the losses of an uninterrupted training
    # that skips from the start what the second command skips
    stopped = on_two_ranks(skipping(params), data, tmp_path / "again", after=3)
    assert stopped.returncode != 0
    assert stopped.stderr.count("stopped by a signal after step 5") == 2, stopped.stderr
    assert not (tmp_path / "again/models").exists()
    resumed = on_two_ranks(params, data, tmp_path / "again")
    assert resumed.returncode == 0, resumed.stderr
    assert tree(tmp_path / "again/models") == tree(tmp_path / "models")
