"""Measure what length-bucketed batches save, and their effect on shuffling.

    python -m benchmarks.sampler

Input: the Amazon items of the corpus with their texts, 160 tokens on average (see `benchmarks.stream_data`). Output,
for several numbers of batches per bucket: the fraction of padding; the similarity of the samples of a batch (the
variance of the batch means relative to random batches; 1 is a perfect shuffle) in label, log rating_number and length;
how often two samples of a batch are in the same batch again in the next epoch, relative to chance; and whether a model
learns less: the change in validation PLCC of a linear model on hashed words, trained by SGD on these batches, relative
to batches without length buckets, paired over seeds, with its 95 % interval.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import sklearn
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import HashingVectorizer

from benchmarks.stream_data import rows
from effimini.metrics import plcc
from shards.sampler import EpochSampler

Floats = npt.NDArray[np.float64]

POOLS = (1, 4, 8, 16, 64)
SHARD = 100  # items per shard, to have many shards
EPOCHS, RATE = 6, 0.5  # of the linear model
REPEATS = 8  # copies of the items, so that there are more batches than in a bucket of useful size


def epochs(
    count: int, lengths: npt.NDArray[np.int64], length_bucket_batches: int, batch: int, seed: int, number: int
) -> list[Any]:
    """Return the batches of `number` epochs, one epoch after another."""
    sizes = [min(SHARD, count - first) for first in range(0, count, SHARD)]
    batches: list[Any] = []
    for epoch in range(number):
        order = EpochSampler(
            sizes,
            batch_size=batch,
            seed=seed,
            epoch=epoch,
            length_bucket_batches=length_bucket_batches,
            lengths=lambda s: lengths[s],
        )
        batches += [order[step] for step in range(len(order))]
    return batches


def padding(batches: Sequence[Any], lengths: npt.NDArray[np.int64]) -> float:
    """Return the fraction of padding in the padded batches."""
    return 1 - sum(lengths[b].sum() for b in batches) / sum(lengths[b].max() * len(b) for b in batches)


def similarity(batches: Sequence[Any], values: Floats) -> float:
    """Return the variance of the batch means relative to batches drawn at random without replacement."""
    size = np.mean([len(b) for b in batches])
    expected = values.var() / size * (len(values) - size) / (len(values) - 1)
    return float(np.var([values[b].mean() for b in batches]) / expected)


def meetings(first: Sequence[Any], second: Sequence[Any], count: int) -> float:
    """Return how often two samples of a batch are together again in the next epoch, relative to chance."""
    of_first, of_second = np.empty(count, int), np.empty(count, int)
    for numbers, batches in ((of_first, first), (of_second, second)):
        for number, samples in enumerate(batches):
            numbers[samples] = number
    table = np.zeros((len(first), len(second)))
    np.add.at(table, (of_first, of_second), 1)
    again = (table * (table - 1)).sum()
    together = sum(len(b) * (len(b) - 1) for b in first)
    chance = sum(len(b) * (len(b) - 1) for b in second) / (count * (count - 1))
    return float(again / together / chance)


def trained_plcc(batches: Sequence[Any], words: Any, labels: Floats, train: int) -> float:
    """Return the PLCC of a linear model on the items from `train` on, trained by SGD on `batches` of the others."""
    weights, bias = np.zeros(words.shape[1]), labels[:train].mean()
    for number, batch in enumerate(batches):
        rate = RATE * (1 - number / len(batches))
        error = np.clip(words[batch] @ weights + bias - labels[batch], -1, 1)  # the gradient of Huber's loss
        weights -= rate * (words[batch].T @ error) / len(batch)
        bias -= 0.1 * rate * error.mean()
    return plcc((words[train:] @ weights + bias).astype(np.float32), labels[train:].astype(np.float32))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    chosen = parser.parse_args()
    items = rows()
    labels = np.array([metadata["average_rating"] for metadata, _, _ in items])
    counts = np.log1p([metadata["rating_number"] for metadata, _, _ in items])
    lengths = np.array([len(ids) for _, _, ids in items])
    words = HashingVectorizer(n_features=2**14).transform(text for _, text, _ in items)
    train = len(items) * 4 // 5
    many = np.tile(np.arange(len(items)), REPEATS)
    table = Table(title=f"{len(items)} Amazon items, {lengths.mean():.0f} tokens on average, batches of {chosen.batch}")
    for column in (
        "batches per bucket",
        "padding",
        "similarity: label",
        "log count",
        "length",
        "together again",
        "PLCC",
        "change",
    ):
        table.add_column(column, justify="right")
    base: Floats | None = None
    for length_bucket_batches in POOLS:
        two = [epochs(len(many), lengths[many], length_bucket_batches, chosen.batch, seed, 1) for seed in (0, 1)]
        found = np.array(
            [
                trained_plcc(epochs(train, lengths, length_bucket_batches, 16, seed, EPOCHS), words, labels, train)
                for seed in range(chosen.seeds)
            ]
        )
        base = found if base is None else base
        change = found - base
        error = change.std(ddof=1) / np.sqrt(len(change))
        table.add_row(
            str(length_bucket_batches),
            f"{padding(two[0], lengths[many]):.1%}",
            *(f"{similarity(two[0], values[many]):.2f}" for values in (labels, counts, lengths.astype(float))),
            f"{meetings(*two, len(many)):.2f}",
            f"{found.mean():.4f}",
            "" if length_bucket_batches == 1 else f"{change.mean():+.4f} ± {1.96 * error:.4f}",
        )
    Console().print(table)
    print(f"{chosen.seeds} seeds; python {sys.version.split()[0]}, numpy {np.__version__}, scipy {scipy.__version__}, "
          f"scikit-learn {sklearn.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
