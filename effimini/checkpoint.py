"""The state of a training: everything needed to go on as if it had not stopped.

In: model, optimizer and progress after an epoch. Out: one folder, replaced as a whole (promise 7), with
``last/`` and ``best/`` (saved models), ``optimizer.pt`` and ``progress.json``. The loader's state is a few
values, because an epoch's order is a function of the seed, and there is no random state, because each step is
seeded by (seed, epoch, step, rank).
"""

import os
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file

from effimini.model import WEIGHTS, EffiMini
from prep import files


class Progress(msgspec.Struct, kw_only=True):
    """How far a training is."""

    loader: dict[str, Any] | None = None  # the loader's state
    best: float | None = None  # validation PLCC
    best_epoch: int = 0
    stale: int = 0  # epochs since the best one
    history: list[dict[str, float]] = []  # metrics of each finished epoch


def save(folder: Path, model: EffiMini, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write the state to `folder`; the last model becomes the best one when the last epoch is the best one."""
    with files.folder(folder) as partial:
        model.save_pretrained(partial / "last")
        link(partial / "last" if progress.stale == 0 else folder / "best", partial / "best")
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
        files.write_json(partial / "progress.json", progress)


def load(folder: Path, model: EffiMini, optimizer: torch.optim.Optimizer) -> Progress:
    """Put the state in `folder` into model and optimizer and return the progress; a fresh one if there is no state."""
    if not (folder / "progress.json").exists():
        return Progress()
    model.load_state_dict(load_file(folder / "last" / WEIGHTS))
    state: dict[str, Any] = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state)
    return msgspec.json.decode((folder / "progress.json").read_bytes(), type=Progress)


def link(source: Path, target: Path) -> None:
    """Give the files of a flat folder a second name below `target`; both folders are only ever replaced as a whole."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        os.link(file, target / file.name)
