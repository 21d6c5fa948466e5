"""What a training spent its time on, and what bounds it.

In: seconds by name, as `effimini.clock` counts them. Out: numbers for the metrics, and a sentence.
"""

import resource
import sys
from collections.abc import Mapping

import msgspec
import torch

from effimini.distributed import Distributed

FEATURES = "features"  # of frozen encoders, computed or read from the store
OF_STEPS = ("data", "forward", "backward", "optimizer")
WAITING = 0.1  # share of the steps' time from which waiting for data is said to bound a training


class Spent(msgspec.Struct, frozen=True):
    """What a training spent, of one rank: the content of results/train/time.json."""

    seconds: dict[str, float]  # by name
    shares: dict[str, float]  # of the steps' time, by name
    samples_per_second: float  # of the steps
    peak_memory: int  # bytes, on the GPU or of the process
    bound: str  # what to look at to make it faster


def time_profile(seconds: Mapping[str, float], samples: float, dist: Distributed) -> Spent:
    """Return what a training spent, of one rank.

    Args:
        seconds: by name.
        samples: trained on, over all epochs and ranks.
        dist: this rank.
    """
    steps = sum(seconds.get(name, 0.0) for name in OF_STEPS) or 1.0
    shares = {name: seconds.get(name, 0.0) / steps for name in OF_STEPS}
    on_gpu = dist.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    bound = f"the {device} in the {max(shares, key=lambda name: shares[name])} pass"
    if shares["data"] >= WAITING:
        bound = "waiting for data: raise stream.workers"
    elif max(shares, key=lambda name: shares[name]) == "optimizer":
        bound = f"the {device} in the optimizer: raise train.batch_size"
    if FEATURES in seconds:  # a step of the head alone takes less than a millisecond, whatever its size
        bound = "the encoders, once" if seconds[FEATURES] > steps else "the number of steps: raise train.batch_size"
    return Spent(dict(seconds), shares, samples / steps, peak, bound)


def describe(spent: Spent) -> str:
    """Return what `time_profile` gave as one line."""
    steps = ", ".join(f"{name} {share:.1%}" for name, share in spent.shares.items())
    others = ", ".join(f"{name} {value:.1f} s" for name, value in spent.seconds.items() if name not in OF_STEPS)
    return (
        f"{spent.samples_per_second:.1f} samples/s; of the steps {steps}; besides {others}; "
        f"{spent.peak_memory / 1e9:.2f} GB at most; bound by {spent.bound}"
    )


def _peak() -> int:
    """Return the largest memory this process had, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
