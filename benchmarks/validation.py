"""Measure how the gates scale, on synthetic tables with millions of rows each.

    make bench-validation             # or: python -m benchmarks.validation [--rows 1 2 4] [--once 10] [--repeats 3]

Input: none; numbers of rows are in millions. Output: tables. The data is that of benchmarks/scale.py with one review
per item and every item in the sample, so that raw items, reviews, joined items, groups and sample have equally many
rows. Guarantees: each gate has a separate process; repeats are interleaved; memory is resident minus shared memory,
sampled every 50 ms. Images, shards and predictions are not measured: their tables are no larger than the sample.
"""

import argparse
import json
import os
import shutil
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.ingest import now, since, watched
from benchmarks.scale import BUCKETS, CATEGORY, line, make, parameters
from benchmarks.tables import median_range, table
from prep import groups, join, sample
from prep.core import writers
from prep.core.params import Params
from prep.core.reports import Funnel
from prep.core.tables.raw import REJECTS
from validation.columns import rows_of
from validation.validate import validate

BUILD = Path("build/bench-validation")
GATES = ("raw", "items", "groups", "sample")
LIMIT = 2**31 / 1e6  # MB


def full_sample_params(scheduler: str = "synchronous") -> Params:
    """Return parameters that sample every item."""
    params = parameters([CATEGORY], BUCKETS, scheduler)
    return replace(params, sample=replace(params.sample, fraction=1.0, eval_fraction=1.0))


def make_tables(data: Path, rows: int) -> None:
    """Write the tables of `rows` items and reviews, up to the sample."""
    make(data, CATEGORY, np.arange(rows), reviews_per_item=1)
    raw = data / "raw" / CATEGORY
    writers.write_table(raw / "rejects.parquet", REJECTS.empty_table())
    counted = {kind: Funnel.of(sum(map(rows_of, raw.glob(f"{kind}-*.parquet"))), {}) for kind in ("items", "reviews")}
    writers.write_json(raw / "report.json", {"stage": "download", "category": CATEGORY, "tables": counted})
    params = full_sample_params("processes")
    join.join(CATEGORY, params, data)
    groups.groups(params, data)
    sample.sample(CATEGORY, params, data)


def main() -> None:
    """Write tables, measure the gates, print the results and remove the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.validation", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=float, nargs="+", default=[1, 2, 4], help="millions of rows, each measured --repeats times"
    )
    parser.add_argument("--once", type=float, nargs="*", default=[10], help="millions of rows, measured once")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    os.environ["EFFIMINI_STORE"] = str(BUILD / "store")
    seconds, memory = defaultdict(list), defaultdict(list)  # by gate and millions
    try:
        for sizes, repeats in ((chosen.rows, chosen.repeats), (chosen.once, 1)):
            for millions in sizes:
                make_tables(BUILD / f"{millions:g}/data", int(millions * 1e6))
            for _ in range(repeats):
                for millions in sizes:
                    for gate in GATES:
                        words = ["-m", "benchmarks.validation", "--gate", gate, str(BUILD / f"{millions:g}/data")]
                        figures, peaks = watched([sys.executable, *words])
                        seconds[gate, millions].append(figures["seconds"])
                        memory[gate, millions].append(peaks.largest)
                        print(
                            f"{millions:g} M {gate} {figures['seconds']:.1f} s {peaks.largest:,.0f} MB", file=sys.stderr
                        )
    finally:
        for millions in (*chosen.rows, *chosen.once):
            shutil.rmtree(BUILD / f"{millions:g}", ignore_errors=True)
    rows = [
        (gate, f"{millions:g} M", median_range(seconds[gate, millions], ".1f"), median_range(memory[gate, millions]))
        for gate, millions in sorted(seconds)
    ]
    table("Median (minimum to maximum)", ("gate", "rows of each table", "seconds", "peak memory, MB"), rows)
    rows = []
    for gate in GATES:
        slope, start, r2 = line([(m, value) for g, m in seconds if g == gate for value in seconds[g, m]])
        peak = max(max(found) for (g, _), found in memory.items() if g == gate)
        rows.append(
            (gate, f"{slope:.1f}", f"{start:.1f}", f"{r2:.3f}", f"{peak:,.0f}", "yes" if peak <= LIMIT else "no")
        )
    head = ("gate", "seconds per million rows", "intercept, s", "R²", "peak memory, MB", "within 2 GiB")
    table("Linear fits of all runs", head, rows)


def run_gate(gate: str, data: Path) -> None:
    """Run one gate and print its time."""
    begin = now()
    validate(gate, full_sample_params(), data)
    print(json.dumps(since(begin)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--gate"]:
        run_gate(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
