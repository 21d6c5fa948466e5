"""Run the data stages in one process, as a fresh clone would run their commands one after another.

Input: params.yaml and the source. Output: `data`, and on stdout the names of the stages that succeeded, as DVC names
them; those after one that fails do not run.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from prep import download, groups, join, sample, weights
from prep.core.errors import UserError
from prep.core.params import Params, load_params
from shards import decontaminate, fetch, shard
from validation.validate import validate

DATA = Path("data")


def main() -> None:
    """Run the stages in the working folder."""
    for name, stage in _stages(load_params(Path("params.yaml"))):
        try:
            stage()
        except UserError:
            return
        sys.stdout.write(f"{name}\n")


def _stages(params: Params) -> Iterator[tuple[str, Callable[[], object]]]:
    def each(stage: Callable[[str, Params, Path], object]) -> Iterator[tuple[str, Callable[[], object]]]:
        for category in params.source.categories:
            yield f"{stage.__name__}@{category}", partial(stage, category, params, DATA)

    def gate(table: str) -> tuple[str, Callable[[], object]]:
        return f"validate_{table}", partial(validate, table, params, DATA)

    yield from each(download.download)
    yield gate("raw")
    yield from each(join.join)
    yield gate("items")
    yield "groups", partial(groups.groups, params, DATA)
    yield gate("groups")
    yield from each(sample.sample)
    yield gate("sample")
    yield from each(fetch.fetch)
    yield gate("images")
    yield gate("profiles")
    yield "decontaminate", partial(decontaminate.decontaminate, params, DATA)
    yield gate("exclusions")
    yield from each(shard.shard)
    yield gate("shards")
    yield "weights", partial(weights.weights, params, DATA)
    yield gate("weights")
