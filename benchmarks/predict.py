"""Measure prediction on a CPU: torch in float32, torch with channels-last weights, onnxruntime, torch in bfloat16.

    make bench-predict                # or: python -m benchmarks.predict [--repeats 5]

Input: none; the model is the paper's architecture (EfficientNet-B0, MiniLM-L6, a head) with random weights, images of
224 px and texts of 160 tokens. Output: a table, and each measurement in build/bench-predict/results.json. Guarantees:
each measurement has a separate process; repeats are interleaved (A B C A B C); all sides get the same arrays, with the
memory layout of `effimini predict`; loading the model, decoding and tokenizing are not measured; the largest difference
of a side's scores from those of torch in float32 is shown. bfloat16 is skipped on CPUs without bfloat16 instructions,
where it is ten times slower.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import effimini.torchvision_shim  # noqa: F401 -- must come before what imports torchvision

# isort: split
import numpy as np
import torch

from benchmarks.hardware import multiplies_bfloat16
from benchmarks.tables import median_range
from effimini.export import Array, Graph, export
from effimini.model import EffiMini, build
from effimini.precheck import GRAPH
from prep.core import memory
from prep.core.params import EncoderParams, load_params

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build/bench-predict"
SIZE, TOKENS, BATCH = 224, 160, 32
MIN_SECONDS = 5.0  # total duration of the timed calls of a measurement
VERSIONS = ("torch", "onnxruntime", "onnx", "onnxscript", "transformers", "timm", "numpy")

Score = Callable[..., Array]


def save_model(folder: Path) -> None:
    """Save the model to `folder`/torch and export it to `folder`/onnx."""
    params = load_params(ROOT / "params/paper.yaml")
    text = EncoderParams(name=str(ROOT / "effimini/minilm"), weights="random")
    params = dataclasses.replace(
        params,
        model=dataclasses.replace(params.model, text=text),
        images=dataclasses.replace(params.images, resolution=SIZE),
        text=dataclasses.replace(params.text, max_tokens=TOKENS),
    )
    torch.manual_seed(0)
    build(params, random=True).save_pretrained(folder / "torch")
    export(folder / "torch", folder / "onnx")


def inputs() -> tuple[Array, Array, Array, Array]:
    """Return a batch as arrays; every tenth item has no image."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)
    ids = random.integers(5, 30_000, (BATCH, TOKENS), np.int64)
    return pixels.transpose(0, 3, 1, 2), ids, np.ones_like(ids), np.arange(BATCH) % 10 != 9


def in_torch(folder: Path, *, channels_last: bool = False, autocast: bool = False) -> Score:
    """Torch; without options, as in `effimini predict` with a model folder."""
    network = EffiMini.from_pretrained(folder / "torch")
    memory.keep_freed()
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    network.autocast = autocast

    @torch.inference_mode()
    def score(*arrays: Array) -> Array:
        found: Array = network(*(torch.from_numpy(array) for array in arrays)).numpy()
        return found

    return score


def in_onnxruntime(folder: Path) -> Score:
    """The exported ONNX graph, as in `effimini predict`."""
    return Graph(folder / "onnx" / GRAPH, SIZE).score


_REFERENCE = "torch, float32"
SIDES: dict[str, Callable[[Path], Score]] = {
    _REFERENCE: in_torch,
    "torch, float32, channels last": partial(in_torch, channels_last=True),
    "onnxruntime, float32": in_onnxruntime,
}
if multiplies_bfloat16():
    SIDES["torch, bfloat16, channels last"] = partial(in_torch, channels_last=True, autocast=True)


def seconds(score: Score, arrays: Sequence[Array]) -> float:
    """Return the median duration of a call, repeated for `MIN_SECONDS` after a warm-up call."""
    score(*arrays)
    found: list[float] = []
    while sum(found) < MIN_SECONDS:
        start = time.perf_counter()
        score(*arrays)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Return samples/s for batches, ms for one item, and the scores of the batch."""
    score, batch = SIDES[side](folder), inputs()
    return {
        "rate": BATCH / seconds(score, batch),
        "latency": 1000 * seconds(score, [array[:1] for array in batch]),
        "scores": score(*batch).tolist(),
    }


def measured(side: str, folder: Path) -> dict[str, Any]:
    """Run one measurement in a new process."""
    words = [sys.executable, "-m", "benchmarks.predict", "--job", side, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {found['rate']:.1f} samples/s, {found['latency']:.1f} ms", file=sys.stderr, flush=True)
    return found


def show(found: dict[str, list[dict[str, Any]]], repeats: int) -> None:
    """Print the measurements as a Markdown table."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    print(
        f"EffiMini {commit.stdout.strip()}, {', '.join(f'{name} {version(name)}' for name in VERSIONS)}, Python "
        f"{platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}. Images of {SIZE} px, texts of "
        f"{TOKENS} tokens; median of {repeats} (minimum to maximum).\n"
    )
    print(f"| side | samples/s, batch {BATCH} | ms, one item | x {_REFERENCE} | max difference, stars |\n{'|---' * 5}|")
    rates = {side: [float(run["rate"]) for run in runs] for side, runs in found.items()}
    reference = np.array(found[_REFERENCE][0]["scores"])
    for side, runs in found.items():
        largest = max(float(np.abs(np.array(run["scores"]) - reference).max()) for run in runs)
        ratio = statistics.median(rates[side]) / statistics.median(rates[_REFERENCE])
        latency = median_range([float(run["latency"]) for run in runs], ".1f")
        print(f"| {side} | {median_range(rates[side], '.1f')} | {latency} | {ratio:.2f} | {largest:.1e} |")
    print(f"\nThe scores of {_REFERENCE} range from {reference.min():.3f} to {reference.max():.3f}.")


def main() -> None:
    """Measure all sides, interleaved."""
    parser = argparse.ArgumentParser("python -m benchmarks.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        save_model(Path(folder))
        rounds = [{side: measured(side, Path(folder)) for side in SIDES} for _ in range(repeats)]
    found = {side: [one[side] for one in rounds] for side in SIDES}
    show(found, repeats)
    (BUILD / "results.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
