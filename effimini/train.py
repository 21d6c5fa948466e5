"""Training: the paper's recipe over the shards, on one process or on those of torchrun.

In: ``data/shards/``, ``data/weights.json`` and the parameters. Out: ``models/best/`` and ``models/last/`` (saved
models), DVCLive's metrics and curves in ``results/train/``, and where the time went in ``results/train/time.json``.
Guaranteed: the same inputs on the same machine give the same losses; a training that was stopped, after whatever step,
goes on from its last saved state with the losses of an undisturbed one; SIGTERM and SIGINT save a state first; the
gradient of a step is that of the loss summed over the global batch and divided by its size, whatever the ranks and the
parts a rank computes it in.
"""

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from dvclive import Live  # type: ignore[attr-defined]  # its module has no __all__
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from effimini import bfloat16, checkpoint, features, hashed_ngrams, model_card, provenance, time_profile
from effimini.clock import Clock
from effimini.distributed import Distributed, init_distributed
from effimini.inference import open_split, predict_split, to_device
from effimini.loss import weighted_huber
from effimini.metrics import plcc
from effimini.model import WEIGHTS_FILE, EffiMini, build
from effimini.stop import Stop, Stopped
from effimini.time_profile import Spent
from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.params import Params, TrainParams, narrow
from prep.core.progress import bar
from prep.weights import counts_of, sample_weights
from shards.loader import Loader
from shards.manifest import STATED
from shards.stream import Batch
from shards.tokens import TokenizationConfig

log = logging.getLogger(__name__)

READS = (
    *("source.kind", "source.revision", "source.categories", *STATED, "fetch.max_pixels"),
    *("text", "model", "train", "weights", "stream"),
)
FORMAT = 8  # raise it when the same inputs train otherwise


class StepResult(NamedTuple):
    """What a step says when the device has done it."""

    sums: Tensor  # float32 [2], over all ranks: loss of the global batch, how many ranks were asked to stop
    norm: Tensor  # float32 [], of the gradient before it is clipped
    size: int  # of the global batch
    place: tuple[int, int]  # epoch and step, from 0


