"""Which stage to begin with where a table is wrong: the earliest one that DVC holds for out of date.

In: a stage's name, and the DVC project of the working directory. Out: the name of a stage, or nothing. Guaranteed: no
lock of DVC is taken or waited for, so that a stage may ask while `dvc repro` runs it; nothing is written but what DVC
remembers of the hashes of files.
"""

from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

GATE = "validate_"  # how the stages begin that make no table


def earliest_stale(stage: str) -> str | None:
    """Return the first stage on the way to `stage`, itself included, that `dvc repro` would run for what changed.

    That is its command, parameters, code or data, or its own outputs. What is merely absent, here or in DVC's cache,
    is no change, as under ``--allow-missing``: it was not pulled, say. Gates (validate_*) are passed over.

    Args:
        stage: as DVC names it; with no ``@category`` all of its stages are meant.

    Returns:
        The stage, of several the one that stands first in dvc.yaml. None if nothing is stale, if the working directory
        is no DVC project, or if DVC cannot tell.
    """
    if not Path(".dvc").is_dir():
        return None
    from dvc.exceptions import DvcException  # noqa: PLC0415 -- a second, and a table that passes does not ask
    from dvc.repo import Repo  # noqa: PLC0415

    try:
        with Repo() as repo:
            place = {found: at for at, found in enumerate(repo.index.stages)}
            way = _way_to(repo.stage.collect(stage), repo.index.graph)
            way.prepare()
            while ready := sorted(way.get_ready(), key=place.__getitem__):
                for found in ready:
                    name = str(found.addressing)
                    if not name.startswith(GATE) and _changed_dependency(found):
                        return name
                way.done(*ready)
    except DvcException:
        return None  # a dvc.yaml that is being edited, say: DVC cannot tell
    return None


def _way_to(stages: list[Any], graph: Any) -> TopologicalSorter[Any]:
    """Return the stages and all before them, each after those it depends on: an edge of DVC's graph leads back.

    `dvc repro` does not look behind a frozen stage, nor does this.
    """
    way: TopologicalSorter[Any] = TopologicalSorter()
    todo, seen = list(stages), set(stages)
    while todo:
        stage = todo.pop()
        before = [] if stage.frozen else list(graph.successors(stage))
        way.add(stage, *before)
        todo += set(before) - seen
        seen.update(before)
    return way


def _changed_dependency(stage: Any) -> bool:
    """Say whether a stage is stale; `Stage.changed` and `Stage.status` ask the same and take DVC's locks for it."""
    read = [] if stage.frozen else stage.deps
    return bool(stage.changed_stage()) or any(_differs(one) for one in [*read, *stage.outs])


def _differs(one: Any) -> bool:
    status = one.workspace_status()
    absent = status.get(str(one)) == "deleted" and one.hash_info
    return bool(status) and not absent
