"""Measure the stream, compared with webdataset, mosaicml-streaming and litData on the same samples.

    make bench-stream                              # or, in an environment with benchmarks/requirements-stream.txt:
    python -m benchmarks.stream [read] [busy] [http] [write] [growth] [--samples 16000] [--repeats 5]

Input: the corpus (EFFIMINI_CORPUS, or ../shared/corpus). Output: tables, and every measurement in
build/bench-stream/results.json. Guarantees: each measurement has a separate process; repeats are interleaved
(A B C A B C); every side gives batches of 64 that are ready for the model; all files are in the page cache.

"As documented" follows a peer's own documentation: decode with Pillow and tokenize in the collate function with the
encoder's fast tokenizer; images are float32 for webdataset and mosaicml-streaming, which document `to_tensor`, and
uint8 or float32 for litData, which documents both. "Same codec" uses simplejpeg and stored token ids, so that only the
readers are compared. Rates are of the batches after the first; the time to the first batch is shown separately and
includes opening the data but not imports.

"Busy" reads beside two processes that use all the time they get. Where Linux shares the processors between sessions
(sched_autogroup_enabled), a second thread gets nothing from processes in sessions of their own, so threads that only
hash, without the interpreter lock, show what two threads can get.
"""

# ruff: noqa: PLC0415 -- each side imports only its own packages, so that the others do not pay for them

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

import effimini.torchvision_shim  # noqa: F401 -- must come before what imports torchvision

# isort: split
import psutil
import torch
from msgspec.structs import replace
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import stream_data as data
from benchmarks.hogs import hogs
from benchmarks.tables import median_range, table
from shards import manifest

BATCH, WORKERS = 64, (1, 2)
TAIL = 1024  # samples at the end of an epoch that are not read, because the workers of some sides have ended by then
SLOW = 4096  # samples read by a side as documented, which takes eight times as long per sample
LATENCY = 0.02  # seconds before the HTTP server responds
HOGS = 2  # processes beside the reader
BESIDE = {"nothing": None, "two processes in the same session": False, "two processes in sessions of their own": True}
GROWTH = (10**4, 10**5, 10**6, 10**7)  # samples
VERSIONS = (
    "webdataset",
    "mosaicml-streaming",
    "litdata",
    "torch",
    "transformers",
    "tokenizers",
    "pillow",
    "simplejpeg",
)


class Batch(NamedTuple):
    """A batch of a peer; ours has these fields and more."""

    images: torch.Tensor  # [B, 3, 224, 224], uint8, or float32 if documented so
    tokens: torch.Tensor  # int64 [B, T]
    mask: torch.Tensor  # int64 [B, T]
    label: torch.Tensor  # float32 [B]
    count: torch.Tensor  # int64 [B]


class Side(NamedTuple):
    """One of the compared readers."""

    modules: tuple[str, ...]  # imported before the clock starts
    open: Callable[[str, int, int], Iterable[Any]]  # folder or URL, number of samples, workers
    slow: bool = False


