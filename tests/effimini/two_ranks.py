"""Run under torchrun: the gradients of one step on all ranks, and a whole training.

In: a pickled (parameters, data folder) and an output folder. Out: gradients.pt by rank 0, models
and results by train().
"""

import pickle
import sys
from pathlib import Path

import torch

from effimini.ranks import Ranks, ranks
from effimini.train import Trainer, train


def gradients(params: object, data: Path, here: Ranks) -> dict[str, torch.Tensor]:
    """Return the clipped gradients of the first step, batch normalisation in evaluation mode and without dropout."""
    trainer = Trainer(params, data / "shards", data / "weights.json", here)
    trainer.network.eval()
    trainer._step(0, 0, next(iter(trainer.loader)), done=1)
    named = trainer.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None}


if __name__ == "__main__":
    given, out = Path(sys.argv[1]), Path(sys.argv[2])
    params, data = pickle.loads(given.read_bytes())
    torch.set_num_threads(1)
    with ranks() as here:
        found = gradients(params, data, here)
        if here.rank == 0:
            torch.save(found, out / "gradients.pt")
        train(params, data / "shards", data / "weights.json", out / "models", out / "results/train")
