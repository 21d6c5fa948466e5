"""Checkpoints: everything needed to resume a training as if it had not been interrupted.

Input: model, optimizer and progress after any step. Output: one folder per checkpoint, named by the last completed
step (and a plus after validation, if there was one), with ``last/`` and ``best/`` (saved models), ``optimizer.pt``,
``progress.json`` and the sha256 of each. Guarantees: a checkpoint is written atomically, and the previous one is
removed only afterwards, so a kill at any moment leaves one to resume from; one that was changed on disk is refused.
The loader's state is small because the order of an epoch depends only on the seed. No random state is saved because
each step is seeded by (seed, epoch, step, rank).
"""

import logging
import pickle
import shutil
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from effimini.metrics import Stars
from effimini.model import WEIGHTS_FILE, EffiMini
from effimini.predictions import VALIDATION_FILE, write_predictions
from effimini.training_curve import TrainingCurve
from prep.core import files, writers
from prep.core.errors import UserError, first_sentence
from prep.core.formats import check_format
from shards.loader import LoaderState
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

FORMAT = 1  # increment it when an older reader would misread a checkpoint
NEEDS = "0.1.0"  # the first version of EffiMini that reads it
_READABLE = (FORMAT,)
PROGRESS = "progress.json"
HASHES = "sha256.json"  # of the other files, so that no damaged one is used


class Progress(msgspec.Struct, kw_only=True):
    """The progress of a training."""

    format: int = FORMAT
    needs: str = NEEDS  # the first version of EffiMini that reads it
    loader: LoaderState | None = None
    steps: int = 0  # the last completed one, counted from 1 through all epochs
    loss: float = 0.0  # weighted loss summed over the samples of the current epoch so far
    samples: int = 0  # of the current epoch so far
    trained: int = 0  # samples of the completed epochs
    best: float | None = None  # best validation PLCC
    best_epoch: int = 0
    stale: int = 0  # epochs since the best
    history: list[dict[str, float]] = []  # metrics of each completed epoch
    curve: TrainingCurve = msgspec.field(default_factory=TrainingCurve)
    seconds: dict[str, float] = {}  # time spent, by activity


def save_checkpoint(
    folder: Path,
    model: EffiMini,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    best: bool,
    validation: tuple[ShardDataset, Stars] | None = None,
) -> None:
    """Write a checkpoint to `folder`, and remove the earlier ones.

    Args:
        folder: the folder of this training's checkpoints.
        model: the model to save.
        optimizer: the optimizer to save.
        progress: the progress to save.
        best: whether the model is the best so far; if not, the best model of the previous checkpoint is kept.
        validation: the validation split and the stars of this model, stored beside it; None in the middle of an epoch.

    Raises:
        UserError: the checkpoint cannot be written, for example because the disk is full; the previous one is kept.
    """
    previous, path = newest_checkpoint(folder), folder / f"{progress.steps:09d}"
    if path == previous:  # as after validation: that one stays until this one is complete
        path = folder / f"{path.name}+"
    try:
        with files.atomic_folder(path) as partial:
            model.save_pretrained(partial / "last")
            if validation is not None:
                write_predictions(partial / "last" / VALIDATION_FILE, *validation)
            if best:
                link(partial / "last", partial / "best")
            elif previous is not None and (previous / "best").exists():
                link(previous / "best", partial / "best")
            torch.save(optimizer.state_dict(), partial / "optimizer.pt")
            writers.write_json(partial / PROGRESS, progress)
            writers.write_json(partial / HASHES, _hashes(partial))
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save and safetensors raise their own errors
        kept = f"the checkpoint of step {steps_of(previous)} is kept" if previous else "there is no earlier checkpoint"
        raise UserError(
            f"the checkpoint cannot be written to {path} ({first_sentence(error)}); {kept}: free disk space and run "
            "the same command to resume"
        ) from error
    for other in sorted(folder.iterdir()):
        if other != path and other.is_dir():
            shutil.rmtree(other)


def load_checkpoint(folder: Path, model: EffiMini, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the newest checkpoint in `folder` into model and optimizer, and return its progress; a new one if none.

    Raises:
        UserError: the checkpoint is damaged, or of a format that this version does not read.
    """
    path = newest_checkpoint(folder)
    if path is None:
        return Progress()
    try:
        _check_hashes(path)
        content = (path / PROGRESS).read_bytes()
        check_format(content, _READABLE, f"the checkpoint in {path}", f"remove {folder} to start again")
        model.load_state_dict(load_file(path / "last" / WEIGHTS_FILE))
        optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
        progress = msgspec.json.decode(content, type=Progress)
        progress.format, progress.needs = FORMAT, NEEDS  # of what it is written as next
        return progress
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the checkpoint in {path} cannot be read ({first_sentence(error)}); remove {folder} to start again"
        ) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the path of the newest checkpoint in `folder`, None if there is none."""
    return max((path for path in folder.glob("[0-9]*") if path.is_dir()), default=None)


def steps_of(path: Path) -> int:
    """Return the number of steps of a checkpoint."""
    return int(path.name.rstrip("+"))


def link(source: Path, target: Path) -> None:
    """Hard-link (or copy) the files of a flat folder into `target`; both are only ever replaced as a whole."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        files.link(file, target / file.name)


def _hashes(path: Path) -> dict[str, str]:
    """Return the sha256 of each file of a checkpoint."""
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name != HASHES)
    return {file.relative_to(path).as_posix(): files.sha256(file) for file in found}


def _check_hashes(path: Path) -> None:
    """Check each file of a checkpoint.

    Raises:
        ValueError: a file was changed, removed or added.
    """
    if not (path / HASHES).exists():
        log.warning("warning: the checkpoint in %s is of an older version, without checksums", path)
        return
    written = msgspec.json.decode((path / HASHES).read_bytes(), type=dict[str, str])
    found = _hashes(path)
    for name in sorted(written.keys() | found.keys()):
        if written.get(name) != found.get(name):
            raise ValueError(f"{name} has sha256 {found.get(name)}, expected {written.get(name)}")
