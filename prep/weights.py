"""Weights: the constant that turns a rating count into the weight of a sample, and that weight.

In: the training parts of ``data/sample/``. Out: ``data/weights.json``. Guaranteed: the mean is over the training
split of this fraction, before the clip, and does not depend on the order of the rows.
"""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.params import Params, WeightsParams, narrow
from prep.core.parts import TRAIN, sample_parts

READS = ("source.categories", "weights")


class SampleWeights(msgspec.Struct, frozen=True):
    """What the training samples weigh: the content of data/weights.json."""

    count: str  # the column that weighs; none: every sample weighs 1
    mean: float  # of log1p(count) over the training split
    clip: float  # the largest weight
    samples: int  # of the training split


def weights(params: Params, data: Path = Path("data")) -> None:
    """Write ``data/weights.json``, as `constant` returns it for the training samples of all categories.

    Raises:
        UserError: a category has no sample, or as `constant`.
    """
    params = narrow(params, READS)
    parts = [part for c in params.source.categories for part in sample_parts(data, c) if part.stem.startswith(TRAIN)]
    name = _column(params.weights)
    counts = np.concatenate([pq.read_table(part, columns=[name])[name].to_numpy() for part in parts])
    writers.write_json(data / "weights.json", constant(counts, params.weights))


def read_weights(path: Path) -> SampleWeights:
    """Read ``data/weights.json``.

    Raises:
        UserError: the file is absent, or holds no weights.
    """
    try:
        return msgspec.convert(files.read_json(path), SampleWeights)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} holds no weights ({error}); run `dvc repro --force --single-item weights`") from None


def check_weights(weights: SampleWeights, path: Path, samples: int, chosen: WeightsParams | None = None) -> None:
    """Refuse weights that belong to other shards, or to other parameters.

    Args:
        weights: as they stand in `path`.
        path: for the sentence.
        samples: of the training split of the shards.
        chosen: the section of the parameters; None where it is not known.

    Raises:
        UserError: they do.
    """
    wanted = {"samples": samples} | ({"count": chosen.count, "clip": chosen.clip} if chosen else {})
    for name, value in wanted.items():
        if (found := getattr(weights, name)) != value:
            raise UserError(
                f"{path} says {name} {found} and it should be {value}, so it belongs to another run; run "
                "`dvc checkout`, or `dvc repro weights`"
            )


def constant(counts: npt.NDArray[np.int64], weights: WeightsParams) -> SampleWeights:
    """Return which count weighs, the mean of its log1p, the clip and the number of samples.

    The weight of a sample is min(log1p(count) / mean, clip). With ``weights.count: none`` every sample weighs 1.

    Args:
        counts: int64 [N], the counts of the training samples.
        weights: the section of the parameters.

    Raises:
        UserError: no training sample has a rating, so that the mean is 0.

    Source: reference, section 1 (weight).
    """
    column = weights.count
    # an exact sum over the distinct counts: the same on every machine and in every order
    values, times = np.unique(counts, return_counts=True)
    mean = math.fsum(math.log1p(int(v)) * int(n) for v, n in zip(values, times, strict=True)) / len(counts)
    if column == "none":
        mean = 1.0
    if mean == 0:
        raise UserError(
            f"weights.count is {column}, and it is 0 for all {len(counts)} training samples; set weights.count: none"
        )
    return SampleWeights(column, float(f"{mean:.12g}"), weights.clip, len(counts))


def sample_weights(counts: npt.NDArray[np.int64], weights: SampleWeights) -> npt.NDArray[np.float32]:
    """Return the weight of each sample: min(log1p(count) / mean, clip), or 1 where ``weights.count`` is none.

    Args:
        counts: int64 [N], the count that `weights` names.
        weights: the content of data/weights.json.

    Source: reference section 1.
    """
    if weights.count == "none":
        return np.ones(len(counts), np.float32)
    each: npt.NDArray[np.float32] = np.minimum(np.log1p(counts) / weights.mean, weights.clip).astype(np.float32)
    return each


def counts_of(samples: Any, weights: WeightsParams | SampleWeights) -> npt.NDArray[np.int64]:
    """Return the counts that `weights` names, int64 [N], of a batch or a dataset of the shards."""
    return np.asarray(getattr(samples, _column(weights)))


def _column(weights: WeightsParams | SampleWeights) -> str:
    """Return the column of the counts that weigh, or that would if ``weights.count`` were not none."""
    return "rating_number" if weights.count == "none" else weights.count
