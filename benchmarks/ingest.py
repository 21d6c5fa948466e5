"""Measure how fast raw lines become typed tables, compared with pandas, DuckDB and polars on the same files.

    make bench-ingest                 # or, with the peers of benchmarks/requirements-ingest.txt in another environment:
    python -m benchmarks.ingest [--peers build/bench-ingest/venv/bin/python] [--megabytes 400] [--repeats 5]

Input: the corpus (EFFIMINI_CORPUS, or ../shared/corpus). Output: tables, and every measurement in
build/bench-ingest/results.json. The items are the corpus's real metadata rows, repeated with different parent_asins;
the reviews are synthetic, in the dataset's layout. Guarantees: each measurement has a separate process; repeats are
interleaved (A B C A B C); files are in the page cache; every side gives as many rows as there are lines. Time excludes
imports; ours includes starting and stopping the workers, which is also shown separately, and flushing files to disk.
Memory is resident minus shared memory of the process tree, sampled.

The sides do not do the same work: only ours continues after a bad line and records its number and reason (pandas and
polars stop at it, DuckDB stops or, with ignore_errors, writes a row of nulls), and only ours writes rows into buckets
and hashes user ids.
"""

# ruff: noqa: PLC0415 -- each side imports only its own packages, and peers run without the project

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import count
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.tables import median_range, table

BUILD = Path("build/bench-ingest")
KINDS = ("items", "reviews")
CORES = 2
PLACES = {"items": "meta_categories/meta_Items.jsonl", "reviews": "review_categories/Reviews.jsonl"}
COLUMNS = {
    "items": (
        "parent_asin", "main_category", "title", "average_rating", "rating_number",
        "features", "description", "store", "details", "images",
    ),
    "reviews": ("parent_asin", "user_id", "rating", "timestamp", "verified_purchase"),
}  # fmt: skip
_WORDS = ("works", "great", "love", "it", "was", "not", "for", "my", "hair", "and", "smell", "nice", "but", "again")


class Peaks(NamedTuple):
    """Peak memory of a process tree, resident minus shared, in MB."""

    main: float  # of the root process
    worker: float  # of the largest child process, 0 if there is none
    total: float  # of all processes at the same time

    @property
    def largest(self) -> float:
        """The peak of a single process."""
        return max(self.main, self.worker)


