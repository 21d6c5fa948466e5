"""Training on shards, in one process or in those started by torchrun.

Input: ``data/shards/``, ``data/weights.json`` and the parameters. Output: ``models/best/`` and ``models/last/`` (saved
models) and, in ``results/train/``, DVCLive's metrics by epoch, the curve by step (steps.csv) and the time profile.
Guarantees: the same inputs on the same machine give the same losses; a training that was interrupted after any step
resumes from its last checkpoint with the losses of an uninterrupted one; SIGTERM and SIGINT save a checkpoint first;
the gradient of a step is that of the loss summed over the global batch and divided by its size, for any number of ranks
and of gradient accumulation steps.
"""

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from effimini import (
    bfloat16,
    calibration,
    checkpoint,
    closed_form,
    features,
    model_card,
    provenance,
    time_profile,
    trackers,
)
from effimini.clock import Clock
from effimini.distributed import Distributed, init_distributed, set_tf32
from effimini.inference import clamp, open_split, predict_split, to_device
from effimini.loss import weighted_huber
from effimini.metrics import Stars, plcc
from effimini.model import WEIGHTS_FILE, Config, EffiMini, build
from effimini.precheck import CONFIG_FILE
from effimini.stop import Stop, Stopped
from effimini.time_profile import Spent
from effimini.training_curve import POINTS, STEPS_FILE, write_points
from prep.core import files, locks, writers
from prep.core.errors import UserError
from prep.core.params import Params, TrainParams, narrow
from prep.core.progress import bar
from prep.weights import counts_of, sample_weights
from shards import skip
from shards.loader import Loader
from shards.manifest import STATED
from shards.stream import Batch
from shards.tokens import TokenizationConfig, encoder_source

log = logging.getLogger(__name__)

READS = (
    *("source.kind", "source.revision", "source.categories", *STATED, "fetch.max_pixels"),
    *("text", "model", "train", "weights", "stream"),
)
FORMAT = 11  # increment when the same inputs give a different training
# Seconds to wait for another run of the same training, for example a job that is about to be stopped.
LOCK_TIMEOUT = 300


class StepResult(NamedTuple):
    """The result of a step, available when the device has finished it."""

    sums: Tensor  # float32 [2], over all ranks: loss of the global batch, number of ranks with a stop request
    norm: Tensor  # float32 [], norm of the gradient before clipping
    size: int  # number of samples of the global batch
    place: tuple[int, int]  # epoch and step, from 0
    learning_rate: float  # of the encoders


class Trained(msgspec.Struct, frozen=True):
    """A finished training: what `effimini train --json` prints."""

    model: str  # folder of the best model
    best_epoch: int  # from 1
    validation_plcc: float | None  # of the best epoch
    steps: int
    epochs: list[dict[str, float]]  # metrics of each epoch


