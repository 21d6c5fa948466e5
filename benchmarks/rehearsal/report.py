"""The tables of the rehearsal.

Input: the JSON files of the phases, of one rehearsal and of smaller ones. Output: Markdown on stdout and in
``report.md``. Guarantees: no figure that was not measured, but for the column that says it is extrapolated.
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


def print_tables(build: Path, against: Sequence[Path]) -> None:
    """Print the tables of the phases that are complete.

    Args:
        build: folder of the rehearsal.
        against: folders of smaller rehearsals, for the slopes.
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
        of = sum(counts.get(name, 0) for name in ROWS.get(stage, ()))
        speed = f"{of / usage['wall']:,.0f}" if of and usage["wall"] else ""
        rows.append(
            (
                f"`{stage}`", f"{usage['calls']}", f"{usage['wall']:.1f}", f"{usage['cpu']:.1f}",
                f"{of:,}" if of else "",                 speed, f"{usage['process']:,.0f}",
                f"{usage['together']:,.0f}", f"{usage['disk']:+,.0f}",
            )
        )  # fmt: skip
    peak = max(usage["process"] for usage in watched["stages"].values())
    cpu = sum(usage["cpu"] for usage in watched["stages"].values())
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
    """Print how the stages grow from one size to the next, and the line through the last two sizes."""
    sizes = [result["items"] for result in results]
    rows = []
    totals: dict[str, list[float]] = {"wall": [], "cpu": []}
    for stage in results[-1]["watched"]["stages"]:
        usages = [result["watched"]["stages"].get(stage) for result in results]
        if not all(usages):
            continue
        cells = [f"`{stage}`"]
        for figure, unit in (("wall", 60), ("cpu", 60), ("process", 1)):
            values = [usage[figure] for usage in usages]
            full = _extrapolated(values, sizes)
            totals.setdefault(figure, []).append(full / unit)
            exponent = np.log(max(values[-1], 0.1) / max(values[-2], 0.1)) / np.log(sizes[-1] / sizes[-2])
            cells += [*(f"{value:,.1f}" for value in values), f"{exponent:.2f}", f"{full / unit:,.1f}"]
        rows.append(cells)
    measured = len(sizes) + 1
    last = ["all"]
    for figure in ("wall", "cpu"):
        last += [*[""] * measured, f"{sum(totals[figure]):,.1f}"]
    rows.append([*last, *[""] * measured, f"{max(totals['process']):,.0f}"])
    head = ["stage"]
    for figure, unit in (("wall", "min"), ("CPU", "min"), ("largest process", "MB")):
        head += [*(f"{figure}, {size:,}" for size in sizes), "exponent", f"to {ITEMS:,}, {unit}"]
    table('Growth (seconds, MB); the columns "to" are extrapolated on the line through the last two sizes', head, rows)


def _extrapolated(values: Sequence[float], sizes: Sequence[int]) -> float:
    slope = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
    return max(values[-1], values[-1] + slope * (ITEMS - sizes[-1]))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _gigabytes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items())


def _short(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
