"""Training: the paper's recipe over the shards, on one process or on those of torchrun.

In: ``data/shards/``, ``data/weights.json`` and the parameters. Out: ``models/best/`` and ``models/last/``
(saved models), and DVCLive's metrics and curves in ``results/train/``. Guaranteed: the same inputs on the
same machine give the same losses; a training that was stopped goes on from its last finished epoch with the
losses of an undisturbed one; the gradient of a step is that of the loss summed over the global batch and
divided by its size, whatever the ranks.
"""

import logging
import math
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from dvclive import Live  # type: ignore[attr-defined]  # its module has no __all__
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from effimini import checkpoint
from effimini.inference import open_split, predict_split, to_device
from effimini.loss import counts_of, sample_weights, weighted_huber
from effimini.metrics import plcc
from effimini.model import WEIGHTS, build
from effimini.ranks import Ranks, ranks
from prep import files
from prep.faults import UserError
from prep.params import Params
from prep.progress import bar
from shards.loader import Loader
from shards.stream import Batch
from shards.tar import Tokens

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the same inputs train otherwise


class Trainer:
    """A training under way: what an epoch needs, made once."""

    def __init__(self, params: Params, shards: str | Path, weights: Path, here: Ranks) -> None:
        self.params, self.here = params, here
        self.weights = files.read_json(weights)
        how = Tokens(params.model.text.name, params.text.fields, params.text.max_tokens)
        self.data, self.validation = (
            open_split(shards, params, split, how, params.images.size) for split in ("train", "validation")
        )
        self.loader = self._loader()
        torch.manual_seed(params.train.seed)
        self.model = build(params).to(here.device)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=params.train.learning_rate,
            weight_decay=params.train.weight_decay,
            fused=True,
        )
        made_of = files.fingerprint(
            FORMAT, _recipe(params), self.weights, self.data.fingerprint, self.validation.fingerprint
        )
        self.state = files.store() / "train" / made_of
        self.progress = checkpoint.load(self.state, self.model, self.optimizer)
        if self.progress.loader is not None:
            self.loader.load_state_dict(self.progress.loader)
        self.steps = len(self.loader) * params.train.epochs  # of the whole schedule
        self.network: nn.Module = self.model
        if here.world > 1:
            self.network = DistributedDataParallel(self.model)

    def finished(self) -> bool:
        """Tell whether all epochs are done, or too many have passed without a better validation PLCC."""
        recipe = self.params.train
        return self.loader.epoch >= recipe.epochs or self.progress.stale >= recipe.patience

    def epoch(self) -> dict[str, float]:
        """Train the next epoch, validate, save the state, and return the epoch's metrics."""
        progress, epoch = self.progress, self.loader.epoch
        loss, rate = self._train()
        labels = torch.from_numpy(self.validation.labels)
        recipe = self.params.train
        stars = predict_split(self.model, self.validation, self.here, self.params)
        unweighted = weighted_huber(
            torch.from_numpy(stars), labels, torch.ones_like(labels), recipe.huber_delta, len(labels)
        )
        metrics = {
            "train/loss": loss,
            "train/learning_rate": rate,
            "validation/loss": float(unweighted),
            # not clamped: a first epoch that still predicts under 1 star would be a constant
            "validation/plcc": plcc(stars, self.validation.labels),
        }
        better = progress.best is None or metrics["validation/plcc"] > progress.best
        if better:
            progress.best, progress.best_epoch = metrics["validation/plcc"], epoch
        progress.stale = 0 if better else progress.stale + 1
        progress.history = [*progress.history, metrics]
        progress.loader = self.loader.state_dict()
        if self.here.rank == 0:
            checkpoint.save(self.state, self.model, self.optimizer, progress)
        self.here.wait()
        return metrics

    def _train(self) -> tuple[float, float]:
        """Take the steps of an epoch; return the mean weighted loss of its samples and the last learning rate."""
        self.network.train()
        loader, epoch = self.loader, self.loader.epoch
        total, rate = 0.0, 0.0
        shown = bar(loader, f"epoch {epoch + 1}", len(loader)) if self.here.rank == 0 else loader
        for batch in shown:
            step = loader.step - 1  # the loader counts the batch as taken
            loss, rate = self._step(epoch, step, batch, done=epoch * len(loader) + step)
            total += loss * batch.global_size
        # each rank saw other samples in its last step, so the running statistics differ until they are shared
        self.here.share(self.model.buffers())
        return math.fsum(self.here.gather(total)) / len(self.data), rate

    def _step(self, epoch: int, step: int, batch: Batch, done: int) -> tuple[float, float]:
        """Take one step; return this rank's share of the global batch's loss, and the learning rate."""
        recipe, here = self.params.train, self.here
        rate = recipe.learning_rate * schedule(done, self.steps, recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed_of(recipe.seed, epoch, step, here.rank))  # dropout, the same after a resume
        weights = torch.from_numpy(sample_weights(counts_of(batch, self.weights), self.weights))
        stars = self.network(*to_device(batch, here.device))
        label, weight = batch.label.to(here.device), weights.to(here.device)
        loss = weighted_huber(stars, label, weight, recipe.huber_delta, batch.global_size)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * here.world).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over ranks; we need the sum
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        if not torch.isfinite(norm):  # the same on every rank, so that all stop together
            raise UserError(
                f"the gradient of step {step + 1} in epoch {epoch + 1} is {float(norm)} (loss {float(loss.detach())}); "
                f"lower train.learning_rate, which is {recipe.learning_rate:g}"
            )
        self.optimizer.step()
        return float(loss.detach()), rate

    def _loader(self) -> Loader:
        recipe, here = self.params.train, self.here
        return Loader(
            self.data,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            rank=here.rank,
            world=here.world,
            workers=self.params.stream.workers,
            pool=recipe.length_pool,
            damaged_share=self.params.stream.damaged_share,
        )


