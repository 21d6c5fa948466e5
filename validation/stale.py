"""The earliest stale stage upstream of a table that failed validation.

Input: a stage's name, and the DVC project in the working directory. Output: the name of a stage, or None. Guarantees:
DVC's locks are neither acquired nor waited for, so that a stage can call this while `dvc repro` runs it; only DVC's
cache of file hashes is written.
"""

from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

GATE = "validate_"  # prefix of the stages that check a table and do not write one


def earliest_stale(stage: str) -> str | None:
    """Return the first stage upstream of `stage`, or `stage` itself, that `dvc repro` would run because of a change.

    A change is one of its command, parameters, code, data or outputs. Missing data is not a change, as with
    ``--allow-missing``: it may not have been pulled. Gates (validate_*) are skipped.

    Args:
        stage: name of the stage in DVC; without ``@category``, the stages of all categories.

    Returns:
        The name of the stage, the first in dvc.yaml if there are several. None if nothing is stale, if the working
        directory is not a DVC project, or if DVC cannot read it.
    """
    if not Path(".dvc").is_dir():
        return None
    from dvc.exceptions import DvcException  # noqa: PLC0415 -- takes a second, and only failed tables need it
    from dvc.repo import Repo  # noqa: PLC0415

    try:
        with Repo() as repo:
            position = {found: i for i, found in enumerate(repo.index.stages)}
            upstream = _with_upstream(repo.stage.collect(stage), repo.index.graph)
            upstream.prepare()
            while ready := sorted(upstream.get_ready(), key=position.__getitem__):
                for found in ready:
                    name = str(found.addressing)
                    if not name.startswith(GATE) and _is_stale(found):
                        return name
                upstream.done(*ready)
    except DvcException:
        return None  # for example, dvc.yaml is being edited and is not valid
    return None


def _with_upstream(stages: list[Any], graph: Any) -> TopologicalSorter[Any]:
    """Sort the stages and everything upstream of them; DVC's graph has edges from a stage to its dependencies.

    Stages upstream of a frozen stage are left out, as in `dvc repro`.
    """
    sorter: TopologicalSorter[Any] = TopologicalSorter()
    todo, seen = list(stages), set(stages)
    while todo:
        stage = todo.pop()
        dependencies = [] if stage.frozen else list(graph.successors(stage))
        sorter.add(stage, *dependencies)
        todo += set(dependencies) - seen
        seen.update(dependencies)
    return sorter


def _is_stale(stage: Any) -> bool:
    """Return whether a stage is stale, like `Stage.changed` and `Stage.status`, which acquire DVC's locks."""
    dependencies = [] if stage.frozen else stage.deps
    return bool(stage.changed_stage()) or any(_differs(file) for file in [*dependencies, *stage.outs])


def _differs(file: Any) -> bool:
    status = file.workspace_status()
    missing = status.get(str(file)) == "deleted" and file.hash_info
    return bool(status) and not missing
