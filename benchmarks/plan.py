"""Fit the costs of `effimini plan` to rehearsals, compare its plans with them, and extrapolate to the paper's run.

    python -m benchmarks.plan --fit BUILD BUILD ... # writes effimini/plan/costs.json
    python -m benchmarks.plan --check BUILD ...     # planned beside measured
    python -m benchmarks.plan --paper BUILD         # the real catalogue's size, on 2, 16 and 64 cores

Input: build folders of `benchmarks.rehearsal` with the phases repro and plan. Output: a JSON file, or tables.
Guarantees: a rehearsal that the costs are not fitted to is planned from the source alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.rehearsal.figures import CATEGORIES
from benchmarks.rehearsal.report import LONG
from benchmarks.tables import table
from effimini.plan import costs as plan_costs
from effimini.plan.costs import DRIVERS, TABLES, WITH_IMAGES, RunCosts, StageCost, TableCost, Workload, workload
from effimini.plan.machine import measure_steps
from effimini.plan.plan import Plan, model_seconds, predict, with_cores
from prep.core import files
from prep.core.params import EncoderParams, Params, load_params

TRAINING = ("train", "evaluate")
CORES, FRACTIONS = (2, 16, 64), (0.2, 0.4)


class Rehearsed:
    """A rehearsal: what was planned before it and what it took.

    Args:
        build: its folder.
    """

    def __init__(self, build: Path) -> None:
        self.result: Any = files.read_json(build / "repro.json")
        self.plan = msgspec.convert(files.read_json(build / "plan.json")["plan"], Plan)
        self.params: Params = load_params(build / "project/params.yaml")
        self.work: Workload = workload(self.params, self.plan.categories)

    def stage(self, name: str) -> dict[str, float]:
        """Return what a stage took."""
        found: dict[str, float] = self.result["watched"]["stages"][name]
        return found

    def table_bytes(self, name: str) -> float:
        """Return the size of a table without its images."""
        stored = self.plan.machine.stored_bytes if name in WITH_IMAGES else 0.0
        return float(self.result["sizes"][name]) - stored * self.work.rows(TABLES[name])


def fit(rehearsals: Sequence[Rehearsed]) -> RunCosts:
    """Return the costs on lines through two rehearsals: time and disk through the first two, memory through the last.

    Memory grows more slowly the larger a run is, because stages hold batches.
    """
    small, large = rehearsals[:2]
    workers = large.params.dask.workers
    stages = {}
    for name, driver in DRIVERS.items():
        rows = [one.work.rows(driver.rows) for one in (small, large)]
        own = [max(0.0, one.stage(name)["wall"] - _model(name, one)) for one in (small, large)]
        wall_row, call = _line(rows, own)
        cpu_row, _ = _line(rows, [one.stage(name)["cpu"] for one in (small, large)])
        # wall = serial + parallel / workers, CPU = serial + parallel
        parallel = (cpu_row - wall_row) * workers / (workers - 1) if driver.dask else 0.0
        parallel = min(max(0.0, parallel), workers * wall_row)
        memory_row, memory = _line(
            [one.work.rows(driver.memory) for one in rehearsals[-2:]],
            [one.stage(name)["process"] for one in rehearsals[-2:]],
        )
        stages[name] = StageCost(
            call=call / large.work.calls(name),
            serial=wall_row - parallel / workers,
            parallel=parallel,
            memory=memory,
            memory_row=memory_row,
        )
    tables = {}
    for name, of in TABLES.items():
        row, fixed = _line(
            [one.work.rows(of) for one in (small, large)], [one.table_bytes(name) for one in (small, large)]
        )
        tables[name] = TableCost(category=fixed / large.work.categories, row=row)
    machine = large.plan.machine
    assert machine.pictures is not None
    sizes = ", ".join(f"{one.result['items']:,}" for one in rehearsals)
    return RunCosts(
        measured=f"{machine.cores} cores, rehearsals of {sizes} items, commit {large.result['commit']}",
        work=machine.work,
        pictures=machine.pictures,
        steps=machine.steps,
        resolution=large.params.images.resolution,
        stages=stages,
        tables=tables,
    )


def _model(name: str, one: Rehearsed) -> float:
    return model_seconds(name, one.work, one.params, one.plan.machine.steps)


def _line(rows: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept of the line through two points, neither of them negative."""
    slope = (values[1] - values[0]) / (rows[1] - rows[0]) if rows[1] > rows[0] else 0.0
    slope = min(max(0.0, slope), values[1] / rows[1] if rows[1] else 0.0)
    return slope, max(0.0, values[1] - slope * rows[1])


