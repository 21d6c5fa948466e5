"""Measure which near-duplicate pictures are found, and how the search for them scales.

    make bench-near-duplicates
    python -m benchmarks.near_duplicates [--pictures 300] [--rows 0.5 1 2 5] [--repeats 5]

Input: the corpus (EFFIMINI_CORPUS, or ../shared/corpus). Output: tables, and every measurement in
build/bench-near-duplicates/results.json. `--pictures 0` leaves out the pictures, `--rows` without numbers the scaling.

Pictures: labelled pairs of photos with nearly the same perceptual hash; and transformed copies of real pictures, which
are searched for among their originals as a stage would: the four nearest descriptors, then the pixels. A copy is a
candidate if its original is among the four, and found if the pixels are the same too. Originals that are said to be the
same as an earlier one are left out and counted.

Scaling: half of the vectors are indexed, and each of the other half searches for its four nearest. There are three
loads. `independent`: hashes of 64 bits, whose 16-bit pieces are drawn by the frequencies of real hashes. `repeated`:
real hashes with up to three flipped bits. `descriptors`: mixtures of two real pictures' descriptors with noise, half as
many mixtures as vectors. A hash is a vector of +-1, and neighbours are hashes that differ in at most 3 bits, or copies
of one mixture. Recall is of a random 2,000 queries against all vectors. Guarantees: each run has a separate process of
one thread; sizes are interleaved; memory is the peak of the process, its vectors included.
"""

import argparse
import csv
import io
import json
import os
import platform
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.stats import binomtest

from benchmarks.ingest import watched
from benchmarks.scale import line
from benchmarks.tables import median_range, table
from shards.images import pixels, similarity
from shards.images.pixels import Fit
from shards.nearest import NONE, NearestIndex, Vectors

BUILD = Path("build/bench-near-duplicates")
DESCRIPTORS = BUILD / f"descriptors-{similarity.FORMAT}.npy"
CORPUS = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus"))
SETS = {"electronics": "electronics/images/I", "films": "movies/images/I", "apparel": "lookalikes/images"}
STORED: tuple[tuple[int, Fit], ...] = ((224, "squash"), (224, "letterbox"), (128, "squash"), (128, "letterbox"))
HITS = ("candidates", "found", "wrong")
CANDIDATES, SAMPLE = 4, 2000
LOADS = ("independent", "repeated", "descriptors")
FIGURES = ("seconds", "cpu", "memory")
NOISE = 8.0  # standard deviation, levels; half of the pictures that are cropped by 3 % a side differ by less
FAR = {"independent": 3 * 4, "repeated": 3 * 4, "descriptors": 1.6 * similarity.DIMENSIONS * 2 * NOISE**2}

Hashes = npt.NDArray[np.uint64]


def _cropped(image: Image.Image, rng: random.Random, most: float, least: float = 0) -> Image.Image:
    left, top, right, bottom = (rng.uniform(least, most) for _ in range(4))
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def _padded(image: Image.Image, rng: random.Random, most: float, least: float = 0) -> Image.Image:
    left, top, right, bottom = (rng.uniform(least, most) for _ in range(4))
    width, height = image.size
    size = round(width * (1 + left + right)), round(height * (1 + top + bottom))
    whole = Image.new("RGB", size, rng.choice(["white", "white", "black"]))
    whole.paste(image, (round(left * width), round(top * height)))
    return whole


def _resized(image: Image.Image, rng: random.Random) -> Image.Image:
    factor = rng.choice([0.5, 0.7, 1.5])
    return image.resize((round(factor * image.width), round(factor * image.height)), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _reencoded(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(_encoded(image, 50))).convert("RGB")


TRANSFORMATIONS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "JPEG 50": lambda image, _: _reencoded(image),
    "resized": _resized,
    "cropped, up to 3 % a side": lambda image, rng: _cropped(image, rng, 0.03),
    "cropped, 3 % a side": lambda image, rng: _cropped(image, rng, 0.03, 0.03),
    "padded, up to 5 % a side": lambda image, rng: _padded(image, rng, 0.05),
    "padded, 5 % a side": lambda image, rng: _padded(image, rng, 0.05, 0.05),
    "cropped, resized, JPEG 50": lambda image, rng: _reencoded(_resized(_cropped(image, rng, 0.03), rng)),
}


