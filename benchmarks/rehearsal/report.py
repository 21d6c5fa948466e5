"""The tables of the rehearsal.

Input: the JSON files of the phases, of one rehearsal and of smaller ones. Output: Markdown on stdout and in
``report.md``. Guarantees: no figure that was not measured.
"""

import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import table
from prep.core import files

# The table whose rows a stage reads; the gates read the table of their name.
ROWS = {
    "download": ("raw items", "raw reviews"), "validate_raw": ("raw items", "raw reviews"),
    "join": ("raw items", "raw reviews"), "validate_items": ("items items",), "groups": ("items items out",),
    "validate_groups": ("items items out",), "sample": ("sample items",), "validate_sample": ("sample items out",),
    "fetch": ("images images",), "validate_images": ("images images",), "validate_profiles": (),
    "decontaminate": ("images images",), "shard": ("images images",), "validate_shards": ("images images",),
    "weights": ("train",), "validate_weights": ("train",), "train": ("train",), "evaluate": ("train",),
    "validate_predictions": ("train",), "dvc": (),
}  # fmt: skip
ITEMS = 1_520_000  # of the whole rehearsal; of these, 0.4 pass the paper's filter
LONG = 60.0  # seconds; of shorter stages no growth is printed, and no plan is checked


def print_tables(build: Path, against: Sequence[Path]) -> None:
    """Print the tables of the phases that are complete.

    Args:
        build: folder of the rehearsal.
        against: folders of smaller rehearsals, the smallest first, for the growth.
    """
    text = io.StringIO()
    with redirect_stdout(text):
        results = {path.stem: files.read_json(path) for path in sorted(build.glob("*.json"))}
        for name, write in (
            ("source", _source), ("repro", _repro), ("profile", _profile), ("kills", _kills), ("push", _push),
            ("fraction", _fraction),
        ):  # fmt: skip
            if name in results:
                write(results[name])
        others = [files.read_json(folder / "repro.json") for folder in against]
        if others and "repro" in results:
            _growth([*others, results["repro"]])
    (build / "report.md").write_text(text.getvalue())
    print(text.getvalue())


def _source(result: Any) -> None:
    counts = result["source"]
    line = f"{counts['items']:,} items, {counts['reviews']:,} reviews, {counts['bytes'] / 1e9:.1f} GB"
    print(f"\nSource: {line} in {result['wall']:.0f} s")


def _repro(result: Any) -> None:
    watched, counts = result["watched"], result["rows"]
    print(f"\n```diff\n{result['parameters']}\n```")
    rows = []
    for stage, usage in watched["stages"].items():
        of = _rows(stage, counts)
        rows.append(
            (
                f"`{stage}`", f"{usage['calls']}", f"{usage['wall']:.1f}", f"{usage['cpu']:.1f}",
                f"{of:,}" if of else "", _speed(of, usage["wall"]), f"{usage['process']:,.0f}",
                f"{usage['together']:,.0f}", f"{usage['disk']:+,.0f}",
            )
        )  # fmt: skip
    cpu, peak = _totals(watched)
    rows.append(("all", "", f"{watched['wall']:.1f}", f"{cpu:.1f}", "", "", f"{peak:,.0f}", "", ""))
    head = (
        "stage", "calls", "wall, s", "CPU, s", "rows", "rows/s", "largest process, MB", "its processes together, MB",
        "disk, MB",
    )  # fmt: skip
    resumed = " (resumed)" if result["resumed"] else ""
    table(f"`dvc repro`, {result['items']:,} items{resumed}", head, rows)
    passing, items = counts["pass the filter"], counts["sample items"]
    print(f"\n{passing:,} of {items:,} items pass the paper's filter; {counts['images images']:,} are in the sample.")
    print(f"The image host answered: {_listed(result['image_answers'])}. {_gigabytes(result['sizes'])}.")


def _profile(result: Any) -> None:
    names = ("absent", "same", "mean", "q05", "median", "q95")
    rows = [
        (
            row["column"],
            *(f"{_short(row[name])} / {_short(row[f'{name}_real'])}" for name in names),
            _short(row["drift"]),
        )
        for row in result["drift"]
    ]
    table("Health_and_Personal_Care, twin / 2,000 real rows", ("column", *names, "drift"), rows)


