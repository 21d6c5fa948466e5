"""The time profile of a training: where the time went, and what the bottleneck is.

Input: seconds by activity, as measured by `effimini.clock`. Output: the content of time.json, and a log line.
"""

import resource
import sys
from collections.abc import Mapping

import msgspec
import torch

from effimini.distributed import Distributed

FEATURES = "features"  # of frozen encoders, computed or read from the local store
OF_STEPS = ("data", "forward", "backward", "optimizer")
WAITING = 0.1  # fraction of the steps' time from which waiting for data counts as the bottleneck


class Spent(msgspec.Struct, frozen=True):
    """The time profile of one rank: the content of results/train/time.json."""

    seconds: dict[str, float]  # by activity
    shares: dict[str, float]  # fractions of the steps' time, by activity
    samples_per_second: float  # during the steps
    peak_memory: int  # bytes, on the GPU or of the process
    bound: str  # the bottleneck, and how to reduce it


def time_profile(seconds: Mapping[str, float], samples: float, dist: Distributed) -> Spent:
    """Return the time profile of one rank.

    Args:
        seconds: time by activity.
        samples: number of samples trained on, over all epochs and ranks.
        dist: this rank.
    """
    steps = sum(seconds.get(name, 0.0) for name in OF_STEPS) or 1.0
    shares = {name: seconds.get(name, 0.0) / steps for name in OF_STEPS}
    on_gpu = dist.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_memory()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    bound = f"the {device} in the {max(shares, key=lambda name: shares[name])} pass"
    if shares["data"] >= WAITING:
        bound = "waiting for data: raise stream.workers"
    elif max(shares, key=lambda name: shares[name]) == "optimizer":
        bound = f"the {device} in the optimizer: raise train.batch_size"
    if FEATURES in seconds:  # a step of only the head takes less than a millisecond at any batch size
        bound = "the encoders, run once" if seconds[FEATURES] > steps else "the number of steps: raise train.batch_size"
    return Spent(dict(seconds), shares, samples / steps, peak, bound)


def describe(spent: Spent) -> str:
    """Return a time profile as one line for the log."""
    steps = ", ".join(f"{name} {fraction:.1%}" for name, fraction in spent.shares.items())
    others = ", ".join(f"{name} {value:.1f} s" for name, value in spent.seconds.items() if name not in OF_STEPS)
    return (
        f"{spent.samples_per_second:.1f} samples/s; time of the steps: {steps}; other time: {others}; "
        f"peak memory {spent.peak_memory / 1e9:.2f} GB; bottleneck: {spent.bound}"
    )


def _peak_memory() -> int:
    """Return the peak memory of this process, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
