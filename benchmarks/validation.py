"""How the gates grow with the data, on made tables of millions of rows each.

    make bench-validation             # or: python -m benchmarks.validation [--rows 1 2 4] [--once 10] [--repeats 3]

In: nothing; numbers of rows are in millions. Out: tables. Checked are tables as of benchmarks/scale.py with one review
an item and every item in the sample: raw items, reviews, joined items, groups and sample have as many rows each.
Guaranteed: each gate runs in a process of its own; repeats are interleaved; memory is what is of no file (resident less
shared), sampled every 50 ms. Images, shards and predictions are not measured: their tables are no larger than a sample.
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
from benchmarks.tables import spread, table
from prep import groups, join, sample
from prep.core import writers
from prep.core.params import Params
from prep.core.reports import Funnel
from prep.core.tables.raw import REJECTS
from validation.columns import rows_of
from validation.validate import validate

BUILD = Path("build/bench-validation")
GATES = ("raw", "items", "groups", "sample")
LIMIT = 2**31 / 1e6  # MB, asked


def whole(scheduler: str = "synchronous") -> Params:
    """Return parameters that take every item into the sample."""
    params = parameters([CATEGORY], BUCKETS, scheduler)
    return replace(params, sample=replace(params.sample, fraction=1.0, eval_fraction=1.0))


def make_tables(data: Path, rows: int) -> None:
    """Write the tables of so many items and reviews, up to the sample."""
    make(data, CATEGORY, np.arange(rows), reviews_an_item=1)
    raw = data / "raw" / CATEGORY
    writers.write_table(raw / "rejects.parquet", REJECTS.empty_table())
    counted = {kind: Funnel.of(sum(map(rows_of, raw.glob(f"{kind}-*.parquet"))), {}) for kind in ("items", "reviews")}
    writers.write_json(raw / "report.json", {"stage": "download", "category": CATEGORY, "tables": counted})
    params = whole("processes")
    join.join(CATEGORY, params, data)
    groups.groups(params, data)
    sample.sample(CATEGORY, params, data)


def main() -> None:
    """Make tables, measure, print, and remove the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.validation", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1, 2, 4], help="millions, each `repeats` times")
    parser.add_argument("--once", type=float, nargs="*", default=[10], help="millions, once")
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
        (gate, f"{millions:g} M", spread(seconds[gate, millions], ".1f"), spread(memory[gate, millions]))
        for gate, millions in sorted(seconds)
    ]
    table("Median (least to most)", ("gate", "rows of each table", "seconds", "peak memory, MB"), rows)
    rows = []
    for gate in GATES:
        slope, start, r2 = line([(m, each) for g, m in seconds if g == gate for each in seconds[g, m]])
        most = max(max(found) for (g, _), found in memory.items() if g == gate)
        rows.append(
            (gate, f"{slope:.1f}", f"{start:.1f}", f"{r2:.3f}", f"{most:,.0f}", "yes" if most <= LIMIT else "no")
        )
    head = ("gate", "seconds a million rows", "at the start, s", "R²", "most memory, MB", "within 2 GiB")
    table("Straight lines through all runs", head, rows)


def run_gate(gate: str, data: Path) -> None:
    """Run one gate and print what it took."""
    begin = now()
    validate(gate, whole(), data)
    print(json.dumps(since(begin)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--gate"]:
        run_gate(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
