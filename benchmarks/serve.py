"""Measure the service beside `effimini predict`: one item's latency and many items' throughput.

    make bench-serve                # or: python -m benchmarks.serve [--model models/best] [--items 512] [--repeats 5]

Input: a model folder; the items are made here, with photos of 500 x 400 px (smooth noise, JPEG) and titles and features
of random words. Output: a table, and each measurement in build/bench-serve/results.json. Guarantees: both sides read
the same bytes and their scores are compared; each turn starts both sides anew, in processes of their own; turns are
interleaved (A B A B); requests go over the loopback interface, from this process. The time of `predict` is that of the
command with its start; the row "after its start" is (time of all items - time of one) for the other items.
"""

import argparse
import base64
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.tables import median_range
from effimini.input_csv import INPUT_COLUMNS

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build/bench-serve"
CLIENTS, AT_ONCE, ALONE = 16, 64, 40  # concurrent clients; items of a request; requests of the latency
VERSIONS = ("torch", "starlette", "uvicorn", "python-multipart", "httpx", "transformers", "timm", "numpy")
WORDS = (
    "steel",
    "bottle",
    "water",
    "glass",
    "jar",
    "lid",
    "500",
    "ml",
    "leakproof",
    "bamboo",
    "kitchen",
    "soft",
    "set",
)
EFFIMINI = (sys.executable, "-m", "effimini.cli")


def make_items(folder: Path, items: int) -> None:
    """Write `items` pictures, all.csv with all items, and one.csv with the first."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(items):
        noise = Image.fromarray(random.integers(0, 256, (12, 15, 3), np.uint8))
        noise.resize((500, 400), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=85)
        title, features = (" ".join(random.choice(WORDS, count)) for count in (8, 40))
        cells = {"parent_asin": f"B{number}", "title": title, "features": features, "image_paths": f"{number}.jpg"}
        rows.append(dict.fromkeys(INPUT_COLUMNS, "") | cells)
    for name, chosen in (("all", rows), ("one", rows[:1])):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, INPUT_COLUMNS)
            writer.writeheader()
            writer.writerows(chosen)


def as_json(folder: Path) -> list[dict[str, str]]:
    """Return the items of all.csv as the service reads them."""
    with (folder / "all.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["image"] = base64.b64encode((folder / row.pop("image_paths")).read_bytes()).decode()
    return rows


def of_predict(model: Path, folder: Path) -> dict[str, Any]:
    """Return the seconds of the command for one item and for all, and the scores."""
    found: dict[str, Any] = {}
    for name in ("one", "all"):
        words = [*EFFIMINI, "predict", "--model", str(model), "--input", str(folder / f"{name}.csv")]
        start = time.perf_counter()
        out = folder / f"{name}-scores.csv"
        command = [*words, "--images", str(folder), "--output", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found[name] = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"`effimini predict` failed: {done.stderr}")
        with out.open(newline="", encoding="utf-8") as file:
            found["scores"] = [float(row["score"]) for row in csv.DictReader(file)]
    return found


def of_service(model: Path, folder: Path) -> dict[str, Any]:
    """Return the seconds to start the service, of one item's requests and of all items in two ways, and the scores."""
    items, found, start = as_json(folder), dict[str, Any](), time.perf_counter()
    words = [*EFFIMINI, "serve", "--model", str(model), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not (ready := re.search(r"served at (\S+);", line := process.stderr.readline())):
            if not line:
                sys.exit("the service ended; run `effimini serve` to see why")
        found["start"] = time.perf_counter() - start
        limits = httpx.Limits(max_connections=CLIENTS)
        with httpx.Client(base_url=ready[1], timeout=600, limits=limits) as client:

            def timed(content: Any) -> tuple[float, Any]:
                begun = time.perf_counter()
                answer = client.post("/predict", json=content)
                answer.raise_for_status()
                return time.perf_counter() - begun, answer.json()

            timed(items[0])
            found["alone"] = statistics.median(timed(item)[0] for item in items[:ALONE])
            start = time.perf_counter()
            lists = [timed({"items": items[at : at + AT_ONCE]})[1] for at in range(0, len(items), AT_ONCE)]
            found["lists"] = time.perf_counter() - start
            found["scores"] = [one["score"] for answer in lists for one in answer["scores"]]
            before, start = client.get("/health").json()["batches"], time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                list(pool.map(timed, items))
            found["clients"] = time.perf_counter() - start
            found["batch"] = len(items) / (client.get("/health").json()["batches"] - before)
        process.terminate()
    return found


def show(rounds: Sequence[tuple[dict[str, Any], dict[str, Any]]], items: int, model: Path) -> None:
    """Print the measurements as a Markdown table."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    source = json.loads((model / "config.json").read_text(encoding="utf-8"))
    print(
        f"EffiMini {commit.stdout.strip()}, {', '.join(f'{name} {version(name)}' for name in VERSIONS)}, Python "
        f"{platform.python_version()}, {platform.machine()}, {len(os.sched_getaffinity(0))} cores. Model {model}, "
        f"trained on {source['source']} data: {source['image']} at {source['size']} px, {source['max_tokens']} tokens. "
        f"{items} items; median of {len(rounds)} (minimum to maximum).\n"
    )
    predicted, served = zip(*rounds, strict=True)
    rows = {
        "`effimini predict`, one item, with its start: s": [one["one"] for one in predicted],
        "`effimini serve`, its start: s": [one["start"] for one in served],
        "`effimini serve`, one item, one client: ms": [1000 * one["alone"] for one in served],
        "`effimini predict`, all items, with its start: items/s": [items / one["all"] for one in predicted],
        "the same, after its start: items/s": [(items - 1) / (one["all"] - one["one"]) for one in predicted],
        f"`effimini serve`, lists of {AT_ONCE}, one client: items/s": [items / one["lists"] for one in served],
        f"`effimini serve`, single items, {CLIENTS} clients: items/s": [items / one["clients"] for one in served],
        "items in a batch of that": [one["batch"] for one in served],
    }
    print("| measured | value |\n|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {median_range(values, '.1f')} |")
    differ = max(float(np.abs(np.array(one["scores"]) - np.array(other["scores"])).max()) for one, other in rounds)
    print(f"\nLargest difference between scores of `predict` and of the service's lists: {differ:.2f} stars.")


def main() -> None:
    """Measure both sides, interleaved."""
    parser = argparse.ArgumentParser("python -m benchmarks.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/best"))
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        folder = Path(name)
        make_items(folder, asked.items)
        rounds = []
        for number in range(asked.repeats):
            rounds.append((of_predict(asked.model, folder), of_service(asked.model, folder)))
            print(f"turn {number + 1} of {asked.repeats}", file=sys.stderr, flush=True)
    show(rounds, asked.items, asked.model)
    (BUILD / "results.json").write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