def stored(image: Image.Image, size: int, fit: Fit) -> bytes:
    """Return an image as the images stage stores it."""
    return pixels.to_training(_encoded(image, 95), pixels.Preparation(size, fit, 90, 50_000_000)).image


def sampled(name: str, number: int) -> list[Image.Image]:
    """Return some pictures of a set; of the labelled pairs only the first picture, as the second may be the same."""
    paths = sorted((CORPUS / SETS[name]).iterdir())
    if name == "apparel":
        paths = sorted({CORPUS / SETS[name] / row["one"] for row in labelled()})
    return [Image.open(path).convert("RGB") for path in random.Random(0).sample(paths, min(number, len(paths)))]


def labelled() -> list[dict[str, str]]:
    """Return the labelled pairs of photos."""
    with (CORPUS / "lookalikes/pairs.csv").open() as file:
        return list(csv.DictReader(file))


def labels(size: int, fit: Fit) -> dict[str, int]:
    """Return how many labelled pairs are the same picture or not, and what they are said to be."""
    counts = dict.fromkeys(("same", "candidates of same", "found", "other", "candidates of other", "wrong"), 0)
    for row in labelled():
        one, other = (
            stored(Image.open(CORPUS / SETS["apparel"] / row[name]).convert("RGB"), size, fit)
            for name in ("one", "other")
        )
        label = "same" if row["same_picture"] == "yes" else "other"
        is_candidate = _near(similarity.descriptors(one), similarity.descriptors(other))
        counts[label] += 1
        counts[f"candidates of {label}"] += is_candidate
        counts["found" if label == "same" else "wrong"] += is_candidate and similarity.same_picture(one, other)
    return counts


def copies(images: Sequence[Image.Image], size: int, fit: Fit) -> dict[str, dict[str, int]]:
    """Return for each transformation how many copies are candidates, are found, and are taken for another picture."""
    kept: list[tuple[Image.Image, list[similarity.View], Vectors]] = []
    for image in images:
        original = stored(image, size, fit)
        views, described = similarity.View.all_of(original), similarity.descriptors(original)
        if not any(_near(described, each[2]) and _same(views, each[1]) for each in kept):
            kept.append((image, views, described))
    owner = np.repeat(np.arange(len(kept)), [len(described) for *_, described in kept])
    index = NearestIndex(np.concatenate([described for *_, described in kept]))
    counts = {}
    for name, transform in TRANSFORMATIONS.items():
        rng = random.Random(0)
        counts[name] = {"left out": len(images) - len(kept), "copies": len(kept)} | dict.fromkeys(HITS, 0)
        for number, (image, *_) in enumerate(kept):
            copy = stored(transform(image, rng), size, fit)
            positions, _ = index.search(similarity.descriptors(copy), CANDIDATES, similarity.MAX_DISTANCE)
            candidates = {int(each) for each in owner[positions[positions != NONE]]}
            views = similarity.View.all_of(copy)
            same = {each for each in candidates if _same(views, kept[each][1])}
            for hit, happened in zip(HITS, (number in candidates, number in same, same - {number}), strict=True):
                counts[name][hit] += bool(happened)
    return counts


def _near(one: Vectors, other: Vectors) -> bool:
    apart = np.square(one[:, None].astype(np.int64) - other).sum(2)
    return bool(apart.min() <= similarity.MAX_DISTANCE)


def _same(one: Sequence[similarity.View], other: Sequence[similarity.View]) -> bool:
    return similarity.difference(one, other) <= similarity.MAX_DIFFERENCE


