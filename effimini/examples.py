"""The samples that a person looks at first: where the model was nearest, and where it was farthest off.

In: a split and the model's stars. Out: a few samples with image, text, label and prediction. Deterministic: equal
errors stand in the order of the split.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from effimini.metrics import Stars
from prep.core.fields import assemble
from prep.core.templates import data_url
from shards.stream import ShardDataset

SHOWN = 6  # of each kind


class Example(NamedTuple):
    """A sample and what was predicted."""

    parent_asin: str
    category: str
    title: str
    image: str  # a data: URL, empty without an image
    text: str  # as the model reads it, before it is cut to max_tokens
    average_rating: float  # stars
    rating_number: int
    prediction: float  # stars


def examples(split: ShardDataset, stars: Stars, fields: Sequence[str]) -> dict[str, list[Example]]:
    """Return samples by kind: the nearest predictions, the most too low, the most too high; the farthest first.

    Args:
        split: the samples.
        stars: of each of them, float32 [N].
        fields: text fields, in order, as the model reads them.
    """
    off = stars - split.labels
    order = np.argsort(off, kind="stable")
    low, high = order[:SHOWN], order[::-1][:SHOWN]
    chosen = {
        "Predicted too low": low[off[low] < 0],
        "Predicted too high": high[off[high] > 0],
        "Nearest": np.argsort(np.abs(off), kind="stable")[:SHOWN],
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