def _kills(result: Any) -> None:
    killed = ", ".join(f"{run['killed_after']:.0f} s" for run in result["kills"] if run["status"] == -9)
    differing = ", ".join(result["differing_stages"]) or "none"
    print(f"\nKilled after {killed}, then complete in {result['last']['wall']:.0f} s. Other outputs: {differing}")


def _push(result: Any) -> None:
    rows = [
        (name, f"{result[key]['wall']:.0f}", f"{result[size] / 1e9:.2f}" if size else "")
        for name, key, size in (
            ("`dvc push`", "push", "pushed_bytes"), ("`dvc pull shard weights`", "pull", "pulled_bytes"),
            ("`effimini train` in the clone", "train", ""),
        )
    ]  # fmt: skip
    table("Push and pull", ("command", "wall, s", "GB"), rows)
    print(f"\nSame metrics in the clone: {result['same_metrics']}")


def _fraction(result: Any) -> None:
    stages = result["watched"]["stages"]
    rows = [(f"`{s}`", f"{u['calls']}", f"{u['wall']:.1f}", f"{u['cpu']:.1f}") for s, u in stages.items()]
    table(f"20 to 40 %, {result['watched']['wall']:.0f} s", ("stage", "calls", "wall, s", "CPU, s"), rows)
    print(
        f"\n{result['tars_kept']} of {result['tars_before']} tars are kept, {result['tars_new']} are new "
        f"({result['new_tar_bytes'] / 1e9:.2f} GB). Grown: {_gigabytes(result['grown'])}. "
        f"The image host answered: {_listed(result['image_answers'])}."
    )


def _growth(results: Sequence[Any]) -> None:
    """Print what each stage took at each size, how its time grows, and its figures at the last size."""
    sizes, watched = [result["items"] for result in results], [result["watched"] for result in results]
    rows = []
    for stage in ROWS:
        usages = [one["stages"].get(stage) for one in watched]
        if not all(usages):
            continue
        seconds, last = [usage["wall"] for usage in usages], usages[-1]
        growth = f"{_growth_of(seconds, sizes):.1f}" if len(sizes) > 2 and seconds[-1] > LONG else ""
        speed = _speed(_rows(stage, results[-1]["rows"]), last["wall"])
        memory = (f"{usage['process']:,.0f}" for usage in usages)
        times = (f"{value:,.0f}" for value in seconds)
        rows.append((f"`{stage}`", *times, growth, f"{last['cpu']:,.0f}", speed, f"{last['disk']:+,.0f}", *memory))
    totals = (f"{one['wall']:,.0f}" for one in watched)
    cpu, peaks = zip(*map(_totals, watched), strict=True)
    rows.append(("all", *totals, "", f"{cpu[-1]:,.0f}", "", "", *(f"{peak:,.0f}" for peak in peaks)))
    names = [f"{size:,} items" for size in sizes]
    times = (f"wall s, {name}" for name in names)
    memory = (f"largest process, MB, {name}" for name in names)
    title = "Growth: what an item more costs between the last two sizes, by what it costs between the two before"
    table(title, ("stage", *times, "growth", "CPU s", "rows/s", "disk, MB", *memory), rows)


def _growth_of(values: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the slope of the last piece of a line through points, divided by the slope of the piece before."""
    before, last = (np.diff(values) / np.diff(sizes))[-2:]
    return float(last / before)


def _totals(watched: Any) -> tuple[float, float]:
    """Return the CPU seconds of all stages together, and the memory of the largest process in MB."""
    stages = watched["stages"].values()
    return sum(usage["cpu"] for usage in stages), max(usage["process"] for usage in stages)


def _rows(stage: str, counts: dict[str, int]) -> int:
    """Return the number of rows that a stage reads."""
    return sum(counts.get(name, 0) for name in ROWS.get(stage, ()))


def _speed(rows: int, seconds: float) -> str:
    return f"{rows / seconds:,.0f}" if rows and seconds else ""


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _gigabytes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items())


def _short(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
