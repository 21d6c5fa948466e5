"""The state of a training: everything needed to go on as if it had not stopped.

In: model, optimizer and progress after any step. Out: a folder a state, named by the steps done, with ``last/`` and
``best/`` (saved models), ``optimizer.pt`` and ``progress.json``. Guaranteed (promise 7): a state appears whole, and the
one before it goes only then, so a kill at any moment leaves one to go on from. The loader's state is a few values,
because an epoch's order is a function of the seed, and there is no random state, because each step is seeded by (seed,
epoch, step, rank).
"""

import os
import pickle
import shutil
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from effimini.model import WEIGHTS_FILE, EffiMini
from prep.core import files, writers
from prep.core.errors import UserError, first_sentence
from shards.loader import LoaderState

PROGRESS = "progress.json"


class Progress(msgspec.Struct, kw_only=True):
    """How far a training is."""

    loader: LoaderState | None = None
    steps: int = 0  # taken since the start
    loss: float = 0.0  # of the epoch at hand so far: the weighted loss, summed over its samples
    best: float | None = None  # validation PLCC
    best_epoch: int = 0
    stale: int = 0  # epochs since the best one
    history: list[dict[str, float]] = []  # metrics of each epoch trained and validated
    seconds: dict[str, float] = {}  # spent, by what on


def save_checkpoint(
    folder: Path, model: EffiMini, optimizer: torch.optim.Optimizer, progress: Progress, *, best: bool
) -> None:
    """Write a state below `folder`, and remove the ones before it.

    Args:
        folder: of one training's states.
        model: as it is.
        optimizer: of the model.
        progress: so far.
        best: whether the model is the best so far; if not, the best one of the state before is kept.

    Raises:
        UserError: the disk does not take it; the state before is still there.
    """
    before, path = newest_checkpoint(folder), folder / f"{progress.steps:09d}"
    try:
        with files.atomic_folder(path) as partial:
            model.save_pretrained(partial / "last")
            if best:
                link(partial / "last", partial / "best")
            elif before is not None and (before / "best").exists():
                link(before / "best", partial / "best")
            torch.save(optimizer.state_dict(), partial / "optimizer.pt")
            writers.write_json(partial / PROGRESS, progress)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save and safetensors have errors of their own
        kept = f"the state after step {int(before.name)} is kept" if before else "no state was saved before"
        raise UserError(
            f"the training's state cannot be written to {path} ({first_sentence(error)}); {kept}: make room on the "
            "disk and run the same command to go on"
        ) from error
    for other in sorted(folder.iterdir()):
        if other != path:
            shutil.rmtree(other)


def load_checkpoint(folder: Path, model: EffiMini, optimizer: torch.optim.Optimizer) -> Progress:
    """Put the newest state below `folder` into model and optimizer and return its progress; a fresh one without it.

    Raises:
        UserError: the state is damaged.
    """
    path = newest_checkpoint(folder)
    if path is None:
        return Progress()
    try:
        model.load_state_dict(load_file(path / "last" / WEIGHTS_FILE))
        optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True))
        return msgspec.json.decode((path / PROGRESS).read_bytes(), type=Progress)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(
            f"the training's state in {path} cannot be read ({first_sentence(error)}); remove {folder} to start anew"
        ) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the folder of the newest state below `folder`, None where there is none."""
    return max((path.parent for path in folder.glob(f"[0-9]*/{PROGRESS}")), default=None)


def link(source: Path, target: Path) -> None:
    """Give the files of a flat folder a second name below `target`; both folders are only ever replaced as a whole."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        os.link(file, target / file.name)
