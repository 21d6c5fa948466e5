"""What a model was trained on and with, and whether parameters, shards and model belong together.

In: the manifests of shards, the parameters of a run, a model's folder. Out: ``training.json`` in the model's folder, or
a sentence that says which of them is of another run. Guaranteed: what is compared is what was written when shards and
model were made, so that files which changed under the same names (`git checkout` without `dvc checkout`) are noticed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from prep.core.faults import UserError
from prep.core.params import Params, Train, stated
from shards.manifest import STATED, Manifest
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

NAME = "training.json"
# The parameters that a model depends on beside its shards.
_OF_THE_MODEL = ("text", "model", *(f"train.{each.name}" for each in fields(Train) if each.name != "save_steps"))


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What a model was trained on and with."""

    categories: tuple[str, ...]
    samples: int
    shards: str  # the fingerprint of the training split
    source: dict[str, Any]  # kind and revision
    parameters: dict[str, Any]  # by section: of the shards as their manifests state them, of the model as it was made
    weights: dict[str, Any]  # as data/weights.json


def of_training(train: ShardDataset, params: Params, weights: Mapping[str, Any]) -> Training:
    """Return what a training on `train` with `params` is."""
    manifests = train.shards.manifests
    return Training(
        categories=tuple(manifest.category for manifest in manifests),
        samples=len(train),
        shards=train.fingerprint,
        source=_plain(manifests[0].source),
        parameters=manifests[0].parameters | stated(params, _OF_THE_MODEL),
        weights=dict(weights),
    )


def read(folder: Path) -> Training | None:
    """Return what the model in `folder` was trained on and with; None for one of a version that did not say.

    Raises:
        UserError: the file is not what a training writes.
    """
    path = folder / NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Training)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise UserError(f"{path} does not say how the model was trained ({error}); run `dvc checkout`") from None


def check_shards(manifests: Sequence[Manifest], params: Params, where: Path) -> None:
    """Refuse shards of a project that were made with other parameters than the project's.

    Args:
        manifests: of the shards.
        params: of the run.
        where: the shards' folder, for the sentence.

    Raises:
        UserError: they differ.
    """
    wanted = stated(params, (*STATED, "source.kind", "source.revision"))
    for manifest in manifests:
        made_with = manifest.parameters | {"source": _plain(manifest.source)}
        if found := _difference(made_with, wanted):
            key, then, now = found
            raise UserError(
                f"{where / manifest.category} was made with {key} {then} and the parameters say {now}; run "
                "`dvc checkout` to have the shards of this version, or `dvc repro shard` to make these"
            )


def check_weights(weights: Mapping[str, Any], train: ShardDataset, params: Params, path: Path) -> None:
    """Refuse a project's data/weights.json that is of another sample, or of other parameters.

    Raises:
        UserError: it is.
    """
    wanted = {"samples": len(train), "count": params.weights.count, "clip": params.weights.clip}
    for name, value in wanted.items():
        if name in weights and weights[name] != value:
            raise UserError(
                f"{path} says {name} {weights[name]} and it should be {value}, so it belongs to another run; run "
                "`dvc checkout`, or `dvc repro weights`"
            )


def check_model(training: Training | None, train: ShardDataset, params: Params, folder: Path) -> None:
    """Refuse a project's model that was trained on other shards or with other parameters than the project's.

    Raises:
        UserError: it was.
    """
    if training is None:
        return
    advice = "run `dvc checkout` to have the model of this version, or `dvc repro train` to train one"
    if training.shards != train.fingerprint:
        raise UserError(f"{folder} was trained on other shards than {train.shards.location.url} holds; {advice}")
    if found := _difference(training.parameters, stated(params, _OF_THE_MODEL)):
        key, then, now = found
        raise UserError(f"{folder} was trained with {key} {then} and the parameters say {now}; {advice}")


def warn_of_other_splits(training: Training | None, train: ShardDataset) -> None:
    """Warn where shards from elsewhere drew their splits otherwise than those that the model was trained on."""
    about = train.shards.manifests[0]
    if training is None or training.shards == train.fingerprint:
        return
    then, now = (_splits(made.parameters, _plain(made.source)) for made in (training, about))
    if found := _difference(then, now):
        log.warning(
            "warning: the model was trained on shards made with %s %s, and these were made with %s: "
            "it may have been trained on samples that it is measured on",
            *found,
        )


def _splits(parameters: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """Return what decides in which split an item stands."""
    sample = parameters.get("sample", {})
    return {
        "source": source,
        "groups": parameters.get("groups", {}),
        "sample": {name: sample[name] for name in ("salt", "validation", "test") if name in sample},
    }


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """Return the first dotted key that both have with other values, and the values; new keys differ in nothing."""
    for key in sorted(one.keys() & other.keys()):
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            if found := _difference(one[key], other[key], f"{prefix}{key}."):
                return found
        elif one[key] != other[key]:
            return f"{prefix}{key}", one[key], other[key]
    return None


def _plain(value: Any) -> Any:
    """Return a struct as it comes out of JSON."""
    return msgspec.json.decode(msgspec.json.encode(value))