class Trainer:
    """A training run: model, data, optimizer and progress.

    Args:
        params, shards, weights: as for `train`.
        dist: the ranks of this training.
        held: keeps other runs of the same training waiting until it is closed; None if there are none.
        track: is given each point of the training curve and the metrics of each epoch, with their step.
    """

    def __init__(
        self,
        params: Params,
        shards: str | Path,
        weights: Path | None,
        dist: Distributed,
        held: ExitStack | None = None,
        track: trackers.Log = trackers.discard,
    ) -> None:
        self.params, self.dist, self.track = params, dist, track
        recipe = params.train
        tokenization = TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)
        self.data, self.validation = (
            open_split(shards, params, split, tokenization, params.images.resolution, params.model.tabular)
            for split in ("train", "validation")
        )
        if weights is not None:
            provenance.check_shards(self.data.shards.manifests, params, Path(shards))
        self.weights = provenance.weights_for(self.data, params, weights)
        self.training = provenance.of_training(self.data, params, self.weights)
        fingerprint = files.fingerprint(
            FORMAT, _recipe(params), self.weights, self.data.fingerprint, self.validation.fingerprint
        )
        torch.manual_seed(recipe.seed)
        self.model = prepare(build(params).to(dist.device), params, dist)
        self.network: nn.Module = self.model
        start = time.perf_counter()
        if recipe.freeze_encoders:
            self.network = features.Head(self.model)
            self.data, self.validation = splits = [
                features.of_split(self.model, data, dist, params) for data in (self.data, self.validation)
            ]
            features.standardize(self.model, splits[0])
        feature_seconds = time.perf_counter() - start
        # the module and its stars on validation
        self.closed_form: tuple[closed_form.ClosedForm, Stars] | None = None
        if self.model.closed_form is not None:
            inputs = (splits[0].kernel_inputs, splits[1].kernel_inputs) if recipe.freeze_encoders else None
            self.closed_form = (
                self.model.closed_form,
                closed_form.fit(
                    self.model.closed_form, self.data, self.validation, self.weights, inputs, refit=recipe.refit
                ),
            )
        self.scores = self.network  # without DistributedDataParallel
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.loader = self._loader()
        self.state = files.store() / "train" / fingerprint
        if held is not None:
            if dist.rank == 0:
                held.enter_context(locks.hold(self.state, LOCK_TIMEOUT))
            dist.barrier()  # the other ranks read the state when the first one holds it
        self.progress = checkpoint.load_checkpoint(self.state, self.model, self.optimizer)
        if recipe.freeze_encoders:
            self.progress.seconds[time_profile.FEATURES] = (
                self.progress.seconds.get(time_profile.FEATURES, 0.0) + feature_seconds
            )
        skip.check(recipe.skipped, len(self.loader), recipe.epochs)
        if self.progress.loader is not None:
            try:
                self.loader.load_state_dict(self.progress.loader)
            except UserError as error:
                raise UserError(f"{error}: remove {self.state}") from None
        self.steps = len(self.loader) * recipe.epochs
        if dist.world_size > 1:
            self.network = DistributedDataParallel(self.network)
        self.stop, self.clock = Stop(), Clock(dist.device, self.progress.seconds)

    def finished(self) -> bool:
        """Return whether all epochs are done, or the validation PLCC has not improved for train.patience epochs."""
        recipe = self.params.train
        return len(self.progress.history) >= recipe.epochs or self.progress.stale >= recipe.patience

    def run(self) -> Iterator[dict[str, float]]:
        """Train, validate and save a checkpoint for each epoch, and yield its metrics.

        Raises:
            Stopped: SIGTERM or SIGINT was received; a checkpoint is saved.
            UserError: the gradient is not finite, the device is out of memory, or the disk is full.
        """
        self._send_past()
        with self.stop.listening():
            try:
                while not self.finished():
                    if self.stop.requested:
                        self.stop.raise_stopped()
                    if self.loader.epoch == len(self.progress.history):
                        self._train()
                    metrics = self._validate()
                    with self.stop.deferred():  # the consumer is not interrupted; the loop condition handles the signal
                        yield metrics
            except Stopped:
                if self.progress.steps and self.progress.loader != self.loader.state_dict():
                    self._save()
                log.warning("stopped by a signal after step %d; run the same command to resume", self.progress.steps)
                raise

    def _send_past(self) -> None:
        """Send what was measured before an interruption to the tracker, which starts anew."""
        progress = self.progress
        past = [(point.metrics(), point.step) for point in progress.curve.points]
        past += [(metrics, epoch * len(self.loader)) for epoch, metrics in enumerate(progress.history, 1)]
        for metrics, step in sorted(past, key=itemgetter(1)):
            self.track(metrics, step)

    def _train(self) -> None:
        """Run the remaining steps of the epoch."""
        self.network.train()
        progress, loader, every = self.progress, self.loader, self.params.train.save_every_steps
        epoch, result = loader.epoch, None
        with self.stop.deferred():
            self.clock.start("data")
            what = f"train, epoch {epoch + 1} of {self.params.train.epochs}: steps"
            done = len(loader) - len(list(loader.remaining()))
            batches = bar(loader, what, len(loader), done)
            for batch in batches if self.dist.rank == 0 else loader:
                previous = result
                result = self.step(epoch, loader.step - 1, batch)  # the loader has already counted this batch
                self.clock.start("data")
                self.clock.read()
                # check the previous step only after this one is queued, so that the device never waits for the host
                stopping = previous is not None and self._check_step(previous)
                due = every > 0 and progress.steps % every == 0
                if stopping or due:
                    self._check_step(result)
                    result = None
                if stopping:
                    self.stop.raise_stopped()
                if due:
                    self._save()
                    self.clock.start("data")
            stopping = result is not None and self._check_step(result)
            # the running statistics of batch norm differ between ranks
            self.dist.broadcast(self.model.buffers())
            self.clock.stop()
        if stopping or self.stop.requested:
            self.stop.raise_stopped()

    def step(self, epoch: int, step: int, batch: Batch) -> StepResult:
        """Run one optimizer step on this rank's part of the global batch."""
        recipe, dist = self.params.train, self.dist
        factor = schedule(self._of_run(epoch, step) - 1, self.steps, recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * factor
        torch.manual_seed(seed_of(recipe.seed, epoch, step, dist.rank))  # the same dropout after a resume
        weights = torch.from_numpy(sample_weights(counts_of(batch, self.weights), self.weights))
        tensors = (*to_device(batch, dist.device), batch.label.to(dist.device), weights.to(dist.device))
        micro_batches = list(
            zip(*(tensor.chunk(recipe.gradient_accumulation_steps) for tensor in tensors), strict=True)
        )
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=dist.device)
        try:
            for number, (*inputs, label, weight) in enumerate(micro_batches, 1):
                with self._gradient_sync(number == len(micro_batches)):
                    self.clock.start("forward")
                    stars = self.network(*inputs)
                    loss = weighted_huber(stars, label, weight, recipe.huber_delta, batch.global_size)
                    self.clock.start("backward")
                    (loss * dist.world_size).backward()  # type: ignore[no-untyped-call]  # DDP averages over ranks; we need the sum
                total += loss.detach()
            self.clock.start("optimizer")
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
            self.optimizer.step()
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise UserError(
                f"the {dist.device.type} is out of memory in a step of train.batch_size {recipe.batch_size} with "
                f"train.gradient_accumulation_steps {recipe.gradient_accumulation_steps}; raise the latter"
            ) from error
        self.progress.steps = self._of_run(epoch, step)
        stop_requested = torch.full_like(total, float(self.stop.requested is not None))
        sums = dist.all_reduce(torch.stack([total, stop_requested]))
        return StepResult(sums, norm, batch.global_size, (epoch, step), self.optimizer.param_groups[0]["lr"])

    def _of_run(self, epoch: int, step: int) -> int:
        """Return the number of a step in the run, from 1; those left out count."""
        return epoch * len(self.loader) + step + 1

    def _check_step(self, result: StepResult) -> bool:
        """Add the loss of a step to the progress; return whether any rank got a stop request, the same on all ranks."""
        loss, stop_requests = result.sums.tolist()
        norm, (epoch, step) = float(result.norm), result.place
        if not math.isfinite(norm):
            kept = checkpoint.newest_checkpoint(self.state)
            raise UserError(
                f"the gradient norm of step {step + 1} in epoch {epoch + 1} is {norm} (loss {loss}); "
                f"lower train.learning_rate, which is {self.params.train.learning_rate:g}, or add step "
                f"{self._of_run(epoch, step)} to train.skip"
                + (f"; the checkpoint of step {checkpoint.steps_of(kept)} is kept in {kept}" if kept else "")
            )
        self.progress.loss += loss * result.size
        self.progress.samples += result.size
        self.progress.curve.add(self._of_run(epoch, step), loss, norm, result.learning_rate, result.size)
        if self.progress.curve.steps == math.ceil(len(self.loader) / POINTS):
            self._close_point()
        return bool(stop_requests > 0)

    def _close_point(self) -> None:
        """Add the steps since the last point of the curve to it, and send the point to the tracker."""
        point = self.progress.curve.close(len(self.loader))
        if point is not None:
            self.track(point.metrics(), point.step)

    def _validate(self) -> dict[str, float]:
        """Evaluate the model on the validation split, save a checkpoint, and return the metrics of the epoch."""
        recipe, progress = self.params.train, self.progress
        self._close_point()
        self.clock.start("validation")
        if self.closed_form:
            self.closed_form[0].fraction.zero_()  # score with only the network
        self.model.config = msgspec.structs.replace(self.model.config, calibration=None, interval=None)
        predicted = predict_split(self.scores, self.validation, self.dist, self.params)
        network_only = {}
        if self.closed_form:
            module, closed_form_stars = self.closed_form
            network_only["validation/plcc_of_network"] = plcc(predicted, self.validation.labels)
            predicted = closed_form.mix(module, predicted, closed_form_stars, self.validation.labels)
        calibrated = self._calibrate(predicted)
        stars, labels = torch.from_numpy(predicted), torch.from_numpy(self.validation.labels)
        unweighted = weighted_huber(stars, labels, torch.ones_like(labels), recipe.huber_delta, len(labels))
        self.clock.stop()
        metrics = {
            "train/loss": progress.loss / progress.samples,
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "validation/loss": float(unweighted),
            # not clamped: early predictions below 1 star would all become 1
            "validation/plcc": plcc(stars.numpy(), self.validation.labels),
            **network_only,
        }
        better = progress.best is None or metrics["validation/plcc"] > progress.best
        with self.stop.deferred():
            if better:
                progress.best, progress.best_epoch = metrics["validation/plcc"], len(progress.history)
            progress.stale = 0 if better else progress.stale + 1
            progress.history, progress.loss = [*progress.history, metrics], 0.0
            progress.trained, progress.samples = progress.trained + progress.samples, 0
            self._save(calibrated, best=better)
        self.track(metrics, len(progress.history) * len(self.loader))
        return metrics

    def _calibrate(self, scores: Stars) -> Stars:
        """Fit the line and the interval of the model as it is now, and return its calibrated validation stars.

        They affect neither training nor its metrics.
        """
        held_out = self.validation
        line = calibration.fit_line(scores, held_out.labels)
        stars = clamp(calibration.apply_line(line, scores))
        ratings = float(np.median(self.data.rating_number))
        interval = calibration.fit_interval(stars, held_out.labels, held_out.rating_number, ratings)
        self.model.config = msgspec.structs.replace(self.model.config, calibration=line, interval=interval)
        return stars

    def _save(self, calibrated: Stars | None = None, *, best: bool = False) -> None:
        """Save a checkpoint, at the end of an epoch with the calibrated validation stars."""
        self.clock.stop()
        self.clock.start("saving")
        self.progress.loader = self.loader.state_dict()
        if self.dist.rank == 0:
            checkpoint.save_checkpoint(
                self.state,
                self.model,
                self.optimizer,
                self.progress,
                best=best,
                validation=None if calibrated is None else (self.validation, calibrated),
            )
        self.clock.stop()

    def _gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context that synchronizes gradients between ranks only in the last micro-batch of a step."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()

    def _loader(self) -> Loader:
        recipe, dist = self.params.train, self.dist
        return Loader(
            self.data,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            rank=dist.rank,
            world_size=dist.world_size,
            workers=0 if recipe.freeze_encoders else self.params.stream.workers,
            length_bucket_batches=recipe.length_bucket_batches,
            max_damaged_fraction=self.params.stream.max_damaged_fraction,
            mixture=recipe.mixture,
            skip=recipe.skipped,
        )