def check(one: Rehearsed, costs: RunCosts) -> None:
    """Print what was planned beside what was measured."""
    planned = predict(one.params, one.plan.categories, one.plan.machine, costs)
    counts, measured = one.result["rows"], {name: one.stage(name) for name in DRIVERS}
    pairs = {"items": (planned.workload.items, counts["items items"])}
    pairs["items in the sample"] = planned.workload.samples, counts["images images"]
    for name, stage in planned.stages.items():
        if max(stage.seconds, measured[name]["wall"]) > LONG:
            pairs[f"`{name}`, s"] = stage.seconds, measured[name]["wall"]
    pairs["all stages, s"] = planned.seconds, one.result["watched"]["wall"]
    for name in TABLES:
        pairs[f"data/{name}, MB"] = planned.disk[f"data/{name}"] / 1e6, one.result["sizes"][name] / 1e6
    for name in ("train", "decontaminate", "validate_raw"):
        pairs[f"memory of `{name}`, MB"] = planned.stages[name].process_mb, measured[name]["process"]
    table(
        f"{one.result['items']:,} items (costs: {costs.measured})",
        ("what", "planned", "measured", "difference"),
        [(name, f"{p:,.0f}", f"{m:,.0f}", f"{100 * (p / m - 1):+.0f} %") for name, (p, m) in pairs.items()],
    )


def paper(one: Rehearsed, costs: RunCosts) -> None:
    """Print plans of the preset `paper` for a catalogue of the real size whose rows are like those of a rehearsal."""
    real = 1000 * sum(category.items for category in CATEGORIES.values())
    factor = real / sum(category.items for category in one.plan.categories)
    counts = ("items", "reviews", "metadata_bytes", "review_bytes")
    scaled = [
        msgspec.structs.replace(each, **{name: round(factor * getattr(each, name)) for name in counts})
        for each in one.plan.categories
    ]
    preset = load_params(Path("params/paper.yaml"))
    tokens = one.plan.machine.steps.tokens
    encoders = replace(preset.model, text=EncoderParams(name="effimini/minilm", weights="random"))  # the same size
    steps = measure_steps(replace(preset, model=encoders), tokens)
    machine = msgspec.structs.replace(one.plan.machine, steps=steps)
    rows = []
    for fraction, cores in product(FRACTIONS, CORES):
        params = replace(
            preset,
            sample=replace(preset.sample, fraction=fraction),
            dask=replace(preset.dask, workers=cores),
        )
        found = predict(params, scaled, with_cores(machine, cores), costs)
        data = {name: stage.seconds for name, stage in found.stages.items() if name not in TRAINING}
        cells = (
            sum(data.values()) / 3600, found.stages["train"].seconds / 3600, found.disk["total"] / 1e9,
            max(stage.together_mb for stage in found.stages.values()) / 1e3, found.network["raw_bytes"] / 1e9,
            found.network["image_bytes"] / 1e9,
        )  # fmt: skip
        longest = ", ".join(f"`{name}` {data[name] / 3600:.1f}" for name in sorted(data, key=data.__getitem__)[:-4:-1])
        numbers = [f"{number:,.1f}" for number in cells]
        rows.append((f"{100 * fraction:.0f} %", f"{cores}", f"{found.workload.samples:,.0f}", longest, *numbers))
    head = (
        "fraction", "cores", "samples", "longest data stages, h", "all data stages, h", "training, h", "disk, GB",
        "memory, GB", "raw files, GB", "images, GB",
    )  # fmt: skip
    title = (
        f"Extrapolated to {real:,.0f} items, {tokens} tokens, {preset.train.epochs} epochs (costs: {costs.measured})"
    )
    table(title, head, rows)


def main() -> None:
    """Fit, check or extrapolate."""
    parser = argparse.ArgumentParser("python -m benchmarks.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=Path, nargs="+", metavar="BUILD", help="two or more, by size")
    parser.add_argument("--check", type=Path, nargs="+", default=[])
    parser.add_argument("--paper", type=Path)
    chosen = parser.parse_args()
    if chosen.fit:
        found = msgspec.json.encode(fit(list(map(Rehearsed, chosen.fit))))
        with files.atomic_write(plan_costs.COSTS_FILE) as partial:
            partial.write_bytes(msgspec.json.format(found, indent=2) + b"\n")
    costs = plan_costs.read_costs()
    for build in chosen.check:
        check(Rehearsed(build), costs)
    if chosen.paper:
        paper(Rehearsed(chosen.paper), costs)


if __name__ == "__main__":
    main()