def wilson(hits: int, number: int) -> str:
    """Return a fraction with its 95 % Wilson interval."""
    low, high = binomtest(hits, number).proportion_ci(method="wilson")
    return f"{hits / number:.3f} ({low:.3f} to {high:.3f})"


def measure_pictures(number: int) -> dict[str, Any]:
    """Measure and print what is found."""
    results: dict[str, Any] = {}
    for size, fit in STORED:
        each = {"labels": labels(size, fit)}
        each |= {name: copies(sampled(name, number), size, fit) for name in SETS}
        results[f"{size} px, {fit}"] = each
        print(f"{size} px, {fit}", each["labels"], file=sys.stderr)
    rows = []
    for name, each in results.items():
        count = each["labels"]
        precision = wilson(count["found"], count["found"] + count["wrong"])
        recall = wilson(count["found"], count["same"])
        confusion = (f"{count['found']} of {count['same']}", f"{count['wrong']} of {count['other']}")
        candidates = (f"{count['candidates of same']}, {count['candidates of other']}",)
        rows.append((name, *candidates, *confusion, precision, recall))
    head = ("stored", "candidates: same, other", "same, said the same", "other, said the same", "precision", "recall")
    table("Labelled pairs", head, rows)
    rows = [
        (name, kind, transformation, *(wilson(count[hit], count["copies"]) for hit in HITS[:2]),
         f"{count['wrong']} of {count['copies']}", str(count["left out"]))
        for name, each in results.items() for kind in SETS for transformation, count in each[kind].items()
    ]  # fmt: skip
    table(
        "Copies", ("stored", "pictures", "copy", "candidate", "found", "taken for another", "originals left out"), rows
    )
    return results


def _signs(hashes: Hashes) -> Vectors:
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).view(np.int8)
    bits *= 2
    bits -= 1
    return bits


def _independent(number: int, rng: np.random.Generator) -> Vectors:
    real, hashes = np.load(CORPUS / "lookalikes/hash_pieces.npy"), np.zeros(number, np.uint64)
    for piece in range(4):
        shift = np.uint64(16 * piece)
        hashes |= rng.choice((real >> shift) & np.uint64(0xFFFF), number) << shift
    return _signs(hashes)


def _repeated(number: int, rng: np.random.Generator) -> Vectors:
    hashes = rng.choice(np.load(CORPUS / "lookalikes/hash_pieces.npy"), number)
    for _ in range(3):
        flipped = np.uint64(1) << rng.integers(0, 64, number).astype(np.uint64)
        hashes = np.where(rng.random(number) < 0.6, hashes ^ flipped, hashes)
    return _signs(hashes)


