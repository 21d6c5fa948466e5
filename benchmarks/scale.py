"""Measure how join, groups and sample scale, on synthetic tables of millions of items with ten reviews each.

    make bench-scale                  # or: python -m benchmarks.scale [--items 1 2 4] [--once 16] [--repeats 3]

Input: none; numbers of items are in millions. Output: tables, build/bench-scale/results.json and scale.png, and a
projection to the whole dataset. The synthetic tables have the layout of data/raw, with one category in 64 buckets:
items with a short title (14 % have the same title as up to four others), a store, an image (6 % have the same image as
others, and one in 200 a placeholder), a rating and a rating count, and no further text; 1 % of the reviews are exact
duplicates. Guarantees: each stage has a separate process with two worker processes; repeats are interleaved; memory is
resident minus shared memory of every process, sampled every 50 ms. The tables are removed at the end.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.ingest import now, since, watched
from benchmarks.tables import median_range, table
from prep import groups, join, sample
from prep.core import buckets, cluster, writers
from prep.core.params import DaskParams, Params, load_params
from prep.core.tables.raw import ITEMS, REVIEWS

BUILD = Path("build/bench-scale")
CATEGORY, BUCKETS, REVIEWS_PER_ITEM, WORKERS = "Synthetic", 64, 10, 2
FULL_DATASET = {"items": 48.19, "reviews": 571.54, "largest": 13.2}  # millions; items of the largest category
CORES = (2, 16, 64)
_CHUNK = 1 << 20  # numbers hashed at once
_URL = "https://m.media-amazon.com/images/I/"

Numbers = npt.NDArray[np.int64]


def ids_of(numbers: Numbers) -> pa.Array:
    """Return the parent_asins of synthetic items."""
    return pc.binary_join_element_wise("B", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0"), "")


def synthetic_items(numbers: Numbers) -> pa.Table:
    """Return the rows of synthetic items; equal numbers give equal rows."""
    position = numbers % 100  # of a hundred items, 5, 4, 3 and 2 have the same title
    first = np.select([position < 5, position < 9, position < 12, position < 14], [0, 5, 9, 12], position)
    title = numbers - position + first
    pictured = np.where(numbers % 50 // 3 == 10, numbers // 50 * 50 + 30, numbers)  # 3 of 50 have the same image
    images = pc.binary_join_element_wise(pa.array(pictured).cast(pa.string()), "L._AC_.jpg", "")
    images = pc.if_else(pa.array(numbers % 200 == 199), "placeholder._AC_.jpg", images)
    rng = np.random.default_rng(numbers[:1])
    nothing = pa.array([[]], pa.list_(pa.string())).take(pa.array(np.zeros(len(numbers), np.int64)))
    columns = {
        "parent_asin": ids_of(numbers),
        "line": numbers + 1,
        "main_category": pa.repeat("Synthetic things", len(numbers)),
        "title": pc.binary_join_element_wise("A synthetic thing, number", pa.array(title).cast(pa.string()), " "),
        "average_rating": np.round(5 - 4 * rng.beta(1.3, 5, len(numbers)), 1),
        "rating_number": np.exp(rng.normal(2.5, 1.8, len(numbers))).astype(np.int64) + 1,
        "features": nothing,
        "description": nothing,
        "store": pc.binary_join_element_wise("Store", pa.array(title % 5003).cast(pa.string()), " "),
        "details": pa.repeat("{}", len(numbers)),
        "hi_res": pa.nulls(len(numbers), pa.string()),
        "large": pc.binary_join_element_wise(_URL, images, ""),
        "price": numbers % 100 + 0.99,
        "video_count": numbers % 3,
        "image_count": numbers % 8 + 1,
        "categories": nothing,
    }
    return pa.table([pa.array(columns[name]) for name in ITEMS.names], schema=ITEMS)


def synthetic_reviews(numbers: Numbers, per_item: int) -> pa.Table:
    """Return `per_item` reviews of each synthetic item, in random order."""
    rng = np.random.default_rng(numbers[:1])
    rows = len(numbers) * per_item
    positions = rng.permutation(np.repeat(np.arange(len(numbers)), per_item))
    lines, users = (rng.integers(0, 2**64, rows, np.uint64) for _ in range(2))
    copies = np.arange(1, rows, 100)
    for column in (lines, users, positions):
        column[copies] = column[copies - 1]
    columns = {
        "parent_asin": ids_of(numbers).take(pa.array(positions)),
        "line_hash": lines,
        "user_hash": users,
        "rating": rng.integers(1, 6, rows).astype(float),
        "timestamp": rng.integers(1_000_000_000_000, 1_690_000_000_000, rows),
        "verified_purchase": rng.random(rows) < 0.9,
    }
    return pa.table([pa.array(columns[name]) for name in REVIEWS.names], schema=REVIEWS)


def make(
    data: Path, category: str, numbers: Numbers, count: int = BUCKETS, reviews_per_item: int = REVIEWS_PER_ITEM
) -> None:
    """Write ``data/raw/<category>`` with the synthetic items of these numbers."""
    out = data / "raw" / category
    chunks = [numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK)]
    with ProcessPoolExecutor(WORKERS) as pool:
        bucket = np.concatenate(list(pool.map(_buckets, chunks, [count] * len(chunks))))
        by_bucket = [numbers[bucket == number] for number in range(count)]
        list(pool.map(partial(_write, out=out, reviews_per_item=reviews_per_item), by_bucket, range(count)))


def _buckets(numbers: Numbers, count: int) -> npt.NDArray[np.int16]:
    return buckets.bucket_of(buckets.item_order(ids_of(numbers)), count).astype(np.int16)


def _write(numbers: Numbers, bucket: int, out: Path, reviews_per_item: int) -> None:
    writers.write_table(out / f"items-{bucket:03d}.parquet", synthetic_items(numbers))
    writers.write_table(out / f"reviews-{bucket:03d}.parquet", synthetic_reviews(numbers, reviews_per_item))


def parameters(categories: Iterable[str], count: int, scheduler: str) -> Params:
    """Return the paper's parameters for synthetic items."""
    params = load_params(Path("params/paper.yaml"))
    return replace(
        params,
        source=replace(params.source, categories=tuple(categories)),
        download=replace(params.download, buckets=count),
        sample=replace(params.sample, min_chars=0, require=("title", "average_rating", "rating_number")),
        dask=DaskParams(scheduler=scheduler, workers=WORKERS),
    )


