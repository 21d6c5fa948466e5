"""Checks that take no library which takes seconds to import, so that a user's mistake is an error at once.

Input: what a command was given.
Output: nothing.
Guarantees: what is refused here would be refused later with the same message; commands call these before they import.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effimini.model_folder import check_name
from prep.core.errors import UserError
from prep.core.params import Params

if TYPE_CHECKING:
    from shards.location import ShardLocation

CONFIG_FILE = "config.json"  # of a model folder
GRAPH = "model.onnx"  # of an exported model
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # of intervals whose tails are measured; between them, linear


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


def to_import(weights: Path, out: Path) -> None:
    """Check that a state dict exists, and the folder for the model does not.

    Raises:
        UserError: otherwise.
    """
    if not weights.exists():
        raise UserError(f"{weights} does not exist; set it to a state dict, for example best_model.pt")
    if out.exists():
        raise UserError(f"{out} exists; set --output to a new folder")


def to_export(model: Path, out: Path) -> None:
    """Check that a folder may be replaced by an export of a model.

    Raises:
        UserError: it is neither absent nor an earlier export, or it is the model folder.
    """
    if out.exists() and not (out / GRAPH).exists():  # it would be replaced with all its content
        raise UserError(f"{out} exists and is not an exported model; set --output to a new folder")
    if out.resolve() == model.resolve():
        raise UserError(f"{out} is the model folder itself, which would be replaced; set --output to another folder")


def interval_options(interval: float | None, ratings: int | None, dashes: str = "--") -> None:
    """Check the options of intervals, whose names begin with `dashes` in the message.

    Raises:
        UserError: one is out of its range, or there are `ratings` without an `interval`.
    """
    if interval is not None and not COVERAGES[0] <= interval <= COVERAGES[-1]:  # also true for NaN
        raise UserError(f"{dashes}interval is {interval:g}; give a fraction from {COVERAGES[0]:g} to {COVERAGES[-1]:g}")
    if ratings is not None and interval is None:
        raise UserError(
            f"{dashes}ratings is {ratings} but there is no {dashes}interval; add {dashes}interval 0.9, or leave it out"
        )
    from prep.core.tables.shards import COUNTS  # noqa: PLC0415 -- imports pyarrow

    if ratings is not None and not 1 <= ratings <= COUNTS[1]:
        raise UserError(f"{dashes}ratings is {ratings}; give a whole number from 1 to 2**53")


def shards(location: str | Path, params: Params) -> None:
    """Check the manifests of the configured categories, as `manifests`."""
    from shards.location import ShardLocation  # noqa: PLC0415 -- imports pyarrow

    manifests(ShardLocation(location), params.source.categories)


def manifests(location: "ShardLocation", categories: Sequence[str]) -> None:
    """Check that a local folder has a valid manifest of each category; a remote one is read when it is opened.

    Raises:
        UserError: as in `ShardLocation.manifest`.
    """
    if location.local_path is not None:
        for category in categories:
            location.manifest(category)
