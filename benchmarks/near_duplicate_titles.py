"""Measure how the search for near-duplicate titles scales.

    python -m benchmarks.near_duplicate_titles [--rows 0.25 0.5 1 2] [--repeats 5]

Input: none; numbers of rows are in millions. Output: tables, and every measurement in
build/bench-titles/results.json. A run signs that many measured titles, makes an index of them, and searches it for as
many training titles, in parts of 100,000 rows. The titles are synthetic: a product has up to 10,000 titles that differ
in model, colour and pack (by a Pareto distribution: most have a few, the largest make most rows); a title has one of
5,000 brands and 8 to 20 of 50,000 words by a power law; two thirds have the brand as store, and the others are cut at
120 characters. Guarantees: each run has a separate process of one thread; sizes are interleaved; seconds are those of
the CPU, without making the titles; memory is resident minus shared memory, sampled every 50 ms.
"""

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.ingest import watched
from benchmarks.scale import line
from benchmarks.tables import median_range, table
from prep.near_duplicate_titles import TitleIndex, signatures

BUILD = Path("build/bench-titles")
PART = 100_000  # rows
WORDS, BRANDS, MOST_VARIANTS, CUT = 50_000, 5_000, 10_000, 120
PHASES = ("sign", "index", "search")
_LETTERS = np.array(list("bdfgklmnprstvz")), np.array(list("aeiou"))
_COLOURS = ("Black", "White", "Navy Blue", "Matte Black", "Red", "Dark Grey", "Rose Gold", "Sage")


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Return words of two to four syllables."""
    consonants, vowels = (letters[rng.integers(0, len(letters), (WORDS, 4))] for letters in _LETTERS)
    syllables = rng.integers(2, 5, WORDS)
    return [
        "".join(c + v for c, v in zip(row[:count], row_v[:count], strict=True))
        for row, row_v, count in zip(consonants, vowels, syllables, strict=True)
    ]


def synthetic(seed: int, rows: int) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the titles and stores of each part; the products are the same whatever the seed."""
    words = vocabulary(np.random.default_rng(0))
    products = np.minimum(np.random.default_rng(1).pareto(1.0, max(rows // 3, 1)) + 1, MOST_VARIANTS)
    chance = np.cumsum(products / products.sum())
    rng, drawing = random.Random(seed), np.random.default_rng([2, seed])
    for start, end in pairwise([*range(0, rows, PART), rows]):
        drawn = np.searchsorted(chance, drawing.random(end - start)).tolist()
        titles, stores = zip(*(_item(words, product, rng) for product in drawn), strict=True)
        yield titles, stores


def _item(words: list[str], product: int, rng: random.Random) -> tuple[str, str]:
    own = random.Random(product)
    brand = words[own.randrange(BRANDS)]
    chosen = [words[int(WORDS * own.random() ** 3)] for _ in range(own.randint(8, 20))]
    model, colour, pack = f"{brand[0]}{rng.randrange(100)}", rng.choice(_COLOURS), f"Pack of {rng.randint(1, 9)}"
    title = f"{brand.title()} {' '.join(chosen[:4])} {model} {' '.join(chosen[4:])} ({colour}), {pack}"
    if product % 3:
        return title, brand
    return f"{title[:CUT]}..." if len(title) > CUT else title, ""


def run(rows: int) -> dict[str, float]:
    """Return the seconds of each phase and the fraction of training titles with a partner."""
    seconds, measured, found = dict.fromkeys(PHASES, 0.0), [], 0
    for titles, stores in synthetic(0, rows):
        begin = time.process_time()
        measured.append(signatures(titles, stores))
        seconds["sign"] += time.process_time() - begin
    begin = time.process_time()
    index = TitleIndex(measured)
    seconds["index"] = time.process_time() - begin
    measured.clear()
    for titles, stores in synthetic(1, rows):
        part = signatures(titles, stores)
        begin = time.process_time()
        found += int((index.search(part) >= 0).sum())
        seconds["search"] += time.process_time() - begin
    return seconds | {"found": found / rows}


def main() -> None:
    """Run every size and print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.near_duplicate_titles", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[0.25, 0.5, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(run(chosen.one)))
        return
    runs: dict[float, list[dict[str, float]]] = {millions: [] for millions in chosen.rows}
    for _ in range(chosen.repeats):
        for millions, repeats in runs.items():
            words = [sys.executable, "-m", "benchmarks.near_duplicate_titles", "--one", str(round(millions * 1e6))]
            figures, peaks = watched(words)
            repeats.append(figures | {"memory": peaks.main})
            print(f"{millions:g} M", {name: round(value, 3) for name, value in repeats[-1].items()}, file=sys.stderr)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "results.json").write_text(json.dumps(runs, indent=1))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pyarrow", "pandas"))
    rows = [
        (
            f"{millions:g} M",
            *(median_range([each[phase] for each in repeats], ".1f") for phase in PHASES),
            median_range([each["memory"] for each in repeats]),
            f"{repeats[0]['found']:.1%}",
        )
        for millions, repeats in runs.items()
    ]
    table(
        f"Median of {chosen.repeats} runs (minimum to maximum); Python {platform.python_version()}, {libraries}",
        (
            "measured and training titles, each",
            "sign, CPU s",
            "index, CPU s",
            "search, CPU s",
            "peak memory, MB",
            "with a partner",
        ),
        rows,
    )
    fits = []
    for name in (*PHASES, "memory"):
        slope, start, r2 = line([(millions, each[name]) for millions, repeats in runs.items() for each in repeats])
        fits.append((name, f"{slope:.1f}", f"{start:.1f}", f"{r2:.4f}"))
    table("Linear fits of all runs", ("figure", "per million", "intercept", "R²"), fits)


if __name__ == "__main__":
    main()