def train(
    params: Params,
    shards: str | Path = Path("data/shards"),
    weights: Path = Path("data/weights.json"),
    out: Path = Path("models"),
    results: Path = Path("results/train"),
) -> list[dict[str, float]]:
    """Train, write the best and the last model to `out` and the curves to `results`, and return each epoch's metrics.

    Run it in one process, or in each process of torchrun.

    Raises:
        UserError: shards or weights are absent, an encoder cannot be loaded, or the loss stops being finite.

    Source: reference section 1 (training).
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = False  # fp32, as the paper trains
    with ranks() as here:
        trainer = Trainer(params, shards, weights, here)
        progress = trainer.progress
        if params.source.kind == "demo":
            log.warning("demo data: the numbers of this training are about made products")
        if progress.history:
            log.info("an interrupted training goes on after epoch %d", trainer.loader.epoch)
        while not trainer.finished():
            metrics = trainer.epoch()
            if here.rank == 0:
                log.info(
                    "epoch %d of %d: %s  padding %.1f %%  images damaged %d",
                    trainer.loader.epoch,
                    params.train.epochs,
                    "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
                    100 * trainer.loader.padding,
                    len(trainer.loader.damaged),
                )
        if here.rank == 0:
            _publish(trainer.state, progress, params.source.kind, out, results)
        here.wait()
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


def seed_of(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all the numbers."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def _recipe(params: Params) -> list[Any]:
    """Return what the losses of a training depend on, apart from the data."""
    folder, path = Path(params.model.text.name), Path(params.model.image.weights)
    contents = [
        files.sha256(file) for file in (folder / WEIGHTS, path, Path(params.model.text.weights)) if file.is_file()
    ]
    return [params.model, params.images.size, params.text, params.train, contents]


def _publish(state: Path, progress: checkpoint.Progress, source: str, out: Path, results: Path) -> None:
    """Put models and curves where DVC looks for them, then drop the state."""
    with files.folder(out) as partial:
        for name in ("best", "last"):
            shutil.copytree(state / name, partial / name)
    with Live(dir=str(results), dvcyaml=None, save_dvc_exp=False, report=None) as live:
        for metrics in progress.history:
            for name in sorted(metrics):  # the order that a resumed training reads back
                live.log_metric(name, metrics[name])
            live.next_step()
        live.summary["source"] = source
        live.summary["best"] = {"epoch": progress.best_epoch + 1, "validation_plcc": progress.best}
    shutil.rmtree(state)
