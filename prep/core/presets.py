"""Presets: named sets of parameters, stored as their differences from ``params/base.yaml``.

Input: ``params/base.yaml``, which has every key, and ``params/<preset>.yaml``, which names the file that it extends and
contains the values that differ.
Output: params.yaml with the values of both and the comments of base.yaml.
Guarantees: the file that is written is valid.
"""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from prep.core.errors import UserError
from prep.core.files import atomic_write
from prep.core.params import Params, load_params, parse_params, read_yaml

BASE = "base"
_PROJECT = Path("params")
_WHEEL = Path(__file__).parent.parent / "presets"  # pyproject.toml puts them there


def own_folder() -> Path:
    """Return the folder of the presets: the project's, or outside of a project those of the installed package."""
    return next((folder for folder in (_PROJECT, _WHEEL) if folder.is_dir()), Path(__file__).parents[2] / _PROJECT)


def names(folder: Path) -> list[str]:
    """Return the names of the presets in a folder, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != BASE)


def write_preset(name: str, path: Path, folder: Path, overwrite: bool = False) -> Params:
    """Write the parameters of a preset to `path`, and return them.

    Args:
        name: the preset.
        path: the params.yaml to write.
        folder: the folder of the presets.
        overwrite: whether to overwrite values at `path` that match no preset.

    Raises:
        UserError: there is no such preset, or none at all, or `path` has values that match no preset and `overwrite` is
            false.
    """
    known = names(folder)
    if not known:
        raise UserError(f"{folder} has no presets; run the command in the project's folder")
    if name not in known:
        raise UserError(f"{folder}/{name}.yaml does not exist; the presets are {', '.join(known)}")
    preset = folder / f"{name}.yaml"
    content = read_yaml(preset)
    chosen = parse_params(content, preset)
    if (
        path.exists()
        and not overwrite
        and load_params(path) not in [load_params(folder / f"{preset_name}.yaml") for preset_name in known]
    ):
        raise UserError(f"{path} has values that match no preset; commit or copy it, then add --force to overwrite it")
    content.yaml_set_start_comment(
        f"Written by `effimini preset {name}`. Change values here; {_PROJECT}/{BASE}.yaml says what each key means.\n\n"
    )
    write_yaml(content, path)
    return chosen


def write_yaml(content: CommentedMap, path: Path) -> None:
    """Write the content of a parameter file."""
    yaml = YAML()
    yaml.width = 4096  # do not wrap lines, so that each comment stays on the line of its value
    with atomic_write(path) as partial:
        yaml.dump(content, partial)
