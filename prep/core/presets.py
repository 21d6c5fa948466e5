"""Presets: the parameters of a kind of run, as what differs from ``params/base.yaml``.

In: ``params/base.yaml``, which has every key, and ``params/<preset>.yaml``, which says what it extends and has what
differs. Out: params.yaml with the values of both and the comments of base.yaml. Guaranteed: what is written loads.
"""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from prep.core.errors import UserError
from prep.core.files import atomic_write
from prep.core.params import Params, load_params, read_yaml

FOLDER = Path("params")
BASE = "base"


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the presets of a folder, in alphabetical order."""
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != BASE)


def write_preset(name: str, path: Path, folder: Path = FOLDER, overwrite: bool = False) -> Params:
    """Write the parameters of a preset to `path`, and return them.

    Args:
        name: the preset.
        path: of params.yaml.
        folder: of the presets.
        overwrite: whether values that are of no preset may be lost.

    Raises:
        UserError: there is no such preset, or `path` has values of its own and `overwrite` is false.
    """
    known = names(folder)
    if name not in known:
        raise UserError(f"{folder}/{name}.yaml does not exist; the presets are {', '.join(known)}")
    preset = folder / f"{name}.yaml"
    chosen = load_params(preset)
    if (
        path.exists()
        and not overwrite
        and load_params(path) not in [load_params(folder / f"{each}.yaml") for each in known]
    ):
        raise UserError(f"{path} has values that are of no preset; commit or copy it, then add --force")
    content = read_yaml(preset)
    content.yaml_set_start_comment(
        f"Written by `effimini preset {name}`. Change values here; {folder}/{BASE}.yaml says what each key means.\n\n"
    )
    write_yaml(content, path)
    return chosen


def write_yaml(content: CommentedMap, path: Path) -> None:
    """Write the content of a parameter file."""
    yaml = YAML()
    yaml.width = 4096  # no line is broken, so that a comment stays beside its value
    with atomic_write(path) as partial:
        yaml.dump(content, partial)
