"""What the run of some parameters will take on this machine: rows, time, memory, disk and network.

Input: the parameters, the source, and `effimini.plan.costs`. Output: a `Plan`, and tables to print. Guarantees: nothing
of the project is changed. The plan is for a run from nothing; stages whose results are there already take no time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table

from effimini.plan.costs import DRIVERS, TABLES, WITH_IMAGES, RunCosts, Workload, read_costs, workload
from effimini.plan.machine import Machine, Steps, calibrate
from effimini.plan.survey import CategorySurvey, survey
from prep import ranges
from prep.core.params import Params
from shards.fetch import image_base
from shards.images import urls

ASSUMPTIONS = (
    "it is a run from nothing, on a machine that does nothing else",
    "the items of a category are like those that were looked at, and no item is dropped as a duplicate",
    "the cores are as fast as one core alone; training on a CPU gets faster in proportion to their number",
    "the source refuses or breaks off three of eleven requests, as that of the rehearsal does",
    "training ends after train.epochs; a process of torchrun more, or another device, is not taken into account",
    "an epoch reads each training sample once, whatever train.mixture says",
    "nothing is there yet: DVC's cache and the local store also keep the results of earlier parameters",
)
_DASK_MB = 130.0  # of the process of a stage that waits for the workers
_HEADROOM = 0.9  # fraction of the memory or the disk that a run may take without a warning
_SMALLER_SAMPLE = "lower sample.fraction, or use a larger machine"
_SMALLER_DISK = {
    "store: raw files": "set source.keep_raw: false",
    "data/raw": "move the project to a larger disk, or set fewer source.categories",
    "data/images": "lower images.resolution or sample.fraction",
    "data/shards": "lower images.resolution or sample.fraction",
    "store: images": "lower images.resolution or sample.fraction, or set EFFIMINI_STORE to a folder on another disk",
}
_SMALLER_MEMORY = {
    "download": "raise download.buckets, or lower dask.workers",
    "join": "raise download.buckets, or lower dask.workers",
    "sample": "lower dask.workers",
    "fetch": "lower dask.workers",
    "shard": "lower dask.workers",
    "train": "raise train.gradient_accumulation_steps, or lower sample.fraction",
}
_WORTH_WORKERS = 600  # seconds of the stages that workers share from which on their number matters
_REQUESTED_AT = 4  # images that are larger than this many times their size at training size are worth a smaller request


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage will take."""

    seconds: float
    process_mb: float  # memory of its largest process
    together_mb: float  # memory of all its processes


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run will take."""

    categories: list[CategorySurvey]
    workload: Workload
    machine: Machine
    stages: dict[str, StagePlan]
    seconds: float
    disk: dict[str, int]  # bytes by folder
    network: dict[str, int]  # bytes and requests
    warnings: list[str]
    assumptions: list[str]
    measured: str  # what the costs of the stages were measured on


def plan(params: Params, data: Path, cores: int = 0) -> Plan:
    """Return what a run will take.

    Args:
        params: the parameters.
        data: the folder of the tables.
        cores: plan for a machine with so many cores like those of this one, and as many workers; 0: for this machine.

    Raises:
        UserError: the source or an encoder cannot be read.
    """
    surveyed = survey(params, data)
    machine = calibrate(params, surveyed, data)
    if cores:
        machine, params = with_cores(machine, cores), replace(params, dask=replace(params.dask, workers=cores))
    return predict(params, surveyed.categories, machine, read_costs())


def with_cores(machine: Machine, cores: int) -> Machine:
    """Return a machine with another number of the same cores; the model gets faster in proportion on a CPU."""
    steps, faster = machine.steps, cores / machine.cores if machine.steps.device == "cpu" else 1.0
    steps = msgspec.structs.replace(steps, train=steps.train / faster, score=steps.score / faster)
    return msgspec.structs.replace(machine, cores=cores, steps=steps)


def predict(params: Params, categories: Sequence[CategorySurvey], machine: Machine, costs: RunCosts) -> Plan:
    """Return the plan that follows from what was measured.

    Args:
        params: the parameters.
        categories: what the source has.
        machine: this machine.
        costs: what stages cost on the reference machine.
    """
    work = workload(params, categories)
    stages = {}
    for name, driver in DRIVERS.items():
        cost, workers = costs.stages[name], _workers(params) if driver.dask else 1
        process = cost.memory + cost.memory_row * work.rows(driver.memory)
        if name == "train":  # the model may be larger than that of the reference
            process += (machine.steps.memory - costs.steps.memory) / 1e6
        stages[name] = StagePlan(
            seconds=_seconds(name, work, params, machine, costs),
            process_mb=process,
            together_mb=process * workers + _DASK_MB if workers > 1 else process,
        )
    disk, network = _disk(params, work, machine, costs), _network(params, work, machine)
    return Plan(
        categories=list(categories),
        workload=work,
        machine=machine,
        stages=stages,
        seconds=sum(stage.seconds for stage in stages.values()),
        disk=disk,
        network=network,
        warnings=list(_warnings(params, machine, stages, disk)),
        assumptions=list(ASSUMPTIONS),
        measured=costs.measured,
    )


def model_seconds(name: str, work: Workload, params: Params, steps: Steps) -> float:
    """Return the seconds of a stage that the model alone takes."""
    if name == "evaluate":  # the test split is scored as it is, without text, and without images
        return (work.validation + 3 * (work.samples - work.train - work.validation)) * steps.score
    if name != "train":
        return 0.0
    if params.train.freeze_encoders:
        return (work.train + work.validation) * steps.score
    return params.train.epochs * (work.train * steps.train + work.validation * steps.score)


def _workers(params: Params) -> int:
    return 1 if params.dask.scheduler == "synchronous" else params.dask.workers


def _seconds(name: str, work: Workload, params: Params, machine: Machine, costs: RunCosts) -> float:
    cost, driver, slower = costs.stages[name], DRIVERS[name], machine.work / costs.work
    parallel = cost.parallel * slower
    if name == "fetch" and machine.pictures:  # they may be larger than those of the reference
        parallel += machine.pictures.cpu - costs.pictures.cpu * slower
    if name == "decontaminate":  # it decodes the stored images
        parallel *= (params.images.resolution / costs.resolution) ** 2
    at_once = min(_workers(params), machine.cores) if driver.dask else 1
    per_row = cost.serial * slower + max(0.0, parallel) / at_once
    stage = work.calls(name) * cost.call * slower + work.rows(driver.rows) * per_row
    if name == "download" and machine.download_rate:
        return max(stage, work.raw_bytes / machine.download_rate)
    if name == "fetch" and machine.pictures:
        return max(stage, work.samples / machine.pictures.rate)
    return stage + model_seconds(name, work, params, machine.steps)


def _disk(params: Params, work: Workload, machine: Machine, costs: RunCosts) -> dict[str, int]:
    found = {}
    for table, rows in TABLES.items():
        cost, image = costs.tables[table], machine.stored_bytes if table in WITH_IMAGES else 0.0
        found[f"data/{table}"] = work.categories * cost.category + work.rows(rows) * (cost.row + image)
    tables = sum(found.values())
    found["store: raw files"] = work.raw_bytes if params.source.keep_raw and machine.download_rate else 0.0
    found["store: images"] = work.samples * machine.stored_bytes
    found["store: shards"] = 0.0 if machine.hard_links else found["data/shards"]
    found["DVC's cache"] = 0.0 if machine.clones else tables
    return {name: int(size) for name, size in found.items()} | {"total": int(sum(found.values()))}


def _network(params: Params, work: Workload, machine: Machine) -> dict[str, int]:
    found = {"raw_bytes": 0.0, "raw_requests": 0.0, "image_bytes": 0.0, "image_requests": 0.0}
    if machine.download_rate:
        found |= {"raw_bytes": work.raw_bytes, "raw_requests": 2 * work.categories + work.raw_bytes / ranges.RANGE}
    images = machine.pictures
    if images and urls.is_remote(image_base(params.source.categories[0], params)):
        found |= {"image_bytes": work.samples * images.fetched * images.source_bytes, "image_requests": work.samples}
    return {name: round(number) for name, number in found.items()}


def _warnings(params: Params, machine: Machine, stages: dict[str, StagePlan], disk: dict[str, int]) -> Iterator[str]:
    """Yield a sentence for what this machine has too little of, with the parameter to change."""
    if disk["total"] > _HEADROOM * machine.disk:
        largest = max((name for name in disk if name not in {"total", "DVC's cache"}), key=disk.__getitem__)
        yield (
            f"the run needs {decimal(disk['total'])} of disk, most of it for {largest}, and {decimal(machine.disk)} "
            f"are free; {_SMALLER_DISK.get(largest, _SMALLER_SAMPLE)}"
        )
    for name, stage in stages.items():
        if stage.together_mb * 1e6 > _HEADROOM * machine.memory:
            yield (
                f"{name} needs {decimal(int(stage.together_mb * 1e6))} of memory and this machine has "
                f"{decimal(machine.memory)}; {_SMALLER_MEMORY.get(name, _SMALLER_SAMPLE)}"
            )
    images = machine.pictures
    if images and params.images.request == 0 and images.source_bytes > _REQUESTED_AT * images.stored_bytes:
        yield (
            f"an image has {decimal(int(images.source_bytes))} on the host and {decimal(int(images.stored_bytes))} at "
            f"training size; set images.request: {params.images.resolution} to request smaller ones"
        )
    workers, of_workers = _workers(params), sum(stages[name].seconds for name, each in DRIVERS.items() if each.dask)
    if of_workers > _WORTH_WORKERS and (workers > machine.cores or 2 * workers <= machine.cores):
        yield (
            f"dask.workers is {workers} ({params.dask.scheduler}) and this machine has {machine.cores} cores; set "
            f"dask.scheduler: processes and dask.workers: {machine.cores}"
        )


def plan_table(found: Plan) -> Group:
    """Return a plan as tables to print."""
    work, network, machine = found.workload, found.network, found.machine
    rows = Table(title="rows")
    for name in ("categories", "raw rows", "items", "in the sample", "of these for training"):
        rows.add_column(name, justify="right")
    rows.add_row(*(f"{n:,.0f}" for n in (work.categories, work.raw_rows, work.items, work.samples, work.train)))
    stages = Table(title=f"time and memory, {machine.cores} cores")
    stages.add_column("stage")
    for name in ("time", "largest process, MB", "its processes together, MB"):
        stages.add_column(name, justify="right")
    for name, stage in found.stages.items():
        stages.add_row(name, _duration(stage.seconds), f"{stage.process_mb:,.0f}", f"{stage.together_mb:,.0f}")
    stages.add_section()
    most = [max(getattr(stage, name) for stage in found.stages.values()) for name in ("process_mb", "together_mb")]
    stages.add_row("all", _duration(found.seconds), *(f"{size:,.0f}" for size in most))
    sizes = Table(title="disk and network")
    sizes.add_column("what")
    sizes.add_column("size", justify="right")
    sizes.add_column("requests", justify="right")
    for name, size in found.disk.items():
        sizes.add_row(name, decimal(size), "", end_section=name == "total")
    for name, what in (("raw", "raw files"), ("image", "images")):
        sizes.add_row(f"network: {what}", decimal(network[f"{name}_bytes"]), f"{network[f'{name}_requests']:,}")
    assumed = "\n".join(f"- {each}" for each in found.assumptions)
    return Group(rows, stages, sizes, f"Costs per row were measured on {found.measured}. It is assumed that\n{assumed}")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