def watched(words: Sequence[str], **environment: str) -> tuple[dict[str, float], Peaks]:
    """Run a command that prints figures as JSON; return the figures and its peak memory."""
    peaks = Peaks(0, 0, 0)
    with subprocess.Popen(words, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            main, *workers = [_private_memory(each) for each in (root, *_children(root))]
            now = (main, max(workers, default=0.0), main + sum(workers))
            peaks = Peaks(*map(max, peaks, now))
            time.sleep(0.05)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        sys.exit(f"`{' '.join(words)}` failed")
    return json.loads(printed.splitlines()[-1]), peaks


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return list(root.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _private_memory(process: psutil.Process) -> float:
    try:
        memory = process.memory_info()
    except psutil.Error:  # it has ended
        return 0.0
    return (memory.rss - memory.shared) / 1e6


def raw(kind: str) -> Path:
    """Return the path of a source file."""
    return BUILD / "source" / "raw" / PLACES[kind]


def make(megabytes: int) -> None:
    """Write the two source files, and one item as metadata of the category with the reviews."""
    corpus = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus"))
    real = corpus / "amazon/raw/meta_categories/meta_Health_and_Personal_Care.jsonl"
    if not real.exists():
        sys.exit(f"{real} does not exist; set EFFIMINI_CORPUS to the corpus folder")
    rows, rng = real.read_bytes().splitlines(), random.Random(0)
    makers = {"items": partial(_item, rows), "reviews": partial(_review, rng)}
    for kind, line in makers.items():
        path = raw(kind)
        if path.exists() and path.stat().st_size >= megabytes * 1e6 > path.stat().st_size - 1e5:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            numbers = count()
            while file.tell() < megabytes * 1e6:
                file.write(line(next(numbers)) + b"\n")
    raw("items").with_name("meta_Reviews.jsonl").write_bytes(rows[0] + b"\n")


def _item(rows: list[bytes], number: int) -> bytes:
    row = rows[number % len(rows)]
    begin = row.rindex(b'"parent_asin": "') + len(b'"parent_asin": "')
    return b"%sB%09d%s" % (row[:begin], number, row[begin + 10 :])


def _review(rng: random.Random, number: int) -> bytes:
    review = {
        "rating": float(rng.randint(1, 5)),
        "title": " ".join(rng.choices(_WORDS, k=4)),
        "text": " ".join(rng.choices(_WORDS, k=int(rng.lognormvariate(3.2, 0.9)))),
        "images": [],
        "asin": f"B{number % 10**6:09d}",
        "parent_asin": f"B{number % 10**6:09d}",
        "user_id": f"A{rng.getrandbits(135):027X}"[:28],
        "timestamp": 1500000000000 + rng.randrange(10**11),
        "helpful_vote": rng.randrange(3),
        "verified_purchase": rng.random() < 0.9,
    }
    return json.dumps(review).encode()


def now() -> tuple[float, float]:
    """Return the time, and the CPU time of this process and its ended children, in seconds."""
    return time.perf_counter(), sum(os.times()[:4])


def since(begin: tuple[float, float]) -> dict[str, float]:
    """Return the time and the CPU time since `begin`, in seconds."""
    seconds = time.perf_counter() - begin[0]
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # its children, Dask's workers, count once it has ended
    return {"seconds": seconds, "cpu": now()[1] - begin[1]}


def ours(kind: str, out: Path, *, scheduler: str) -> dict[str, float]:
    """EffiMini: the stage `download`, 4 buckets, 2 workers."""
    from dataclasses import replace

    from prep import download as stage
    from prep.core.params import DaskParams, load_params

    category, params = kind.capitalize(), load_params(Path("params/paper.yaml"))
    source = replace(
        params.source,
        kind="mirror",
        location=str(BUILD / "source"),
        categories=(category,),
        metadata="jsonl",
        reviews=kind == "reviews",
    )
    params = replace(
        params,
        source=source,
        download=replace(params.download, buckets=4),
        dask=DaskParams(scheduler=scheduler, workers=CORES),
    )
    pool, starting = stage.dask_pool, 0.0

    @contextmanager
    def timed(settings: DaskParams) -> Iterator[Any]:
        nonlocal starting
        begin = time.perf_counter()
        with pool(settings) as given:
            starting += time.perf_counter() - begin
            yield given
            begin = time.perf_counter()
        starting += time.perf_counter() - begin

    stage.dask_pool = timed
    begin = now()
    stage.download(category, params, out)
    return since(begin) | {"start": starting, "rows": _rows(out.glob(f"raw/*/{kind}-*.parquet"))}


def pandas(kind: str, out: Path, *, whole: bool) -> dict[str, float]:
    """pandas: read_json of the whole file, or in chunks of 10,000 lines without type inference; pyarrow's writer."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    begin, writer = now(), None
    reading = partial(pd.read_json, raw(kind), lines=True)
    for chunk in [reading()] if whole else reading(chunksize=10_000, dtype=False):
        frame = chunk[list(COLUMNS[kind])]
        if kind == "items":
            images = frame["images"]
            frame = frame.drop(columns="images").assign(
                details=frame["details"].map(json.dumps),
                hi_res=[next((i["hi_res"] for i in each if i["hi_res"]), None) for each in images],
                large=[next((i["large"] for i in each if i["large"]), None) for each in images],
            )
        rows = pa.Table.from_pandas(frame, writer.schema if writer else None, preserve_index=False)
        writer = writer or pq.ParquetWriter(out / "rows.parquet", rows.schema, compression="zstd")
        writer.write_table(rows)
    assert writer is not None
    writer.close()
    return since(begin) | {"rows": _rows(out.glob("*.parquet"))}


def duckdb(kind: str, out: Path, *, write: bool) -> dict[str, float]:
    """DuckDB: read_json with given columns, into parquet or into a table in memory."""
    import duckdb as engine

    types = {
        "average_rating": "DOUBLE", "rating_number": "BIGINT", "features": "VARCHAR[]", "description": "VARCHAR[]",
        "details": "JSON", "images": "STRUCT(hi_res VARCHAR, large VARCHAR)[]",
        "rating": "DOUBLE", "timestamp": "BIGINT", "verified_purchase": "BOOLEAN",
    }  # fmt: skip
    columns = {name: types.get(name, "VARCHAR") for name in COLUMNS[kind]}
    query = f"SELECT * FROM read_json('{raw(kind)}', format = 'newline_delimited', columns = {columns})"
    begin = now()
    with engine.connect() as database:
        database.execute(f"SET threads = {CORES}")
        if write:
            database.execute(f"COPY ({query}) TO '{out / 'rows.parquet'}' (FORMAT parquet, COMPRESSION zstd)")
            return since(begin) | {"rows": _rows(out.glob("*.parquet"))}
        database.execute(f"CREATE TABLE loaded AS {query}")
        figures = since(begin)
        return figures | {"rows": database.execute("SELECT count(*) FROM loaded").fetchone()[0]}


def polars(kind: str, out: Path) -> dict[str, float]:
    """Polars: scan_ndjson with a given schema, sink_parquet."""
    import polars as pl

    types = {
        "average_rating": pl.Float64, "rating_number": pl.Int64, "features": pl.List(pl.String),
        "description": pl.List(pl.String), "images": pl.List(pl.Struct({"hi_res": pl.String, "large": pl.String})),
        "rating": pl.Float64, "timestamp": pl.Int64, "verified_purchase": pl.Boolean,
    }  # fmt: skip
    begin = now()
    schema = {name: types.get(name, pl.String) for name in COLUMNS[kind]}
    pl.scan_ndjson(raw(kind), schema=schema).sink_parquet(out / "rows.parquet", compression="zstd")
    return since(begin) | {"rows": _rows(out.glob("*.parquet"))}


def _rows(paths: Iterator[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in paths)


OURS, PANDAS, CHUNKS, DUCKDB = "EffiMini, 2 processes", "pandas", "pandas in chunks", "DuckDB to parquet"
SIDES: dict[str, Callable[[str, Path], dict[str, float]]] = {
    OURS: partial(ours, scheduler="processes"),
    "EffiMini, synchronous": partial(ours, scheduler="synchronous"),
    PANDAS: partial(pandas, whole=True),
    CHUNKS: partial(pandas, whole=False),
    DUCKDB: partial(duckdb, write=True),
    "DuckDB into a table": partial(duckdb, write=False),
    "polars": polars,
}


def measured(side: str, kind: str, peers: Path) -> dict[str, float]:
    """Run one measurement in a new process, after reading the file into the page cache."""
    with raw(kind).open("rb") as file:
        while file.read(1 << 24):
            pass
    out = BUILD / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    python = sys.executable if side.startswith("EffiMini") else str(peers)
    words = [python, "-m", "benchmarks.ingest", "--side", side, kind, str(out)]
    figures, peaks = watched(words, POLARS_MAX_THREADS=str(CORES), EFFIMINI_STORE=str(BUILD / "store"))
    shutil.rmtree(out)
    found = {"start": 0.0, **figures, "largest": peaks.largest, "sum": peaks.total}
    print(side, kind, {name: round(value, 2) for name, value in found.items()}, file=sys.stderr)
    return found


def report(kind: str, found: dict[str, dict[str, list[float]]]) -> None:
    """Print the table of one kind of file."""
    size = raw(kind).stat().st_size / 1e6
    rates = {side: [size / seconds for seconds in figures["seconds"]] for side, figures in found.items()}
    median = {side: statistics.median(each) for side, each in rates.items()}
    rows = []
    for side, figures in found.items():
        without = [size / (all_ - start) for all_, start in zip(figures["seconds"], figures["start"], strict=True)]
        rows.append(
            (
                side,
                median_range(figures["seconds"], ".2f"),
                median_range(rates[side]),
                f"{statistics.median(without):,.0f}" if any(figures["start"]) else "",
                f"{median[side] / median[PANDAS]:.2f}",
                f"{median[side] / median[CHUNKS]:.2f}",
                f"{median[side] / median[DUCKDB]:.2f}",
                median_range(figures["cpu"], ".2f"),
                median_range(figures["largest"]),
                median_range(figures["sum"]),
                "kept" if side.startswith("EffiMini") else "no",
            )
        )
    repeats = len(found[OURS]["seconds"])
    table(
        f"{kind}: {size:.0f} MB, {found[OURS]['rows'][0]:,.0f} lines; median of {repeats} (minimum to maximum)",
        (
            "side", "seconds", "MB/s", "MB/s without starting workers", "x pandas", "x pandas in chunks",
            "x DuckDB", "CPU seconds", "largest process, MB", "all processes, MB", "rejects",
        ),
        rows,
    )  # fmt: skip


def main() -> None:
    """Run the measurements and print them."""
    parser = argparse.ArgumentParser("python -m benchmarks.ingest", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peers", type=Path, default=BUILD / "venv/bin/python", help="Python of the environment with the peers"
    )
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if not chosen.peers.exists():
        sys.exit(f"{chosen.peers} does not exist; run `make bench-ingest`, or set --peers to the Python of the peers")
    make(chosen.megabytes)
    names = ("duckdb", "polars", "pandas", "pyarrow")
    code = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {names}))"
    peers = subprocess.run([chosen.peers, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    mine = ", ".join(f"{name} {version(name)}" for name in ("msgspec", "pyarrow", "distributed"))
    print(
        f"EffiMini {commit.stdout.strip()} with {mine}; peers {peers}; Python {platform.python_version()}, "
        f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}."
    )
    results = {}
    for kind in KINDS:
        rounds = [{side: measured(side, kind, chosen.peers) for side in SIDES} for _ in range(chosen.repeats)]
        found = {side: {name: [r[side][name] for r in rounds] for name in rounds[0][side]} for side in SIDES}
        lines = {side: set(figures["rows"]) for side, figures in found.items()}
        assert all(each == lines[OURS] for each in lines.values()), lines
        report(kind, found)
        results[kind] = found
    (BUILD / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        name, kind, folder = sys.argv[2:]
        print(json.dumps(SIDES[name](kind, Path(folder))))
    else:
        main()