def _descriptors(number: int, rng: np.random.Generator) -> Vectors:
    real = np.load(DESCRIPTORS).astype(np.float32)
    pairs = rng.integers(0, len(real), (number // 2, 2))
    vectors = np.empty((number, real.shape[1]), np.int8)
    for start in range(0, number, 1 << 16):
        chosen = pairs[rng.integers(0, len(pairs), min(1 << 16, number - start))]
        mixed = real[chosen].mean(1) + rng.normal(0, NOISE, (len(chosen), real.shape[1]))
        vectors[start : start + len(chosen)] = mixed.round().clip(-127, 127)
    return vectors


def run(load: str, rows: int) -> dict[str, float]:
    """Index half of the vectors and search for the other half; return time, memory, and what is found."""
    make = {"independent": _independent, "repeated": _repeated, "descriptors": _descriptors}[load]
    limit = similarity.MAX_DISTANCE if load == "descriptors" else FAR[load]
    indexed, queries = np.split(make(rows, np.random.default_rng(0)), 2)
    begin, cpu = time.perf_counter(), time.process_time()
    index = NearestIndex(indexed)
    built = time.process_time() - cpu
    _, distances = index.search(queries, CANDIDATES, limit)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sample = np.random.default_rng(1).choice(len(queries), SAMPLE, replace=False)
    nearest = np.full(SAMPLE, np.inf)
    asking = queries[sample].astype(np.float32)
    for start in range(0, len(indexed), 1 << 12):
        part = indexed[start : start + (1 << 12)].astype(np.float32)
        squared = np.square(part).sum(1) - 2 * asking @ part.T
        nearest = np.minimum(nearest, squared.min(1) + np.square(asking).sum(1))
    near, got = nearest <= FAR[load], distances[sample, 0]
    return {
        "seconds": seconds, "cpu": cpu, "build": built, "memory": memory,
        "found": float((distances[:, 0] != NONE).mean()),
        "with a neighbour": int(near.sum()),
        "with one found": int((near & (got != NONE) & (got <= FAR[load])).sum()),
        "with the nearest found": int((near & (got == nearest)).sum()),
    }  # fmt: skip


def describe() -> None:
    """Write the descriptors of all pictures of the corpus."""
    if DESCRIPTORS.exists():
        return
    paths = [path for folder in SETS.values() for path in sorted((CORPUS / folder).iterdir())]
    made = [similarity.descriptors(stored(Image.open(path).convert("RGB"), 224, "squash"))[0] for path in paths]
    np.save(DESCRIPTORS, np.stack(made))


def measure_scaling(millions: Sequence[float], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Measure and print time, memory and recall by load and size."""
    describe()
    runs: dict[tuple[str, float], list[dict[str, float]]] = {each: [] for each in product(LOADS, millions)}
    for _ in range(repeats):
        for (load, size), found in runs.items():
            words = [sys.executable, "-m", "benchmarks.near_duplicates", "--one", load, str(round(size * 1e6))]
            found.append(watched(words, OMP_NUM_THREADS="1")[0])
            print(load, f"{size:g} M", {key: round(value, 3) for key, value in found[-1].items()}, file=sys.stderr)
    rows = [
        (
            load,
            f"{size:g} M",
            *(median_range([each[figure] for each in found]) for figure in FIGURES),
            f"{found[0]['found']:.1%}",
            *(_recall(found[0], figure) for figure in ("with one found", "with the nearest found")),
        )
        for (load, size), found in runs.items()
    ]
    head = (
        "load",
        "vectors",
        "seconds",
        "CPU s",
        "peak memory, MB",
        "queries with a result",
        "recall of a neighbour",
        "of the nearest",
    )
    table(f"Median of {repeats} runs (minimum to maximum)", head, rows)
    if len(millions) > 1:
        fits = []
        for load, figure in product(LOADS, FIGURES):
            slope, start, r2 = line([(size, each[figure]) for size in millions for each in runs[load, size]])
            fits.append((load, figure, f"{slope:.1f}", f"{start:.1f}", f"{r2:.4f}"))
        table("Linear fits of all runs", ("load", "figure", "per million", "intercept", "R²"), fits)
    return {f"{load}, {size:g} M": found for (load, size), found in runs.items()}


def _recall(found: dict[str, float], figure: str) -> str:
    number = int(found["with a neighbour"])
    return f"{wilson(int(found[figure]), number)} of {number}" if number else "none has one"


def main() -> None:
    """Measure pictures and scaling, and print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.near_duplicates", description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=300, help="of each set")
    parser.add_argument("--rows", type=float, nargs="*", default=[0.5, 1, 2, 5], help="numbers of vectors, millions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(run(chosen.one[0], int(chosen.one[1]))))
        return
    if not (CORPUS / "lookalikes").is_dir():
        sys.exit(f"{CORPUS}/lookalikes does not exist; set EFFIMINI_CORPUS to the corpus folder")
    BUILD.mkdir(parents=True, exist_ok=True)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "Pillow", "simplejpeg"))
    print(f"Python {platform.python_version()}, {libraries}")
    results: dict[str, Any] = {}
    if chosen.pictures:
        results["pictures"] = measure_pictures(chosen.pictures)
    if chosen.rows:
        results["scaling"] = measure_scaling(chosen.rows, chosen.repeats)
    (BUILD / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