STAGES: dict[str, Callable[[Params, Path], None]] = {
    "join": partial(join.join, CATEGORY),
    "groups": groups.groups,
    "sample": partial(sample.sample, CATEGORY),
}


def run_stage(stage: str, data: Path) -> dict[str, float]:
    """Run a stage; return its seconds, those in its workers, and those for starting and stopping them."""
    seconds = {"start": 0.0, "workers": 0.0}
    pool, run_map = cluster.dask_pool, cluster.DaskPool.map

    @contextmanager
    def timed_pool(settings: DaskParams) -> Iterator[cluster.DaskPool]:
        begin = time.perf_counter()
        with pool(settings) as given:
            seconds["start"] += time.perf_counter() - begin
            yield given
            begin = time.perf_counter()
        seconds["start"] += time.perf_counter() - begin

    def timed_map(self: cluster.DaskPool, *arguments: Any) -> list[Any]:
        begin = time.perf_counter()
        found = run_map(self, *arguments)
        seconds["workers"] += time.perf_counter() - begin
        return found

    cluster.DaskPool.map = timed_map
    for module in (join, groups, sample):
        module.dask_pool = timed_pool
    begin = now()
    STAGES[stage](parameters([CATEGORY], BUCKETS, "processes"), data)
    return since(begin) | seconds


def measured(millions: float) -> dict[str, dict[str, float]]:
    """Run the stages on the tables of one size, one after another."""
    data = BUILD / f"{millions:g}"
    found = {}
    for stage in STAGES:
        words = [sys.executable, "-m", "benchmarks.scale", "--stage", stage, str(data)]
        figures, peaks = watched(words)
        found[stage] = {**figures, "worker": peaks.worker, "main": peaks.main}
        print(f"{millions:g} M", stage, {name: round(v, 1) for name, v in found[stage].items()}, file=sys.stderr)
    return found


