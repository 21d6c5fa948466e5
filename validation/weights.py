"""Checks of ``data/weights.json``: a mean weight of 1 over the training samples, and valid weights.

Input: the file and the parts of the sample. Output: verdicts. The mean is recomputed from the sample, part by part.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prep.core.params import WeightsParams
from prep.core.parts import TRAIN, kept_rows
from prep.core.tables.sample import SAMPLE
from prep.weights import CHOSEN, raw_weights, read_weights
from validation.verdicts import Verdict, judge

_TOLERANCE = 1e-6  # of the mean weight; the file has 12 digits


def check_weights_file(path: Path, parts: Sequence[Path], chosen: WeightsParams) -> list[Verdict]:
    """Check the sample weights.

    Args:
        path: ``data/weights.json``.
        parts: the parts of the sample of all categories; if empty, the mean is not checked.
        chosen: the parameters ``weights``.

    Raises:
        UserError: the file is missing or has no weights.
    """
    written = read_weights(path)
    different = [
        f"{name} {getattr(written, name)}, not {getattr(chosen, name)}"
        for name in CHOSEN
        if getattr(written, name) != getattr(chosen, name)
    ]
    verdicts = [judge("weights", "count, half_at and clip as in params.yaml", len(CHOSEN), different)]
    train = [part for part in parts if part.stem.startswith(TRAIN)]
    if not train or written.count not in SAMPLE.names:
        return verdicts
    samples, total, outside = 0, 0.0, []
    for part in train:
        rows = kept_rows(part, ["parent_asin", written.count])
        with np.errstate(all="ignore"):  # a negative count or a mean of 0 is reported below
            weight = raw_weights(rows[written.count].to_numpy(), written.half_at) / written.mean
        samples, total = samples + len(weight), total + float(weight.sum())
        wrong = np.flatnonzero(~((weight >= 0) & np.isfinite(weight)))
        outside += [f"{rows['parent_asin'][int(i)]} ({weight[i]:.3g})" for i in wrong]
    mean = total / max(samples, 1)
    return [
        *verdicts,
        judge(
            "weights",
            "samples = rows of the training parts that are not excluded",
            samples,
            [written.samples] * (written.samples != samples),
        ),
        judge(
            "weights",
            "a mean weight of 1 over the training samples before clipping",
            samples,
            [mean] * (not abs(mean - 1) < _TOLERANCE),
        ),
        judge("weights", "finite weights of at least 0", samples, outside),
    ]
