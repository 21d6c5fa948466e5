"""Write the dependencies in dvc.yaml that follow from params.yaml but that DVC cannot derive itself.

DVC repeats a stage for each category (`matrix`), but it cannot list the folders of all categories as dependencies of
one stage, and it cannot tell the folder of a local encoder from a model name on the hub.

Input: the parameters, dvc.yaml and dvc.lock.
Output: dvc.yaml with these dependencies, and dvc.lock without the stages of removed categories; or an error that
dvc.yaml does not match the parameters.
Guarantees: nothing else in the files changes, comments included. The same parameters give the same files, whatever the
files contained before.
"""

import glob
import logging
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from prep.core.errors import UserError
from prep.core.files import atomic_write
from prep.core.params import Params

log = logging.getLogger(__name__)

FILE = Path("dvc.yaml")
# in data/, with one folder per category
TABLE_FOLDERS = ("raw", "items", "groups", "sample", "images", "exclusions", "shards")
_FOLDER = re.compile(rf"data/({'|'.join(TABLE_FOLDERS)})/([^/]+)")
_WIDTH = 120
_CATALOGUE = "prep/demo.py"
_REMOVED = "removed/${item.category}.csv"  # added if items were removed
_WITH_ENCODERS = (
    "shard",
    "validate_shards",
    "train",
)  # any dependency of these stages that is neither data nor code is an encoder
_DATA_OR_CODE = re.compile(r"data/.*|.*\.(py|jinja|txt)|prep/core/tables|validation")
_OF_SOURCE = ("download", "fetch")  # any dependency of these that is neither a stage's output nor code is the source
_OUTPUT_OR_CODE = re.compile(r"data/.*\$\{item.category\}.*|.*\.(py|txt)")


def update_dvc_yaml(params: Params, path: Path = FILE) -> bool:
    """Write the dependencies that follow from the parameters into dvc.yaml; return whether it changed.

    Stages of categories that are not in the parameters are removed from the dvc.lock in the same folder.

    Raises:
        UserError: the dependencies of a stage are not a list in brackets.
    """
    lock = path.with_name("dvc.lock")
    if lock.exists():
        _prune_lock(lock, params.source.categories)
    before = after = path.read_text(encoding="utf-8")
    for name, stage in _stages(before).items():
        lines = _deps_yaml(_dependencies(name, stage, params, path.parent))
        found = re.search(rf"(?m)^  {name}:\n(?:    .*\n|\n)*?(    deps: \[[^]]*\])$", after)
        if found is None:
            raise UserError(f"{path}: the deps of stage {name} are not a list in brackets; write them as [a, b, c]")
        after = after[: found.start(1)] + lines + after[found.end(1) :]
    if after == before:
        return False
    with atomic_write(path) as partial:
        partial.write_text(after, encoding="utf-8")
    return True


def check_dvc_yaml(params: Params, path: Path = FILE) -> None:
    """Check that the dependencies in dvc.yaml match the parameters; do nothing if there is no dvc.yaml.

    Raises:
        UserError: they do not match; the message names a stage and the command to run.
    """
    if not path.exists():
        return
    for name, stage in _stages(path.read_text(encoding="utf-8")).items():
        found, wanted = stage["deps"], _dependencies(name, stage, params, path.parent)
        if found != wanted:
            wrong = next((d for d in [*wanted, *found] if (d in wanted) != (d in found)), wanted[0])
            verb = "lacks" if wrong in wanted else "has"
            raise UserError(
                f"{path} does not match the parameters: stage {name} {verb} the dependency {wrong}; "
                "run `effimini pipeline`, then `dvc repro`"
            )


def warn_of_strays(data: Path, tables: Iterable[str], categories: Sequence[str]) -> None:
    """Log a warning about folders of categories that are not in the parameters; no stage removes or reads them."""
    found = [path for table in tables for path in sorted((data / table).glob("[!.]*")) if path.is_dir()]
    strays = [str(path) for path in found if path.name not in categories]
    if strays:
        log.warning(
            "warning: remove these folders, which are of categories not in source.categories: %s", " ".join(strays)
        )


def _prune_lock(lock: Path, categories: Sequence[str]) -> None:
    """Remove the stages of other categories from dvc.lock; DVC itself never removes them."""
    yaml = YAML()
    content = yaml.load(lock.read_text(encoding="utf-8"))
    removed = [name for name in content["stages"] if "@" in name and name.partition("@")[2] not in categories]
    for name in removed:
        del content["stages"][name]
    if removed:
        with atomic_write(lock) as partial:
            yaml.dump(content, partial)


def _stages(text: str) -> dict[str, Any]:
    """Return the stages that run a command of this package; stages that a team added are left unchanged."""
    stages = YAML(typ="safe", pure=True).load(text)["stages"]
    return {name: stage for name, stage in stages.items() if str(stage["cmd"]).startswith("effimini ")}


def _deps_yaml(dependencies: Sequence[str]) -> str:
    """Return a list of dependencies as the lines of dvc.yaml."""
    listed = ", ".join(f"'{name}'" if "$" in name else name for name in dependencies)
    if len(line := f"    deps: [{listed}]") <= _WIDTH:
        return line
    indent = 6 * " "
    lines = textwrap.fill(
        listed, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return f"    deps: [\n{lines}\n    ]"


def _dependencies(name: str, stage: Any, params: Params, root: Path) -> list[str]:
    """Return a stage's dependencies; where it lists folders of some categories, those of all categories."""
    result: list[str] = []
    for found in stage["deps"]:
        folder = None if "matrix" in stage else _FOLDER.fullmatch(found)
        if folder:
            result += [f"data/{folder[1]}/{category}" for category in params.source.categories]
        elif found not in {_CATALOGUE, _REMOVED} and _own_dependency(name).fullmatch(found):
            result.append(str(found))
    result = list(dict.fromkeys(result))
    extra = list(_extra_dependencies(name, params, root))
    at = sum(dependency.startswith("data/") for dependency in result)
    return [*result[:at], *extra, *result[at:]]


def _own_dependency(name: str) -> re.Pattern[str]:
    """Return the pattern of the dependencies that a stage has whatever the parameters."""
    if name in _OF_SOURCE:
        return _OUTPUT_OR_CODE
    return _DATA_OR_CODE if name in _WITH_ENCODERS else re.compile(".*")


def _extra_dependencies(name: str, params: Params, root: Path) -> Iterator[str]:
    """Yield what parameter values and files add to a stage: the source, removed items, encoders and weights."""
    if name in _OF_SOURCE and params.source.kind == "demo":
        yield _CATALOGUE
    if name in _OF_SOURCE and params.source.kind == "table":
        yield from _local_files(params.source.location)
    if name in {"download", "sample"} and any(root.joinpath(_REMOVED).parent.glob("*.csv")):
        yield _REMOVED
    if name in _WITH_ENCODERS and Path(params.model.text.name).exists():
        yield params.model.text.name
    if name == "train":
        candidates = (params.model.image.weights, params.model.text.weights)
        yield from (weights for weights in candidates if Path(weights).is_file())


def _local_files(location: str) -> list[str]:
    """Return the files of a table on this machine, sorted, or its folder; none of one that is elsewhere."""
    if "://" in location:
        return []
    return [location] if Path(location).exists() else sorted(glob.glob(location))  # noqa: PTH207 -- of any root