def pixels(jpegs: Sequence[Any]) -> torch.Tensor:
    """Decode with simplejpeg: uint8 [B, 3, 224, 224], channels last in memory."""
    out = np.empty((len(jpegs), data.SIZE, data.SIZE, 3), np.uint8)
    for row, jpeg in zip(out, jpegs, strict=True):
        simplejpeg.decode_jpeg(jpeg, "RGB", buffer=row)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def rest(samples: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels and counts."""
    return torch.tensor([s["label"] for s in samples]), torch.tensor([s["count"] for s in samples])


def same_codec(samples: Sequence[dict[str, Any]]) -> Batch:
    """Collate samples of JPEG bytes and token ids."""
    tokens = np.zeros((len(samples), max(len(s["tokens"]) for s in samples)), np.int64)
    mask = np.zeros_like(tokens)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample["tokens"])] = sample["tokens"]
        mask[row, : len(sample["tokens"])] = 1
    images = pixels([s["image"] for s in samples])
    return Batch(images, torch.from_numpy(tokens), torch.from_numpy(mask), *rest(samples))


def as_documented() -> Callable[[Sequence[dict[str, Any]]], Batch]:
    """Return a collate of samples of image tensors and text, with the encoder's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.minilm())

    def collate(samples: Sequence[dict[str, Any]]) -> Batch:
        texts = [s["text"] for s in samples]
        found = tokenizer(texts, padding=True, truncation=True, max_length=data.MAX_TOKENS, return_tensors="pt")
        images = torch.stack([s["image"] for s in samples])
        return Batch(images, found["input_ids"], found["attention_mask"], *rest(samples))

    return collate


def ours(place: str, samples: int, workers: int) -> Iterable[Any]:
    """EffiMini."""
    from shards.loader import Loader
    from shards.stream import ShardDataset

    dataset = ShardDataset(f"{place}/shards", [data.CATEGORY], "train")
    return Loader(dataset, batch_size=BATCH, seed=0, workers=workers)


def webdataset(place: str, samples: int, workers: int, *, lean: bool) -> Iterable[Any]:
    """Webdataset, as in its README: shuffle, decode, to_tuple, map, batched, WebLoader."""
    import webdataset as wds
    from torchvision.transforms.functional import to_tensor

    folder = "webdataset-lean" if lean else "webdataset"
    urls = f"{place}/{folder}/{{000000..{-(-samples // data.SHARD) - 1:06d}}}.tar"
    dataset = wds.WebDataset(urls, shardshuffle=100).shuffle(1000)
    if lean:
        dataset = dataset.to_tuple("jpg", "json").map(lambda pair: {"image": pair[0], **json.loads(pair[1])})
        dataset = dataset.batched(BATCH, collation_fn=same_codec)
    else:
        dataset = dataset.decode("pil").to_tuple("jpg", "json")
        dataset = dataset.map(lambda pair: {"image": to_tensor(pair[0]), **pair[1]})
        dataset = dataset.batched(BATCH, collation_fn=as_documented())
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers)


def mosaicml(place: str, samples: int, workers: int, *, lean: bool) -> Iterable[Any]:
    """mosaicml-streaming, as in its README and its vision datasets: jpeg column, to_tensor, its DataLoader."""
    from streaming import StreamingDataLoader, StreamingDataset
    from torchvision.transforms.functional import to_tensor

    class Pictures(StreamingDataset):
        def __getitem__(self, at: int) -> dict[str, Any]:
            sample = super().__getitem__(at)
            return {**sample, "image": to_tensor(sample["image"])}

    folder = f"{place}/{'mosaicml-lean' if lean else 'mosaicml'}/mds"
    dataset = (StreamingDataset if lean else Pictures)(local=folder, shuffle=True, batch_size=BATCH)
    collate = same_codec if lean else as_documented()
    return StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate)


def litdata(place: str, samples: int, workers: int, *, lean: bool, floats: bool = False) -> Iterable[Any]:
    """LitData, as in its README: StreamingDataset with shuffle, its DataLoader, images as tensors (`floats`: float32).

    It decodes with torchvision. If torchvision's decoder does not load, as with a CPU-only torch from PyPI, Pillow
    decodes, as litData does for images with EXIF.
    """
    import litdata as ld
    from litdata.streaming.serializers import ImageSerializer
    from torchvision.transforms.v2.functional import to_dtype

    class Pillow(ImageSerializer):
        def deserialize(self, content: bytes) -> torch.Tensor:
            picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            return torch.from_numpy(picture).permute(2, 0, 1).contiguous()

    def to_floats(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "image": to_dtype(sample["image"], torch.float32, scale=True)}

    own = {} if lean or torchvision_decodes() else {"image": Pillow()}
    folder = f"{place}/{'litdata-lean' if lean else 'litdata'}"
    dataset = ld.StreamingDataset(folder, shuffle=True, serializers=own, transform=to_floats if floats else None)
    collate = same_codec if lean else as_documented()
    return ld.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate)