def train(
    params: Params,
    shards: str | Path = Path("data/shards"),
    weights: Path | None = Path("data/weights.json"),
    out: Path = Path("models"),
    results: Path = Path("results/train"),
    tracker: str = "none",
) -> Trained:
    """Train, write the best and the last model to `out` and the curves to `results`, and return what came of it.

    Run it in one process, or in each process of torchrun.

    Args:
        params: the parameters; only those in `READS` are read.
        shards: a folder or URL of shards.
        weights: the weights.json of the project's own shards, which must match `params`. None for external shards,
            which may have been made with other parameters: the weighting is computed from their indexes.
        out: the folder for best/ and last/.
        results: the folder for the metrics and curves.
        tracker: where metrics and curve are sent while the model trains, as of `effimini.trackers.start`.

    Raises:
        UserError: the tracker does not start, shards or weights are missing or belong to another run, an encoder
            cannot be loaded, or as `Trainer.run`.
        Stopped: SIGTERM or SIGINT was received; a checkpoint is saved, and the next call resumes from it.
    """
    params = narrow(params, READS)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    set_tf32(params.train.tf32)
    with init_distributed() as dist, ExitStack() as held:
        settings = {"source": params.source.kind} | dataclasses.asdict(params.train)
        track = held.enter_context(trackers.start(tracker if dist.rank == 0 else "none", settings))
        trainer = Trainer(params, shards, weights, dist, held, track)
        progress = trainer.progress
        if params.source.kind == "demo":
            log.warning("demo data: the products are synthetic, so these metrics say nothing about real ones")
        if progress.steps:
            log.info("resuming an interrupted training after step %d of %d", progress.steps, trainer.steps)
        for metrics in trainer.run():
            if dist.rank == 0:
                log.info(
                    "epoch %d of %d: %s  padding %.1f %%  images damaged %d",
                    len(progress.history),
                    params.train.epochs,
                    "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
                    100 * trainer.loader.padding,
                    len(trainer.loader.damaged),
                )
        if dist.rank == 0:
            profile = time_profile.time_profile(progress.seconds, progress.trained, dist)
            log.info(time_profile.describe(profile))
            _publish(trainer, profile, out, results)
        dist.barrier()
    return Trained(str(out / "best"), progress.best_epoch + 1, progress.best, progress.steps, progress.history)


