"""What a model was trained on and with, and whether parameters, shards and model belong together.

In: the manifests of shards, the parameters of a run, a model's folder. Out: ``training.json`` in the model's folder, or
a sentence that says which of them is of another run. Guaranteed: what is compared is what was written when shards and
model were made, so that files which changed under the same names (`git checkout` without `dvc checkout`) are noticed.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from prep.core.errors import UserError
from prep.core.params import Params, TrainParams, rename_keys, values_of
from prep.weights import SampleWeights, check_weights, constant, counts_of, read_weights
from shards.manifest import OF_SPLITS, STATED, Manifest, Source
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

TRAINING_FILE = "training.json"
# The parameters that a model depends on beside its shards.
_OF_THE_MODEL = (
    "text",
    "model",
    *(f"train.{each.name}" for each in fields(TrainParams) if each.name != "save_every_steps"),
)


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What a model was trained on and with."""

    categories: tuple[str, ...]
    samples: int
    shards: str  # the fingerprint of the training split
    source: Source
    parameters: dict[str, Any]  # by section: of the shards as their manifests state them, of the model as it was made
    weights: SampleWeights


def of_training(train: ShardDataset, params: Params, weights: SampleWeights) -> Training:
    """Return what a training on `train` with `params` is."""
    manifests = train.shards.manifests
    return Training(
        categories=tuple(manifest.category for manifest in manifests),
        samples=len(train),
        shards=train.fingerprint,
        source=manifests[0].source,
        parameters=manifests[0].parameters | values_of(params, _OF_THE_MODEL),
        weights=weights,
    )


def read_training(folder: Path) -> Training | None:
    """Return what the model in `folder` was trained on and with; None for one of a version that did not say.

    Raises:
        UserError: the file is not what a training writes.
    """
    path = folder / TRAINING_FILE
    try:
        training = msgspec.json.decode(path.read_bytes(), type=Training)
        rename_keys(training.parameters)
        return training
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
    wanted = values_of(params, (*STATED, "source.kind", "source.revision"))
    for manifest in manifests:
        for key, then, now in _parameter_differences(_made_with(manifest), wanted):
            raise UserError(
                f"{where / manifest.category} was made with {key} {then} and the parameters say {now}; run "
                "`dvc checkout` to have the shards of this version, or `dvc repro shard` to make these"
            )


def weights_for(train: ShardDataset, params: Params, path: Path | None) -> SampleWeights:
    """Return what the training samples weigh.

    Args:
        train: the training split.
        params: of the run.
        path: the project's data/weights.json, which has to be of these shards and parameters; None for shards from
            elsewhere, whose weights are computed from their indexes.

    Raises:
        UserError: the file is absent, or belongs to another run.
    """
    if path is None:
        return constant(counts_of(train, params.weights), params.weights)
    weights = read_weights(path)
    check_weights(weights, path, len(train), params.weights)
    return weights


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
    for key, then, now in _parameter_differences(training.parameters, values_of(params, _OF_THE_MODEL)):
        raise UserError(f"{folder} was trained with {key} {then} and the parameters say {now}; {advice}")


def warn_of_other_splits(training: Training | None, train: ShardDataset) -> None:
    """Warn where shards from elsewhere drew their splits otherwise than those that the model was trained on."""
    about = train.shards.manifests[0]
    if training is None or training.shards == train.fingerprint:
        return
    others = _parameter_differences(_made_with(training), _made_with(about))
    if found := next((each for each in others if each[0].startswith(OF_SPLITS)), None):
        log.warning(
            "warning: the model was trained on shards made with %s %s, and these were made with %s: "
            "it may have been trained on samples that it is measured on",
            *found,
        )


def _made_with(made: Training | Manifest) -> dict[str, Any]:
    """Return the parameters and the source that shards were made with, by section."""
    return made.parameters | {"source": msgspec.to_builtins(made.source)}


def _parameter_differences(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each dotted key that both have with other values, and the values; new keys differ in nothing."""
    for key in sorted(one.keys() & other.keys()):
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            yield from _parameter_differences(one[key], other[key], f"{prefix}{key}.")
        elif one[key] != other[key]:
            yield f"{prefix}{key}", one[key], other[key]
