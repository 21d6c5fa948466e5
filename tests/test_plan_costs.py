"""The costs of `effimini plan` are fitted to rehearsals: a plan from them gives what the rehearsals took."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from benchmarks.plan import Rehearsed, fit
from effimini.plan.costs import DRIVERS, TABLES, read_costs
from effimini.plan.plan import predict
from prep.core import writers
from prep.core.params import Params
from tests.effimini.test_plan import CATEGORIES, MACHINE


@pytest.fixture
def rehearsed(
    tmp_path: Path, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Rehearsed]:
    """Make a rehearsal of a size whose stages and tables grow in proportion to what they work on."""
    params = make_params(**{"source.categories": ["Books", "Software"], "dask.scheduler": "processes"})
    monkeypatch.setattr("benchmarks.plan.load_params", lambda _: params)

    def make(factor: int) -> Rehearsed:
        categories = [
            msgspec.structs.replace(one, items=factor * one.items, reviews=factor * one.reviews) for one in CATEGORIES
        ]
        build = tmp_path / f"{factor}"
        plan = predict(params, categories, msgspec.structs.replace(MACHINE, cores=2), read_costs())
        stages = {}
        for number, (name, driver) in enumerate(DRIVERS.items(), 1):
            rows = plan.workload.rows(driver.rows)
            wall = 3.0 * plan.workload.calls(name) + number * 1e-7 * rows
            stages[name] = {"wall": wall + 1000.0 * (name in {"train", "evaluate"}), "cpu": 1.5 * wall, "process": 99.0}
        stages["train"]["wall"] += factor * 1e4  # more than the model alone
        sizes = {name: 10**6 + 20_000 * plan.workload.rows(rows) for name, rows in TABLES.items()}
        watched = {"stages": stages, "wall": sum(stage["wall"] for stage in stages.values())}
        writers.write_json(
            build / "repro.json", {"items": factor, "commit": "abc", "sizes": sizes, "watched": watched, "rows": {}}
        )
        writers.write_json(build / "plan.json", {"plan": msgspec.to_builtins(plan)})
        return Rehearsed(build)

    return make


def test_a_plan_gives_what_the_rehearsals_took(rehearsed: Callable[[int], Rehearsed]) -> None:
    small, large = rehearsed(1), rehearsed(8)
    costs = fit([small, large])
    assert costs.measured == "2 cores, rehearsals of 1, 8 items, commit abc"
    for one in (small, large):
        plan = predict(one.params, one.plan.categories, one.plan.machine, costs)
        for name in DRIVERS.keys() - {"train", "evaluate"}:
            assert plan.stages[name].seconds == pytest.approx(one.stage(name)["wall"], rel=0.02), name
            assert plan.stages[name].process_mb == pytest.approx(99)
        for name in TABLES:
            assert plan.disk[f"data/{name}"] == pytest.approx(one.result["sizes"][name], rel=0.02)


def test_costs_are_never_negative(rehearsed: Callable[[int], Rehearsed]) -> None:
    small, large = rehearsed(8), rehearsed(1)  # the larger one took less
    large.result["watched"]["stages"]["join"]["wall"] = 1e6
    for cost in fit([small, large]).stages.values():
        assert min(cost.call, cost.serial, cost.parallel, cost.memory, cost.memory_row) >= 0
