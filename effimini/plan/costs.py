"""What a stage costs per call and per row, as measured by the rehearsal, and how much of it a run has.

Input: ``costs.json``, which ``python -m benchmarks.plan --fit`` writes from rehearsals; a survey of the source. Output:
`RunCosts` and `Workload`. Guarantees: no figure in ``costs.json`` is set by hand.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from effimini.baselines import TFIDF_SAMPLES
from effimini.plan.machine import Pictures, Steps
from effimini.plan.survey import CategorySurvey
from prep.core.params import Params
from shards import near_duplicates
from validation import columns

COSTS_FILE = Path(__file__).with_suffix(".json")

TimeRows = Literal["none", "raw_bytes", "raw_rows", "items", "samples", "train"]
MemoryRows = Literal[
    "none", "bucket_rows", "batch_items", "category_items", "items", "batch_samples", "block_samples", "tar_samples",
    "category_samples", "tfidf_samples", "samples",
]  # fmt: skip


class Driver(NamedTuple):
    """What the cost of a stage grows with."""

    rows: TimeRows  # its time
    memory: MemoryRows  # the memory of its largest process
    calls: Literal["categories", "one", "dvc"] = "one"
    dask: bool = False  # whether its rows are divided among the workers of Dask


DRIVERS = {
    "download": Driver("raw_bytes", "bucket_rows", "categories", dask=True),
    "validate_raw": Driver("raw_rows", "batch_items"),
    "join": Driver("raw_rows", "bucket_rows", "categories", dask=True),
    "validate_items": Driver("items", "batch_items"),
    "groups": Driver("items", "items", dask=True),
    "validate_groups": Driver("items", "batch_items"),
    "sample": Driver("items", "category_items", "categories", dask=True),
    "validate_sample": Driver("samples", "batch_samples"),
    "fetch": Driver("samples", "category_samples", "categories", dask=True),
    "validate_images": Driver("samples", "block_samples"),
    "decontaminate": Driver("samples", "block_samples", dask=True),
    "validate_exclusions": Driver("samples", "block_samples"),
    "shard": Driver("samples", "tar_samples", "categories", dask=True),
    "validate_shards": Driver("samples", "tar_samples"),
    "weights": Driver("train", "none"),
    "validate_weights": Driver("train", "samples"),
    "train": Driver("train", "samples"),
    "evaluate": Driver("samples", "tfidf_samples"),
    "validate_predictions": Driver("samples", "samples"),
    "validate_profiles": Driver("none", "none"),
    "dvc": Driver("raw_rows", "none", "dvc"),  # it hashes and copies all files
}
TABLES: dict[str, TimeRows] = {  # folders, and what their size grows with
    "raw": "raw_rows", "items": "items", "groups": "items", "sample": "samples", "images": "samples",
    "shards": "samples",
}  # fmt: skip

WITH_IMAGES = ("images", "shards")  # the tables that hold the stored images


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds and megabytes of a stage on the reference machine, for `Driver`."""

    call: float  # seconds per call
    serial: float  # seconds per row that one core spends while the others wait
    parallel: float  # seconds per row that any number of cores can share
    memory: float  # MB of the largest process without rows
    memory_row: float  # MB per row


class TableCost(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a table, without its images."""

    category: float  # per category, in its many small files
    row: float


class RunCosts(msgspec.Struct, frozen=True, kw_only=True):
    """The reference machine, and what a run costs there."""

    measured: str  # machine, sizes and commit
    work: float  # seconds; as in `effimini.plan.machine.Machine`
    pictures: Pictures
    steps: Steps
    resolution: int  # px of the stored images
    stages: dict[str, StageCost]
    tables: dict[str, TableCost]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """How much a run has of what its stages' costs grow with."""

    categories: int
    raw_bytes: float
    raw_rows: float
    items: float
    bucket_rows: float  # raw rows of the largest category, per bucket
    category_items: float  # of the largest category
    batch_items: float  # of these, those that a gate has in memory
    category_samples: float  # of the category with most
    batch_samples: float  # of these, those that a gate has in memory
    block_samples: float  # of the largest part, those whose images are in memory
    tar_samples: float  # of the largest part, those of one tar
    tfidf_samples: float  # with the most training samples that TF-IDF + ridge is fitted on
    samples: float
    train: float
    validation: float

    def rows(self, name: TimeRows | MemoryRows) -> float:
        """Return the number of rows or bytes of a `Driver`."""
        return 0.0 if name == "none" else float(getattr(self, name))

    def calls(self, stage: str) -> int:
        """Return how often a stage is called; of ``dvc``, the number of all calls."""
        kind = DRIVERS[stage].calls
        if kind == "dvc":
            return sum(self.categories if each.calls == "categories" else 1 for each in DRIVERS.values()) - 1
        return self.categories if kind == "categories" else 1


def read_costs(path: Path = COSTS_FILE) -> RunCosts:
    """Return the measured costs."""
    return msgspec.json.decode(path.read_bytes(), type=RunCosts)


def workload(params: Params, categories: Sequence[CategorySurvey]) -> Workload:
    """Return what a run of `params` has, if the items that are not looked at are like those that are."""
    rules = params.sample
    train: list[float] = []
    validation: list[float] = []
    test: list[float] = []
    bands: list[float] = []
    for one in categories:
        usable = one.items * one.usable
        of_train = usable * (1 - rules.validation - rules.test)
        train.append(max(rules.fraction * of_train, min(rules.min_per_category, of_train)))
        for split, fraction in ((validation, rules.validation), (test, rules.test)):
            of_split = usable * fraction
            split.append(max(rules.eval_fraction * of_split, min(rules.eval_min_per_category, of_split)))
        bands.append(of_train / rules.bands)
    samples = [sum(parts) for parts in zip(train, validation, test, strict=True)]
    raw_rows = [one.items + one.reviews for one in categories]
    category_items, largest_part = max(one.items for one in categories), max(*bands, *validation, *test)
    return Workload(
        categories=len(categories),
        raw_bytes=sum(one.metadata_bytes + one.review_bytes for one in categories),
        raw_rows=sum(raw_rows),
        items=sum(one.items for one in categories),
        bucket_rows=max(raw_rows) / params.download.buckets,
        category_items=category_items,
        batch_items=min(category_items, columns.ROWS_PER_PART),
        category_samples=max(samples),
        batch_samples=min(max(samples), columns.ROWS_PER_BATCH),
        block_samples=min(largest_part, near_duplicates.ROWS_IN_MEMORY),
        tar_samples=min(largest_part, params.shards.samples_per_shard),
        tfidf_samples=sum(samples) * min(1.0, TFIDF_SAMPLES / max(1.0, sum(train))),
        samples=sum(samples),
        train=sum(train),
        validation=sum(validation),
    )
