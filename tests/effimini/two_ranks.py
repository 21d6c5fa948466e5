"""Run under torchrun: the gradients of one step on all ranks, and a whole training.

Input: a pickled (parameters, data folder), an output folder, and the step after which rank 1 gets a SIGTERM, 0 for
none; with KILL after it, a single process gets a SIGKILL. Output: gradients.pt of rank 0, models and results of the
training.
"""

import os
import pickle
import signal
import sys
from pathlib import Path

import torch

from effimini import train as stage
from effimini.distributed import Distributed, init_distributed
from effimini.train import StepResult, Trainer, train
from prep.core.params import Params
from shards.stream import Batch


class Interrupted(Trainer):
    """A trainer whose process gets a SIGTERM while it computes a step; `after` counts from 1, 0 for never."""

    after = 0
    signal = signal.SIGTERM

    def step(self, epoch: int, step: int, batch: Batch) -> StepResult:
        result = super().step(epoch, step, batch)
        if self.progress.steps == self.after:
            os.kill(os.getpid(), self.signal)
        return result


def gradients(params: Params, data: Path, dist: Distributed) -> dict[str, torch.Tensor]:
    """Return the clipped gradients of the first step, batch normalisation in evaluation mode and without dropout."""
    trainer = Trainer(params, data / "shards", data / "weights.json", dist)
    trainer.network.eval()
    trainer.step(0, 0, next(iter(trainer.loader)))
    named = trainer.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


if __name__ == "__main__":
    given, out, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    params, data = pickle.loads(given.read_bytes())
    torch.set_num_threads(1)
    stage.Trainer = Interrupted
    with init_distributed() as dist:
        if sys.argv[4:] == ["KILL"]:
            Interrupted.after, Interrupted.signal = after, signal.SIGKILL
        else:
            Interrupted.after = after if dist.rank == 1 else 0
        if not after:
            found = gradients(params, data, dist)
            if dist.rank == 0:
                torch.save(found, out / "gradients.pt")
        train(params, data / "shards", data / "weights.json", out / "models", out / "results/train")
