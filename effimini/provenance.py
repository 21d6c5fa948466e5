"""Records the data and parameters of a training, and checks that parameters, shards and model belong together.

Input: the manifests of shards, the parameters of a run, a model folder. Output: ``training.json`` in the model folder,
or an error message that names what belongs to another run. Guarantees: the checks compare the records written when
shards and model were made, so that replaced files (`git checkout` without `dvc checkout`) are detected.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from prep.core.errors import UserError
from prep.core.params import DECIDES_NO_BYTE, Params, TrainParams, rename_keys, values_of
from prep.weights import SampleWeights, check_weights, constant, counts_of, read_weights
from shards.manifest import OF_SPLITS, STATED, Manifest, Source
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

TRAINING_FILE = "training.json"
# The parameters that a model depends on, in addition to its shards.
_OF_THE_MODEL = (
    "text",
    "model",
    *(key for field in fields(TrainParams) if (key := f"train.{field.name}") not in DECIDES_NO_BYTE),
)

_MIXTURE = "train.mixture"  # a mapping of which a missing key is a difference


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """The data and parameters of a training: the content of training.json."""

    categories: tuple[str, ...]
    samples: int
    shards: str  # the fingerprint of the training split
    source: Source
    parameters: dict[str, Any]  # by section: those of the shards from their manifests, and those of the model
    weights: SampleWeights


def of_training(train: ShardDataset, params: Params, weights: SampleWeights) -> Training:
    """Return the record of a training on `train` with `params`."""
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
    """Return the training record of the model in `folder`, None if an older version wrote the model without one.

    Raises:
        UserError: the file is not a valid record.
    """
    path = folder / TRAINING_FILE
    try:
        training = msgspec.json.decode(path.read_bytes(), type=Training)
        rename_keys(training.parameters)
        return training
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a valid training record ({error}); run `dvc checkout`") from None


def check_shards(manifests: Sequence[Manifest], params: Params, where: Path) -> None:
    """Check that the project's shards were made with the current parameters.

    Args:
        manifests: the manifests of the shards.
        params: the parameters of the run.
        where: the folder of the shards, for the error message.

    Raises:
        UserError: a parameter differs.
    """
    wanted = values_of(params, (*STATED, "source.kind", "source.revision"))
    for manifest in manifests:
        for key, then, now in _parameter_differences(_made_with(manifest), wanted):
            raise UserError(
                f"{where / manifest.category} was made with {key} {then} and the parameters say {now}; run "
                "`dvc checkout` to restore the shards of this version, or `dvc repro shard` to make new ones"
            )


def weights_for(train: ShardDataset, params: Params, path: Path | None) -> SampleWeights:
    """Return the weighting of the training samples.

    Args:
        train: the training split.
        params: the parameters of the run.
        path: the project's data/weights.json, which must match the shards and parameters; None for external shards,
            whose weighting is computed from their indexes.

    Raises:
        UserError: the file is missing, or belongs to another run.
    """
    if path is None:
        return constant(counts_of(train, params.weights), params.weights)
    weights = read_weights(path)
    check_weights(weights, path, len(train), params.weights)
    return weights


def check_model(training: Training | None, train: ShardDataset, params: Params, folder: Path) -> None:
    """Check that the project's model was trained on the current shards with the current parameters.

    Raises:
        UserError: the shards or a parameter differ.
    """
    if training is None:
        return
    hint = "run `dvc checkout` to restore the model of this version, or `dvc repro train` to train a new one"
    if training.shards != train.fingerprint:
        raise UserError(f"{folder} was trained on other shards than those in {train.shards.location.url}; {hint}")
    for key, then, now in _parameter_differences(training.parameters, values_of(params, _OF_THE_MODEL)):
        raise UserError(f"{folder} was trained with {key} {then} and the parameters say {now}; {hint}")


def warn_of_other_splits(training: Training | None, train: ShardDataset) -> None:
    """Warn if the splits of external shards were drawn differently from those that the model was trained on."""
    manifest = train.shards.manifests[0]
    if training is None or training.shards == train.fingerprint:
        return
    differences = _parameter_differences(_made_with(training), _made_with(manifest))
    if found := next((difference for difference in differences if difference[0].startswith(OF_SPLITS)), None):
        log.warning(
            "warning: the model was trained on shards made with %s %s, and these were made with %s: "
            "its training samples may include some of these test samples",
            *found,
        )


def _made_with(made: Training | Manifest) -> dict[str, Any]:
    """Return the parameters and the source of the shards, by section."""
    return made.parameters | {"source": msgspec.to_builtins(made.source)}


def _parameter_differences(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each dotted key that both have with different values, and the values; keys of only one are ignored."""
    for key in sorted(one.keys() & other.keys()):
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping) and f"{prefix}{key}" != _MIXTURE:
            yield from _parameter_differences(one[key], other[key], f"{prefix}{key}.")
        elif one[key] != other[key]:
            yield f"{prefix}{key}", one[key], other[key]
