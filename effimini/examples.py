"""Example samples for the report: those with the smallest and the largest errors, and labels to check.

Input: a split and the model's stars. Output: a few samples with image, text, label and prediction. Deterministic: equal
errors keep the order of the split.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from effimini.metrics import Stars
from prep.core.fields import assemble
from prep.core.templates import data_url
from shards.stream import ShardDataset

SHOWN = 6  # of each kind
SUSPECTS = 12  # labels to check


class Example(NamedTuple):
    """A sample and its prediction."""

    parent_asin: str
    category: str
    title: str
    image: str  # a data: URL, empty if there is no image
    text: str  # as the model reads it, before it is cut to max_tokens
    average_rating: float  # stars
    rating_number: int
    prediction: float  # stars


def examples(split: ShardDataset, stars: Stars, fields: Sequence[str]) -> dict[str, list[Example]]:
    """Return samples by kind, the most extreme first: predicted too low, too high, nearest, and labels to check.

    Labels to check have the largest error times log(1 + rating_number): many ratings disagree with the prediction.

    Args:
        split: the samples.
        stars: the prediction of each sample, float32 [N].
        fields: the text fields of the model, in order.
    """
    error = stars - split.labels
    order = np.argsort(error, kind="stable")
    low, high = order[:SHOWN], order[::-1][:SHOWN]
    by_count = np.abs(error) * np.log1p(split.rating_number)
    chosen = {
        "Predicted too low": low[error[low] < 0],
        "Predicted too high": high[error[high] > 0],
        "Nearest": np.argsort(np.abs(error), kind="stable")[:SHOWN],
        "Labels to check": np.argsort(-by_count, kind="stable")[:SUSPECTS],
    }
    return {
        kind: [_example(split, i, float(stars[i]), fields) for i in found.tolist()] for kind, found in chosen.items()
    }


def _example(split: ShardDataset, i: int, prediction: float, fields: Sequence[str]) -> Example:
    metadata = split.metadata(i)
    image = data_url(split.image(i)) if metadata["has_image"] else ""
    return Example(
        metadata["parent_asin"],
        split.categories[i],
        metadata["title"],
        image,
        assemble(metadata, fields),
        metadata["average_rating"],
        metadata["rating_number"],
        prediction,
    )