class Trainer:
    """A training under way: what an epoch needs, made once."""

    def __init__(self, params: Params, shards: str | Path, weights: Path | None, dist: Distributed) -> None:
        self.params, self.dist = params, dist
        recipe = params.train
        tokenization = TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)
        self.data, self.validation = (
            open_split(shards, params, split, tokenization, params.images.resolution)
            for split in ("train", "validation")
        )
        if weights is not None:
            provenance.check_shards(self.data.shards.manifests, params, Path(shards))
        self.weights = provenance.weights_for(self.data, params, weights)
        self.training = provenance.of_training(self.data, params, self.weights)
        made_of = files.fingerprint(
            FORMAT, _recipe(params), self.weights, self.data.fingerprint, self.validation.fingerprint
        )
        torch.manual_seed(recipe.seed)
        self.model = prepare(build(params).to(dist.device), params, dist)
        self.network: nn.Module = self.model
        self.ngrams: tuple[hashed_ngrams.HashedNgrams, npt.NDArray[np.float32]] | None = (
            None  # with its stars of validation
        )
        if self.model.ngrams is not None:
            self.ngrams = (
                self.model.ngrams,
                hashed_ngrams.fit_ngrams(self.model.ngrams, self.data, self.validation, self.weights),
            )
        began = time.perf_counter()
        if recipe.freeze_encoders:
            self.network = features.Head(self.model)
            self.data, self.validation = seen = [
                features.of_split(self.model, data, dist, params) for data in (self.data, self.validation)
            ]
            features.standardize(self.model, seen[0])
        of_features = time.perf_counter() - began
        self.scores = self.network  # without the ranks' exchange of gradients
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.loader = self._loader()
        self.state = files.store() / "train" / made_of
        self.progress = checkpoint.load_checkpoint(self.state, self.model, self.optimizer)
        if recipe.freeze_encoders:
            self.progress.seconds[time_profile.FEATURES] = (
                self.progress.seconds.get(time_profile.FEATURES, 0.0) + of_features
            )
        if self.progress.loader is not None:
            self.loader.load_state_dict(self.progress.loader)
        self.steps = len(self.loader) * recipe.epochs  # of the whole schedule
        if dist.world_size > 1:
            self.network = DistributedDataParallel(self.network)
        self.stop, self.clock = Stop(), Clock(dist.device, self.progress.seconds)

    def finished(self) -> bool:
        """Tell whether all epochs are done, or too many have passed without a better validation PLCC."""
        recipe = self.params.train
        return len(self.progress.history) >= recipe.epochs or self.progress.stale >= recipe.patience

    def run(self) -> Iterator[dict[str, float]]:
        """Train and validate epoch after epoch, saving states, and yield the metrics of each.

        Raises:
            Stopped: SIGTERM or SIGINT came; the state is saved.
            UserError: the loss stops being finite, the memory does not suffice, or the disk is full.
        """
        with self.stop.listening():
            try:
                while not self.finished():
                    if self.stop.requested:
                        self.stop.raise_stopped()
                    if self.loader.epoch == len(self.progress.history):
                        self._train()
                    metrics = self._validate()
                    with self.stop.deferred():  # whoever logs them is not interrupted: the loop is where it ends
                        yield metrics
            except Stopped:
                if self.progress.steps and self.progress.loader != self.loader.state_dict():
                    self._save(best=False)
                log.warning(
                    "stopped by a signal after step %d; the same command goes on from there", self.progress.steps
                )
                raise

    def _train(self) -> None:
        """Take the steps that are left of the epoch."""
        self.network.train()
        progress, loader, every = self.progress, self.loader, self.params.train.save_every_steps
        epoch, result = loader.epoch, None
        with self.stop.deferred():
            self.clock.start("data")
            for batch in bar(loader, f"epoch {epoch + 1}", len(loader)) if self.dist.rank == 0 else loader:
                before = result
                result = self.step(epoch, loader.step - 1, batch)  # the loader counts the batch as taken
                self.clock.start("data")
                self.clock.read()
                # the device is given a step before the one before it is looked at, so that it never waits for us
                stopping = before is not None and self._check_step(before)
                due = every > 0 and progress.steps % every == 0
                if stopping or due:
                    self._check_step(result)
                    result = None
                if stopping:
                    self.stop.raise_stopped()
                if due:
                    self._save(best=False)
                    self.clock.start("data")
            stopping = result is not None and self._check_step(result)
            # each rank saw other samples in its last step, so the running statistics differ until they are shared
            self.dist.broadcast(self.model.buffers())
            self.clock.stop()
        if stopping or self.stop.requested:
            self.stop.raise_stopped()

    def step(self, epoch: int, step: int, batch: Batch) -> StepResult:
        """Take one step."""
        recipe, dist = self.params.train, self.dist
        share = schedule(epoch * len(self.loader) + step, self.steps, recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * share
        torch.manual_seed(seed_of(recipe.seed, epoch, step, dist.rank))  # dropout, the same after a resume
        weights = torch.from_numpy(sample_weights(counts_of(batch, self.weights), self.weights))
        given = (*to_device(batch, dist.device), batch.label.to(dist.device), weights.to(dist.device))
        micro_batches = list(zip(*(tensor.chunk(recipe.gradient_accumulation_steps) for tensor in given), strict=True))
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=dist.device)
        try:
            for number, (*inputs, label, weight) in enumerate(micro_batches, 1):
                with self._gradient_sync(number == len(micro_batches)):
                    self.clock.start("forward")
                    stars = self.network(*inputs)
                    loss = weighted_huber(stars, label, weight, recipe.huber_delta, batch.global_size)
                    self.clock.start("backward")
                    (loss * dist.world_size).backward()  # type: ignore[no-untyped-call]  # DDP takes the ranks' mean; we need the sum
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
        self.progress.steps += 1
        asked = torch.full_like(total, float(self.stop.requested is not None))
        return StepResult(dist.all_reduce(torch.stack([total, asked])), norm, batch.global_size, (epoch, step))

    def _check_step(self, result: StepResult) -> bool:
        """Count a step's loss, and tell whether a rank was asked to stop: every rank sees it at the same step."""
        loss, asked = result.sums.tolist()
        if not torch.isfinite(result.norm):
            kept = checkpoint.newest_checkpoint(self.state)
            epoch, step = result.place
            raise UserError(
                f"the gradient of step {step + 1} in epoch {epoch + 1} is {float(result.norm)} (loss {loss}); lower "
                f"train.learning_rate, which is {self.params.train.learning_rate:g}"
                + (f"; the state after step {int(kept.name)} is kept in {kept}" if kept else "")
            )
        self.progress.loss += loss * result.size
        return bool(asked > 0)

    def _validate(self) -> dict[str, float]:
        """Measure the model after an epoch, save the state, and return the epoch's metrics."""
        recipe, progress = self.params.train, self.progress
        self.clock.start("validation")
        if self.ngrams:
            self.ngrams[0].fraction.zero_()  # the network alone
        predicted = predict_split(self.scores, self.validation, self.dist, self.params)
        alone = {}
        if self.ngrams:
            module, ngram_stars = self.ngrams
            alone["validation/plcc_of_network"] = plcc(predicted, self.validation.labels)
            predicted = hashed_ngrams.mix(module, predicted, ngram_stars, self.validation.labels)
        stars, labels = torch.from_numpy(predicted), torch.from_numpy(self.validation.labels)
        unweighted = weighted_huber(stars, labels, torch.ones_like(labels), recipe.huber_delta, len(labels))
        self.clock.stop()
        metrics = {
            "train/loss": progress.loss / len(self.data),
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "validation/loss": float(unweighted),
            # not clamped: a first epoch that still predicts under 1 star would be a constant
            "validation/plcc": plcc(stars.numpy(), self.validation.labels),
            **alone,
        }
        better = progress.best is None or metrics["validation/plcc"] > progress.best
        with self.stop.deferred():
            if better:
                progress.best, progress.best_epoch = metrics["validation/plcc"], len(progress.history)
            progress.stale = 0 if better else progress.stale + 1
            progress.history, progress.loss = [*progress.history, metrics], 0.0
            self._save(best=better)
        return metrics

    def _save(self, *, best: bool) -> None:
        self.clock.stop()
        self.clock.start("saving")
        self.progress.loader = self.loader.state_dict()
        if self.dist.rank == 0:
            checkpoint.save_checkpoint(self.state, self.model, self.optimizer, self.progress, best=best)
        self.clock.stop()

    def _gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients with the other ranks in the last part of a step alone."""
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
        )


def train(
    params: Params,
    shards: str | Path = Path("data/shards"),
    weights: Path | None = Path("data/weights.json"),
    out: Path = Path("models"),
    results: Path = Path("results/train"),
) -> list[dict[str, float]]:
    """Train, write the best and the last model to `out` and the curves to `results`, and return each epoch's metrics.

    Run it in one process, or in each process of torchrun.

    Args:
        params: those of `READS` are read.
        shards: a folder or URL of shards.
        weights: what the project's own shards came with, which have to be those of `params`. None for shards from
            elsewhere, whatever they were made with: the constant of the weights is computed from their indexes.
        out: takes best/ and last/.
        results: takes the curves.

    Raises:
        UserError: shards or weights are absent or of another run, an encoder cannot be loaded, or as `Trainer.run`.
        Stopped: SIGTERM or SIGINT came; the state is saved, and the next call goes on from it.

    Source: reference section 1 (training).
    """
    params = narrow(params, READS)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = False  # fp32, as the paper trains
    with init_distributed() as dist:
        trainer = Trainer(params, shards, weights, dist)
        progress = trainer.progress
        if params.source.kind == "demo":
            log.warning("demo data: the numbers of this training are about made products")
        if progress.steps:
            log.info("an interrupted training goes on after step %d of %d", progress.steps, trainer.steps)
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
            where = time_profile.time_profile(
                progress.seconds, progress.steps * len(trainer.data) / len(trainer.loader), dist
            )
            log.info(time_profile.describe(where))
            _publish(trainer, where, out, results)
        dist.barrier()
    return progress.history


def schedule(step: int, total: int, warmup: float) -> float:
    """Return the share of the learning rate at `step` of `total`: a linear rise from 0, then half a cosine to 0.

    Args:
        step: from 0.
        total: steps of all epochs.
        warmup: share of them that rises.
    """
    rising = int(warmup * total)
    if step < rising:
        return step / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def parameter_groups(model: EffiMini, recipe: TrainParams) -> list[dict[str, Any]]:
    """Return the encoders' and the head's parameters for an optimizer, each with its ``highest`` learning rate."""
    head = {id(parameter) for parameter in model.head.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    encoders = {"params": [p for p in trained if id(p) not in head], "highest": recipe.learning_rate}
    own = {"params": list(model.head.parameters()), "highest": recipe.head_learning_rate or recipe.learning_rate}
    return [group | {"lr": group["highest"]} for group in (encoders, own)]


def seed_of(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all the numbers."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def prepare(model: EffiMini, params: Params, dist: Distributed) -> EffiMini:
    """Put the model in the form that the recipe asks for, and return it; its weights and their names stay.

    Raises:
        UserError: batch statistics shall be synchronised on CPUs.
    """
    recipe = params.train
    for module in model.image.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # autograd copies what an activation overwrites
    if recipe.precision == "bf16":
        model.autocast = True
        model.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if dist.device.type == "cpu":
            bfloat16.keep_in_float32(model)
    if recipe.sync_batchnorm and dist.world_size > 1:
        if dist.device.type != "cuda":
            raise UserError("train.sync_batchnorm is true and there is no GPU; set it to false")
        from timm.layers.norm_act import convert_sync_batchnorm  # noqa: PLC0415 -- after effimini.torchvision_shim

        # timm's: torch's own would lose the activations
        model.image = convert_sync_batchnorm(model.image)  # type: ignore[no-untyped-call]
    if recipe.freeze_encoders:
        model.image.requires_grad_(requires_grad=False)
        model.text.requires_grad_(requires_grad=False)
    if recipe.compile:
        model.compile(dynamic=True)
    return model


def _recipe(params: Params) -> list[Any]:
    """Return what the losses of a training depend on, apart from the data."""
    folder, path = Path(params.model.text.name), Path(params.model.image.weights)
    contents = [
        files.sha256(file) for file in (folder / WEIGHTS_FILE, path, Path(params.model.text.weights)) if file.is_file()
    ]
    recipe = dataclasses.replace(params.train, save_every_steps=0)
    return [params.model, params.images.resolution, params.text, recipe, contents]


def _publish(trainer: Trainer, where: Spent, out: Path, results: Path) -> None:
    """Put models with their cards, and curves, where DVC looks for them, then drop the state."""
    params, progress = trainer.params, trainer.progress
    newest = checkpoint.newest_checkpoint(trainer.state)
    assert newest is not None, trainer.state
    with files.atomic_folder(out) as partial:
        for name, epoch in (("best", progress.best_epoch), ("last", len(progress.history) - 1)):
            shutil.copytree(newest / name, partial / name)
            text = model_card.model_card(
                trainer.model, params, trainer.training, progress.history, epoch, chosen=name == "best"
            )
            (partial / name / model_card.MODEL_CARD_FILE).write_text(text, encoding="utf-8")
            writers.write_json(partial / name / provenance.TRAINING_FILE, trainer.training)
    with Live(dir=str(results), dvcyaml=None, save_dvc_exp=False, report=None) as live:
        for metrics in progress.history:
            for name in sorted(metrics):  # the order that a resumed training reads back
                live.log_metric(name, metrics[name])
            live.next_step()
        live.summary["source"] = params.source.kind
        live.summary["best"] = {"epoch": progress.best_epoch + 1, "validation_plcc": progress.best}
    writers.write_json(results / "time.json", where)
    shutil.rmtree(trainer.state)
