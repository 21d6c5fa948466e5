"""Presets: a run's parameters as what differs from ``params/base.yaml``.

In: ``params/base.yaml``, which has every key, and ``params/<preset>.yaml``, which has what differs and may say
``extends: <another preset>``. Out: the parameters, or params.yaml with the comments of base.yaml. Guaranteed: what is
written loads.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from prep.core import params
from prep.core.faults import UserError
from prep.core.files import aside
from prep.core.params import Params

FOLDER = Path("params")
BASE = "base"


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the presets of a folder, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != BASE)


def load(name: str, folder: Path = FOLDER) -> Params:
    """Return the parameters of a preset.

    Raises:
        UserError: there is no such preset, or it has a key or a value that is none.
    """
    return params.parse(merged(name, folder), folder / f"{name}.yaml")


def merged(name: str, folder: Path = FOLDER) -> CommentedMap:
    """Return the content of params.yaml that a preset stands for.

    Raises:
        UserError: there is no such preset, or a file of it is not YAML.
    """
    content: CommentedMap
    if name == BASE:
        content = params.read_yaml(folder / f"{BASE}.yaml")
        return content
    if name not in names(folder):
        raise UserError(f"{folder}/{name}.yaml does not exist; the presets are {', '.join(names(folder))}")
    preset = params.read_yaml(folder / f"{name}.yaml")
    content = merged(preset.pop("extends", BASE), folder)
    _update(content, preset)
    return content


def write(name: str, path: Path, folder: Path = FOLDER, overwrite: bool = False) -> Params:
    """Write the parameters of a preset to `path`, and return them.

    Args:
        name: the preset.
        path: of params.yaml.
        folder: of the presets.
        overwrite: whether values that are of no preset may be lost.

    Raises:
        UserError: there is no such preset, or `path` has values of its own and `overwrite` is false.
    """
    chosen = load(name, folder)
    if path.exists() and not overwrite and params.load(path) not in [load(each, folder) for each in names(folder)]:
        raise UserError(f"{path} has values that are of no preset; commit or copy it, then add --force")
    content = merged(name, folder)
    content.yaml_set_start_comment(
        f"Written by `effimini preset {name}`. Change values here; {folder}/{BASE}.yaml says what each key means.\n\n"
    )
    dump(content, path)
    return chosen


def dump(content: CommentedMap, path: Path) -> None:
    """Write the content of a parameter file."""
    yaml = YAML()
    yaml.width = 4096  # no line is broken, so that a comment stays beside its value
    with aside(path) as partial:
        yaml.dump(content, partial)


def _update(content: CommentedMap, preset: Mapping[str, Any]) -> None:
    """Replace values in place, so that the comments beside them stay."""
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            _update(content[key], value)
        else:
            content[key] = value
