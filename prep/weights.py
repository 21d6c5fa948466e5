"""Weights stage: the constant that turns a rating count into the weight of a sample, and the weights.

Input: the training parts of ``data/sample/`` and ``data/exclusions/``.
Output: ``data/weights.json``.
Guarantees: the mean is over the training split at the current fraction, before clipping, and does not depend on the row
order.
"""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.params import Params, WeightsParams, narrow
from prep.core.parts import TRAIN, kept_rows, sample_parts

READS = ("source.categories", "weights")
CHOSEN = tuple(field.name for field in fields(WeightsParams))  # the parameters that data/weights.json repeats


class SampleWeights(msgspec.Struct, frozen=True):
    """The constants of sample weights: the content of data/weights.json."""

    count: str  # column with the count; none: every sample has weight 1
    mean: float  # mean of the weights over the training split, before they are divided by it and clipped
    clip: float  # largest weight
    samples: int  # number of training samples
    half_at: int = 0  # 0: log1p(count); else count / (count + half_at)

    @property
    def formula(self) -> str:
        """The weight of a sample, for people."""
        if self.count == "none":
            return "1"
        raw = f"{self.count} / ({self.count} + {self.half_at})" if self.half_at else f"log1p({self.count})"
        return f"{raw} / {self.mean:.4g}, at most {self.clip:g}"


def weights(params: Params, data: Path = Path("data")) -> None:
    """Write ``data/weights.json``: the result of `constant` for the training samples of all categories.

    Raises:
        UserError: a category has no sample or no exclusions, or as in `constant`.
    """
    params = narrow(params, READS)
    parts = [part for c in params.source.categories for part in sample_parts(data, c) if part.stem.startswith(TRAIN)]
    name = _column(params.weights)
    counts = np.concatenate([kept_rows(part, [name])[name].to_numpy() for part in parts])
    writers.write_json(data / "weights.json", constant(counts, params.weights))


def read_weights(path: Path) -> SampleWeights:
    """Read ``data/weights.json``.

    Raises:
        UserError: the file does not exist, or is not valid.
    """
    try:
        return msgspec.convert(files.read_json(path), SampleWeights)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not valid ({error}); run `dvc repro --force --single-item weights`") from None


def check_weights(weights: SampleWeights, path: Path, samples: int, chosen: WeightsParams | None = None) -> None:
    """Check that the weights were made for these shards and parameters.

    Args:
        weights: the content of `path`.
        path: path of the file, for the error message.
        samples: number of training samples in the shards.
        chosen: the ``weights`` section of the parameters; None if unknown.

    Raises:
        UserError: they were made for other shards or parameters.
    """
    of_params = {name: getattr(chosen, name) for name in CHOSEN} if chosen else {}
    wanted = {"samples": samples} | of_params
    for name, value in wanted.items():
        if (found := getattr(weights, name)) != value:
            raise UserError(
                f"{path} has {name} {found}, expected {value}, so it is from another run; run `dvc checkout`, or "
                "`dvc repro weights`"
            )


def constant(counts: npt.NDArray[np.int64], weights: WeightsParams) -> SampleWeights:
    """Return the constants of sample weights: the parameters, the mean and the number of samples.

    The weight of a sample is min(log1p(count) / mean, clip), as in the paper. With ``weights.half_at`` k it is
    min(count / (count + k) / mean, clip): the label is an average of `count` ratings, so its noise has the variance
    s2 / count, and 1 / (t2 + s2 / count) is proportional to count / (count + s2 / t2), where t2 is the variance of what
    the model does not know about the true means. With ``weights.count: none`` it is 1.

    Args:
        counts: int64 [N], the counts of the training samples.
        weights: the ``weights`` section of the parameters.

    Raises:
        UserError: the count is 0 for all training samples, so the mean is 0.
    """
    column = weights.count
    # fsum is exact, so the result is the same on every machine and in every order
    values, times = np.unique(counts, return_counts=True)
    raw = raw_weights(values, weights.half_at).tolist()
    mean = math.fsum(weight * int(n) for weight, n in zip(raw, times, strict=True)) / len(counts)
    if column == "none":
        mean = 1.0
    if mean == 0:
        raise UserError(
            f"weights.count is {column}, and it is 0 for all {len(counts)} training samples; set weights.count: none"
        )
    return SampleWeights(column, float(f"{mean:.12g}"), weights.clip, len(counts), weights.half_at)


def sample_weights(counts: npt.NDArray[np.int64], weights: SampleWeights) -> npt.NDArray[np.float32]:
    """Return the weight of each sample, as `constant` says.

    Args:
        counts: int64 [N], the count of each sample.
        weights: the content of data/weights.json.

    Returns:
        float32 [N].
    """
    if weights.count == "none":
        return np.ones(len(counts), np.float32)
    result: npt.NDArray[np.float32] = np.minimum(
        raw_weights(counts, weights.half_at) / weights.mean, weights.clip
    ).astype(np.float32)
    return result


def raw_weights(counts: npt.NDArray[np.int64], half_at: int) -> npt.NDArray[np.float64]:
    """Return the weights before they are divided by their mean and clipped, float64 [N]."""
    return counts / (counts + half_at) if half_at else np.log1p(counts)


def counts_of(samples: Any, weights: WeightsParams | SampleWeights) -> npt.NDArray[np.int64]:
    """Return the counts, int64 [N], of a batch or a dataset of the shards, from the column that `weights` names."""
    return np.asarray(getattr(samples, _column(weights)))


def _column(weights: WeightsParams | SampleWeights) -> str:
    """Return the column of the counts; rating_number if ``weights.count`` is none."""
    return "rating_number" if weights.count == "none" else weights.count