def torchvision_decodes() -> bool:
    """Return whether torchvision's compiled decoders load."""
    import torchvision.io  # noqa: F401 -- it declares the operators

    return hasattr(torch.ops.image, "decode_jpeg")


class _Decoding(Dataset[torch.Tensor]):
    """The upper limit: batches of JPEGs in memory, only decoded with simplejpeg."""

    def __init__(self, samples: int) -> None:
        jpegs = [path.read_bytes() for path in data.posters()]
        self._jpegs = [jpegs[i % len(jpegs)] for i in range(samples)]

    def __len__(self) -> int:
        return len(self._jpegs) // BATCH

    def __getitem__(self, step: int) -> torch.Tensor:
        return pixels(self._jpegs[step * BATCH : (step + 1) * BATCH])


def torch_loader(place: str, samples: int, workers: int) -> Iterable[Any]:
    """Torch's DataLoader, only decoding."""
    return DataLoader(_Decoding(samples), batch_size=None, num_workers=workers)


def ceiling(place: str, samples: int, workers: int) -> Iterable[Any]:
    """Threads as in our loader, only decoding."""
    from shards.prefetch import prefetch

    decoding = _Decoding(samples)
    return prefetch([decoding.__getitem__] * workers, range(len(decoding)))


def hashing(place: str, samples: int, workers: int) -> Iterable[Any]:
    """Threads that do not need the interpreter lock; a batch takes about as long as its decoding."""
    from shards.prefetch import prefetch

    content, images = bytes(20_000_000), torch.zeros((BATCH, 3, data.SIZE, data.SIZE), dtype=torch.uint8)

    def work(_: int) -> torch.Tensor:
        hashlib.sha256(content).digest()
        return images

    return prefetch([work] * workers, range(samples // BATCH))


_TEXT = ("transformers", "torchvision.transforms.functional")
_LITDATA = ("litdata", "torchvision.transforms.v2.functional")
_OURS, _TORCH, _CEILING = "EffiMini", "only decoding, torch's DataLoader", "only decoding, threads (upper limit)"
_HASHING = "only hashing, threads"
SIDES = {
    _OURS: Side(("shards.loader",), ours),
    "webdataset, as documented": Side(("webdataset", *_TEXT), partial(webdataset, lean=False), slow=True),
    "mosaicml-streaming, as documented": Side(("streaming", *_TEXT), partial(mosaicml, lean=False), slow=True),
    "litData, as documented": Side(_LITDATA + _TEXT, partial(litdata, lean=False), slow=True),
    "litData, as documented, float32": Side(_LITDATA + _TEXT, partial(litdata, lean=False, floats=True), slow=True),
    "webdataset, same codec": Side(("webdataset",), partial(webdataset, lean=True)),
    "mosaicml-streaming, same codec": Side(("streaming",), partial(mosaicml, lean=True)),
    "litData, same codec": Side(_LITDATA, partial(litdata, lean=True)),
    _TORCH: Side((), torch_loader),
    _CEILING: Side(("shards.prefetch",), ceiling),
    _HASHING: Side(("shards.prefetch",), hashing),
}
READERS = [side for side in SIDES if side != _HASHING]
REMOTE = (_OURS, "webdataset, as documented", "webdataset, same codec")  # the others do not support plain HTTP
WRITERS = {  # modules imported before the clock starts, and the writer
    "tarfile: tars": ((), data.write_tarfile),
    "EffiMini: tars": ((), data.write_tars),
    "EffiMini: tars, indexes with token ids, sha256": ((), data.write_shards),
    "webdataset: ShardWriter": (("webdataset",), data.write_webdataset),
    "mosaicml-streaming: MDSWriter": (("streaming",), data.write_mosaicml),
    "litData: optimize, including the start of its process": (("litdata",), data.write_litdata),
}


def measure_busy(apart: bool | None, **given: Any) -> dict[str, float]:
    """Return `measure_read` beside `HOGS` busy processes, in sessions of their own if `apart`; None runs none."""
    with hogs(0 if apart is None else HOGS, apart=bool(apart)):
        return measure_read(**given)


def measure_read(side: str, place: str, samples: int, stop: int, workers: int) -> dict[str, float]:
    """Read `stop` samples at `place`; return rates (samples/s), the time to the first batch (s) and memory (MB)."""
    for module in SIDES[side].modules:
        import_module(module)
    before = _anonymous("self")
    start = time.perf_counter()
    batches = iter(SIDES[side].open(place, samples, workers))
    seen = first = _size(side, next(batches))
    first_at = time.perf_counter()
    while seen < stop:
        seen += _size(side, next(batches))
    end = time.perf_counter()
    return {
        "rate": (seen - first) / (end - first_at),
        "whole": seen / (end - start),
        "first": first_at - start,
        "memory": _worker_memory(before, workers),
    }


def _size(side: str, batch: Any) -> int:
    """Check that a batch is ready for the model and return its size."""
    only_images = side in {_TORCH, _CEILING, _HASHING}
    images = batch if only_images else batch.images
    assert images.shape[1:] == (3, data.SIZE, data.SIZE), images.shape
    if not only_images:
        assert batch.tokens.shape == batch.mask.shape, (batch.tokens.shape, batch.mask.shape)
        assert batch.tokens.dtype == torch.int64, batch.tokens.dtype
        assert len(batch.label) == len(batch.tokens) == len(images), (len(batch.label), len(batch.tokens))
    return len(images)


def _worker_memory(before: int, workers: int) -> float:
    """Return the memory per worker in MB: the mean of worker processes, or the growth of this process per thread."""
    processes = [_anonymous(str(worker.pid)) for worker in multiprocessing.active_children()]
    used = processes or [_anonymous("self") - before]
    return sum(used) / (len(processes) or workers) / 1e6


def _anonymous(process: str) -> int:
    """Return the anonymous memory of a process in bytes; pages of mapped files belong to the page cache."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Anonymous:")).split()[1])


def measure_write(writer: str, samples: int) -> dict[str, float]:
    """Write samples; return the rate in MB/s of JPEGs and texts."""
    modules, write = WRITERS[writer]
    for module in modules:
        import_module(module)
    given = data.samples(samples)
    size = sum(len(s.jpeg) + len(s.text.encode()) for s in given)
    with tempfile.TemporaryDirectory(dir=data.BUILD) as folder:
        start = time.perf_counter()
        write(given, Path(folder))
        return {"rate": size / (time.perf_counter() - start) / 1e6}


def measure_growth(place: str, samples: int) -> dict[str, float]:
    """Open `samples` samples and read a batch; return the times (s) and the memory of process and worker (MB)."""
    from shards.loader import Loader
    from shards.stream import ShardDataset

    before, anonymous = psutil.Process().memory_info().rss, _anonymous("self")
    start = time.perf_counter()
    dataset = ShardDataset(place, [data.CATEGORY], "train")
    opened = time.perf_counter()
    batches = iter(Loader(dataset, batch_size=BATCH, seed=0, workers=1))
    next(batches)
    first = time.perf_counter()
    assert len(dataset) == samples, len(dataset)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "open": opened - start,
        "first": first - start,
        "growth": (int(peak.split()[1]) * 1024 - before) / 1e6,
        "memory": _worker_memory(anonymous, 1),
    }


class _SlowHandler(SimpleHTTPRequestHandler):
    """Responds after `LATENCY`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        time.sleep(LATENCY)
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def serve(place: str) -> None:
    """Serve a folder on loopback until terminated, and print the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_SlowHandler, directory=place)) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


@contextmanager
def server(place: Path) -> Iterator[str]:
    """Run `serve` in a separate process and yield the URL."""
    with subprocess.Popen([*_SELF, "serve", json.dumps({"place": str(place)})], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


_SELF = (sys.executable, "-m", "benchmarks.stream", "--job")
JOBS = {"read": measure_read, "busy": measure_busy, "write": measure_write, "growth": measure_growth, "serve": serve}


def measured(job: str, **given: Any) -> dict[str, float]:
    """Run one measurement in a new process with an empty local store."""
    print(job, *given.values(), file=sys.stderr, end=" ", flush=True)
    with tempfile.TemporaryDirectory(dir=data.BUILD) as store:
        environment = os.environ | {"EFFIMINI_STORE": store, "HF_HUB_OFFLINE": "1"}
        words = [*_SELF, job, json.dumps(given)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job} {given} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print({name: round(value, 3) for name, value in found.items()}, file=sys.stderr)
    return found


def interleaved(jobs: dict[Any, dict[str, Any]], repeats: int) -> dict[Any, dict[str, list[float]]]:
    """Run each measurement `repeats` times, interleaved, and return the figures by job and name."""
    rounds = [{name: measured(**job) for name, job in jobs.items()} for _ in range(repeats)]
    return {name: {figure: [r[name][figure] for r in rounds] for figure in rounds[0][name]} for name in jobs}


def read(place: Path, samples: int, repeats: int) -> Any:
    """Compare the readers on local files."""
    jobs = {
        (side, workers): {
            "job": "read",
            "side": side,
            "place": str(place),
            "samples": samples,
            "stop": min(samples - TAIL, SLOW) if SIDES[side].slow else samples - TAIL,
            "workers": workers,
        }
        for workers in WORKERS
        for side in READERS
    }
    found = interleaved(jobs, repeats)
    for workers in WORKERS:
        by_side = {side: found[side, workers] for side in READERS}
        rate = {side: statistics.median(figures["rate"]) for side, figures in by_side.items()}
        table(
            f"Reading, {workers} loader worker{'s' * (workers > 1)}: median of {repeats} (minimum to maximum)",
            ("side", "samples/s", "EffiMini is", "of the upper limit", "first batch, s", "MB per worker"),
            [
                (
                    side,
                    median_range(figures["rate"]),
                    f"{rate[_OURS] / rate[side]:.2f} x",
                    f"{rate[side] / rate[_CEILING]:.0%}",
                    median_range(figures["first"], ".2f"),
                    median_range(figures["memory"]),
                )
                for side, figures in by_side.items()
            ],
        )
    return {f"{side}, {workers}": figures for (side, workers), figures in found.items()}


def busy(place: Path, samples: int, repeats: int) -> Any:
    """Compare one and two workers on a quiet machine and beside other processes."""
    sides = (_OURS, _CEILING, _HASHING)
    jobs = {
        (beside, side, workers): {
            "job": "busy",
            "apart": apart,
            "side": side,
            "place": str(place),
            "samples": samples,
            "stop": min(samples - TAIL, SLOW),
            "workers": workers,
        }
        for beside, apart in BESIDE.items()
        for side in sides
        for workers in WORKERS
    }
    found = interleaved(jobs, repeats)
    rate = {key: figures["rate"] for key, figures in found.items()}
    rows = []
    for beside in BESIDE:
        for side in sides:
            one, two = (rate[beside, side, workers] for workers in WORKERS)
            gain = [b / a for a, b in zip(one, two, strict=True)]
            rows.append((beside, side, median_range(one), median_range(two), median_range(gain, ".2f")))
    table(
        f"Reading beside other processes: median of {repeats} (minimum to maximum)",
        ("beside", "side", "samples/s, 1 worker", "2 workers", "2 workers are, times 1"),
        rows,
    )
    return {", ".join(map(str, key)): figures for key, figures in found.items()}


def http(place: Path, samples: int, repeats: int) -> Any:
    """Compare the readers over HTTP, ours with an empty cache, on a whole epoch including opening."""
    with server(place) as url:
        jobs = {
            (side, workers): {
                "job": "read",
                "side": side,
                "place": url,
                "samples": samples,
                "stop": samples - TAIL,
                "workers": workers,
            }
            for workers in WORKERS
            for side in REMOTE
        }
        found = interleaved(jobs, repeats)
    table(
        f"Over HTTP with {LATENCY * 1000:.0f} ms before each response, including opening: median of {repeats} "
        "(minimum to maximum). mosaicml-streaming and litData do not support plain HTTP.",
        ("side", "workers", "samples/s", "EffiMini is", "first batch, s"),
        [
            (
                side,
                str(workers),
                median_range(figures["whole"]),
                f"{statistics.median(found[_OURS, workers]['whole']) / statistics.median(figures['whole']):.2f} x",
                median_range(figures["first"], ".2f"),
            )
            for (side, workers), figures in found.items()
        ],
    )
    return {f"{side}, {workers}": figures for (side, workers), figures in found.items()}


def write(place: Path, samples: int, repeats: int) -> Any:
    """Compare the writers."""
    found = interleaved({name: {"job": "write", "writer": name, "samples": samples} for name in WRITERS}, repeats)
    rows = [(name, median_range(figures["rate"], ".0f")) for name, figures in found.items()]
    table(f"Writing, MB/s of JPEG and text: median of {repeats} (minimum to maximum)", ("writer", "MB/s"), rows)
    return found


def growth(place: Path, samples: int, repeats: int) -> Any:
    """Measure how opening scales with the index: one real shard of 1,000 samples, linked under many names."""
    with tempfile.TemporaryDirectory(dir=data.BUILD) as links:
        jobs = {}
        for count in GROWTH:
            out = Path(links) / str(count)
            link_shards(place / "shards" / data.CATEGORY, out / data.CATEGORY, count // data.SHARD)
            jobs[count] = {"job": "growth", "place": str(out), "samples": count}
        found = interleaved(jobs, repeats)
    table(
        f"Scaling of EffiMini with the index, one worker: median of {repeats} (minimum to maximum)",
        ("samples", "opened, s", "first batch, s", "peak growth, MB", "MB per worker"),
        [
            (
                f"{count:,}",
                median_range(figures["open"], ".2f"),
                median_range(figures["first"], ".2f"),
                median_range(figures["growth"]),
                median_range(figures["memory"]),
            )
            for count, figures in found.items()
        ],
    )
    return found


def link_shards(real: Path, out: Path, shards: int) -> None:
    """Fill a folder with links to the first shard of another folder, and write their manifest."""
    about = manifest.parse_manifest((real / manifest.MANIFEST_FILE).read_bytes(), str(real))
    first = about.shards[0]
    out.mkdir(parents=True)
    lines = [replace(first, name=f"train-00-{number:05d}.tar") for number in range(shards)]
    for line in lines:
        (out / line.name).hardlink_to(real / first.name)
        (out / line.index).hardlink_to(real / first.index)
    data.write_manifest(out, lines, about.tokens.tokenizer)


PARTS = {"read": read, "busy": busy, "http": http, "write": write, "growth": growth}


def about(samples: int) -> str:
    """Return a description of the samples, the versions and the machine."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    decoder = "torchvision" if torchvision_decodes() else "Pillow, since torchvision's decoder does not load"
    given = data.samples(samples)
    return (
        f"{samples:,} samples: JPEGs of {data.SIZE} px and {statistics.mean(len(s.jpeg) for s in given) / 1e3:.1f} kB, "
        f"texts of {statistics.mean(len(s.ids) for s in given):.0f} tokens on average. "
        f"EffiMini {commit.stdout.strip()}, {versions}; litData decodes with {decoder}. "
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, {platform.machine()}."
    )


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser("python -m benchmarks.stream", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--samples", type=int, default=16_000)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    if chosen.samples < 2 * TAIL:
        parser.error(f"--samples {chosen.samples} must be at least {2 * TAIL}")
    missing = [module for module in ("webdataset", "streaming", "litdata", "psutil") if find_spec(module) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed; see the commands in benchmarks/requirements-stream.txt")
    place = data.write_all(chosen.samples)
    print(about(chosen.samples))
    results = {name: PARTS[name](place, chosen.samples, chosen.repeats) for name in chosen.parts or PARTS}
    (data.BUILD / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        torch.set_num_threads(1)
        name, given = sys.argv[2:]
        print("\n" + json.dumps(JOBS[name](**json.loads(given))))
    else:
        main()