def schedule(step: int, total: int, warmup: float) -> float:
    """Return the factor of the learning rate at `step`: linear warmup from 0, then cosine decay to 0.

    Args:
        step: the step, from 0.
        total: number of steps over all epochs.
        warmup: fraction of the steps that are warmup; unless it is 0, at least one step is, as in the paper's code.
    """
    warmup_steps = max(1, int(warmup * total)) if warmup else 0
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total - warmup_steps)))


def parameter_groups(model: EffiMini, recipe: TrainParams) -> list[dict[str, Any]]:
    """Return parameter groups for the encoders and the head, each with its peak learning rate as ``highest``."""
    in_head = {id(parameter) for parameter in model.head.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    encoders = {"params": [p for p in trained if id(p) not in in_head], "highest": recipe.learning_rate}
    head_group = {"params": list(model.head.parameters()), "highest": recipe.head_learning_rate or recipe.learning_rate}
    return [group | {"lr": group["highest"]} for group in (encoders, head_group)]


def seed_of(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all `numbers`."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def prepare(model: EffiMini, params: Params, dist: Distributed) -> EffiMini:
    """Apply the precision, freezing, batch norm and compile options of `params`, and return the model.

    Weights and their names do not change.

    Raises:
        UserError: train.sync_batchnorm is true and there is no GPU.
    """
    recipe = params.train
    for module in model.image.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # autograd would copy the input that the activation overwrites
    if recipe.precision == "bf16":
        model.autocast = True
        model.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dist.device.type == "cpu":
            bfloat16.keep_in_float32(model)
    if recipe.sync_batchnorm and dist.world_size > 1:
        if dist.device.type != "cuda":
            raise UserError("train.sync_batchnorm is true and there is no GPU; set it to false")
        from timm.layers.norm_act import convert_sync_batchnorm  # noqa: PLC0415 -- after effimini.torchvision_shim

        # timm's version; torch's would drop the activations of timm's layers
        model.image = convert_sync_batchnorm(model.image)  # type: ignore[no-untyped-call]
    if recipe.freeze_encoders:
        model.image.requires_grad_(requires_grad=False)
        model.text.requires_grad_(requires_grad=False)
    if recipe.compile:
        model.compile(dynamic=True)
    return model


def _recipe(params: Params) -> list[Any]:
    """Return everything except the data that the losses of a training depend on, for its fingerprint."""
    folder, path = Path(encoder_source(params.model.text.name)), Path(params.model.image.weights)
    contents = [
        files.sha256(file) for file in (folder / WEIGHTS_FILE, path, Path(params.model.text.weights)) if file.is_file()
    ]
    recipe = dataclasses.replace(params.train, save_every_steps=0, skip=())  # the loader's state has the steps left out
    return [params.model, params.images.resolution, params.text, recipe, contents]


def _publish(trainer: Trainer, profile: Spent, out: Path, results: Path) -> None:
    """Write the models with their cards, the curves and the time profile, then remove the checkpoint."""
    from dvclive import Live  # type: ignore[attr-defined]  # noqa: PLC0415 -- takes long; its module has no __all__

    params, progress = trainer.params, trainer.progress
    newest = checkpoint.newest_checkpoint(trainer.state)
    assert newest is not None, trainer.state
    with files.atomic_folder(results) as curves, files.atomic_folder(out) as partial:
        for name, epoch in (("best", progress.best_epoch), ("last", len(progress.history) - 1)):
            shutil.copytree(newest / name, partial / name)
            # that of the epoch, with its calibration
            config = msgspec.json.decode((partial / name / CONFIG_FILE).read_bytes(), type=Config)
            if config.calibration is None:
                log.info("the scores of %s are not calibrated: %s", out / name, calibration.WHY_NONE)
            text = model_card.model_card(
                trainer.model, config, params, trainer.training, progress.history, epoch, chosen=name == "best"
            )
            (partial / name / model_card.MODEL_CARD_FILE).write_text(text, encoding="utf-8")
            writers.write_json(partial / name / provenance.TRAINING_FILE, trainer.training)
        with Live(dir=str(curves), dvcyaml=None, save_dvc_exp=False, report=None) as live:
            for metrics in progress.history:
                for name in sorted(metrics):  # sorted, because a resumed training reads its metrics back in this order
                    live.log_metric(name, metrics[name])
                live.next_step()
            live.summary["source"] = params.source.kind
            live.summary["best"] = {"epoch": progress.best_epoch + 1, "validation_plcc": progress.best}
        write_points(progress.curve.points, curves / STEPS_FILE)
        writers.write_json(curves / "time.json", profile)
    newest.replace(newest.with_name(f".{newest.name}.old.partial"))  # a kill must not leave half of it to resume from
    shutil.rmtree(trainer.state)
