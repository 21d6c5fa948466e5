"""Checks that take no library which takes seconds to import, so that a user's mistake is an error at once.

Input: what a command was given.
Output: nothing.
Guarantees: what is refused here would be refused later with the same message; commands call these before they import.
"""

from pathlib import Path

from effimini.model_folder import check_name
from prep.core.errors import UserError
from prep.core.params import Params

CONFIG_FILE = "config.json"  # of a model folder
GRAPH = "model.onnx"  # of an exported model


def saved_model(folder: Path) -> None:
    """Check that a folder may be one that `EffiMini.save_pretrained` wrote, or a name that of a model on the hub.

    Raises:
        UserError: it has no configuration, or as in `effimini.model_folder.check_name`.
    """
    if not folder.exists():
        check_name(folder)
    elif not (folder / CONFIG_FILE).exists():
        raise UserError(
            f"{folder} has no {CONFIG_FILE}, so it is not a saved model; run `dvc repro train` to train one"
        )


def any_model(model: Path) -> None:
    """Check that a folder may be a saved or an exported model.

    Raises:
        UserError: it cannot be one.
    """
    if not (model / GRAPH).exists():
        saved_model(model)


def shards(location: str | Path, params: Params) -> None:
    """Check that a local folder has a valid manifest of each category; a remote one is read when it is opened.

    Raises:
        UserError: as in `ShardLocation.manifest`.
    """
    from shards.location import ShardLocation  # noqa: PLC0415 -- imports pyarrow

    opened = ShardLocation(location)
    if opened.local_path is not None:
        for category in params.source.categories:
            opened.manifest(category)