def line(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Return slope, intercept and R² of the straight line through the points."""
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1)
    rest, all_ = ((y - slope * x - intercept) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return float(slope), float(intercept), float(1 - rest / all_) if all_ else 1.0


def points(found: dict[float, list[Any]], stage: str, figure: str) -> list[tuple[float, float]]:
    """Return the millions of items and the figure of each repeat."""
    return [(millions, each[stage][figure]) for millions, repeats in found.items() for each in repeats]


def report(found: dict[float, list[Any]]) -> None:
    """Print the measurements and the linear fits."""
    rows = [
        (
            f"{millions:g} M",
            stage,
            *(
                median_range([each[stage][figure] for each in repeats], form)
                for figure, form in (("seconds", ".1f"), ("worker", ",.0f"), ("main", ",.0f"))
            ),
            f"{statistics.median(each[stage]['seconds'] for each in repeats) / millions:.1f}",
            f"{statistics.median(each[stage]['cpu'] for each in repeats) / millions:.1f}",
            str(len(repeats)),
        )
        for millions, repeats in found.items()
        for stage in STAGES
    ]
    table(
        "Median (minimum to maximum)",
        (
            "items",
            "stage",
            "seconds",
            "largest worker, MB",
            "main process, MB",
            "seconds per million",
            "CPU seconds per million",
            "runs",
        ),
        rows,
    )
    rows = []
    for figure, label in (("seconds", "time"), ("cpu", "CPU time")):
        for stage in STAGES:
            slope, start, r2 = line(points(found, stage, figure))
            rows.append((label, stage, f"{slope:.2f}", f"{start:.1f}", f"{r2:.4f}"))
    head = ("figure", "stage", "seconds per million items", "intercept, s", "R²")
    table("Linear fits of all runs", head, rows)


def project(found: dict[float, list[Any]]) -> None:
    """Print the projection to the whole dataset, and the largest memory."""
    million = {
        "join": FULL_DATASET["reviews"] / REVIEWS_PER_ITEM,
        "groups": FULL_DATASET["items"],
        "sample": FULL_DATASET["items"],
    }
    rows, total = [], dict.fromkeys(CORES, 0.0)
    for stage, size in million.items():
        in_workers = line(points(found, stage, "workers"))[0] * size
        outside = [(x, seconds - w - s) for (x, seconds), (_, w), (_, s) in _three(found, stage)]
        serial = max(0.0, line(outside)[0]) * size
        minutes = {cores: (serial + in_workers * WORKERS / cores) / 60 for cores in CORES}
        for cores in CORES:
            total[cores] += minutes[cores]
        rows.append((stage, *(f"{minutes[cores]:.1f}" for cores in CORES), f"{serial / 60:.1f}"))
    rows.append(("all three", *(f"{total[cores]:.1f}" for cores in CORES), ""))
    table(
        f"Projected to {FULL_DATASET['items']} M items and {FULL_DATASET['reviews']} M reviews "
        "(join: in proportion to reviews), minutes",
        ("stage", *(f"{cores} cores" for cores in CORES), "of these, in the main process only"),
        rows,
    )
    # groups sees all categories at once, join and sample one category at a time
    items = {"join": FULL_DATASET["largest"], "groups": FULL_DATASET["items"], "sample": FULL_DATASET["largest"]}
    memory = {}
    for stage, size in items.items():
        for who in ("worker", "main"):
            slope, start, _ = line(points(found, stage, who))
            memory[stage, who] = max(0.0, slope) * size + start
    rows = [(s, f"{items[s]:g} M", f"{memory[s, 'worker']:,.0f}", f"{memory[s, 'main']:,.0f}") for s in items]
    head = ("stage", "items at once", "each worker, MB", "main process, MB")
    table(f"Projected peaks of memory with {BUCKETS} buckets", head, rows)
    (stage, who), peak = max(memory.items(), key=lambda item: item[1])
    hint = "more download.buckets reduce it" if who == "worker" else "no parameter reduces it"
    print(
        f"\nLargest memory: the {who if who == 'worker' else 'main process'} of {stage}, {peak / 1e3:.1f} GB; {hint}. "
        f"At most {BUCKETS} cores are used, one per bucket."
    )


def _three(found: dict[float, list[Any]], stage: str) -> Iterable[tuple[tuple[float, float], ...]]:
    return zip(*(points(found, stage, figure) for figure in ("seconds", "workers", "start")), strict=True)


def plot(found: dict[float, list[Any]], path: Path) -> None:
    """Plot time and memory over the number of items."""
    from matplotlib import pyplot  # noqa: PLC0415 -- workers import this module too

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    labels = {"seconds": "time, s", "worker": "largest worker, MB", "main": "main process, MB"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for stage in STAGES:
            measurements = points(found, stage, name)
            slope, start, _ = line(measurements)
            x = np.array([0, max(found)])
            drawn = axis.plot(*np.array(measurements).T, "o", label=stage)
            axis.plot(x, slope * x + start, color=drawn[0].get_color(), linewidth=1)
        axis.set(xlabel="items, millions", ylabel=label, ylim=(0, None))
    axes[1].axhline(2**31 / 1e6, color="grey", linestyle=":", label="2 GiB")
    axes[1].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Write tables, measure the stages, print the results and remove the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--items", type=float, nargs="+", default=[1, 2, 4], help="millions of items, each measured --repeats times"
    )
    parser.add_argument("--once", type=float, nargs="*", default=[16], help="millions of items, measured once")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    os.environ["EFFIMINI_STORE"] = str(BUILD / "store")
    found: dict[float, list[Any]] = {millions: [] for millions in (*chosen.items, *chosen.once)}
    try:
        for sizes, repeats in ((chosen.items, chosen.repeats), *(([size], 1) for size in chosen.once)):
            for millions in sizes:
                begin = time.perf_counter()
                make(BUILD / f"{millions:g}", CATEGORY, np.arange(int(millions * 1e6)))
                print(f"{millions:g} M written in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
            for _ in range(repeats):
                for millions in sizes:
                    found[millions].append(measured(millions))
                    (BUILD / "results.json").write_text(json.dumps(found, indent=1))
    finally:
        for millions in found:
            shutil.rmtree(BUILD / f"{millions:g}", ignore_errors=True)
    report(found)
    if len(found) > 1:
        project(found)
        plot(found, BUILD / "scale.png")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stage"]:
        name, folder = sys.argv[2:]
        print(json.dumps(run_stage(name, Path(folder))))
    else:
        main()
