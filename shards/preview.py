"""Preview: an HTML page that shows samples of shards.

Input: a `ShardLocation`; for a local folder also ``weights.json``, the images tables and the predictions next to it.
Output: one self-contained HTML page with embedded images and no external requests. Guarantees: the same shards, number
and seed give the same page; only tars with members that are shown are read; text of a sample is escaped; demo data is
labelled; without JavaScript only search and filters are missing.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prep.core.errors import UserError, first_sentence
from prep.core.fields import LABELS, assemble
from prep.core.parts import TRAIN
from prep.core.tables.shards import STARS, SampleMetadata
from prep.core.templates import DEMO_NOTICE, data_url, read_script, render
from prep.weights import SampleWeights, check_weights, read_weights, sample_weights
from shards.location import ShardLocation, index_file
from shards.manifest import Manifest
from shards.reader import Shards

_REMOTE_INDEXES = 1 << 28  # bytes of indexes that are worth a download for the histogram of the labels


class _Sample(NamedTuple):
    """A sample as shown on the page."""

    category: str
    metadata: SampleMetadata
    image: str  # data URL, empty if there is no image
    outcome: str  # of the fetch stage; yes or none if that is unknown
    weight: float | None
    text: str
    tokens: int


def preview_page(
    location: ShardLocation,
    categories: Sequence[str] | None = None,
    split: str = "train",
    samples: int = 48,
    seed: int = 0,
    weights: Path | None = None,
    of: Sequence[str] | None = None,
    predictions: Path | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        location: of the shards.
        categories: to show; None for all.
        split: train, validation or test.
        samples: number of samples to show, evenly divided over the categories as far as possible.
        seed: of the random choice.
        weights: path of a ``weights.json``; None uses the one next to the folder of shards, if it exists.
        of: the categories that the weights were computed from; None for all.
        predictions: path of a table as `effimini evaluate` writes it; None uses ``predictions/<split>.parquet`` next to
            the folder of shards, if it exists.

    Raises:
        UserError: a manifest, an index, a tar, the weights or the predictions cannot be read, the weights or the given
            predictions belong to other shards, or the split has no samples.
    """
    categories = categories or location.categories()
    manifests = [location.manifest(category) for category in categories]
    shards = Shards(location, categories, split, None)
    weighing = _weighing(location, weights, of)
    chosen = _choose(shards.categories, shards.sizes, samples, f"{seed} {split}")
    shards.prefetch(np.unique([shard for shard, _ in chosen]))
    shown = list(_read_samples(shards, manifests, chosen, weighing))
    predicted, predicted_in = _predictions(location, predictions, split, shown)
    return render(
        "shards",
        "preview.html.jinja",
        {
            "by_category": [(c, list(group)) for c, group in groupby(shown, lambda s: s.category)],
            "demo": DEMO_NOTICE if any(manifest.source.kind == "demo" for manifest in manifests) else "",
            "fractions": sorted({about.fraction for about in manifests if about.fraction is not None}),
            "image_size": shards.image_size,
            "labels": LABELS,
            "labels_of_split": _count_labels(location, manifests, split),
            "outcomes": sorted({sample.outcome for sample in shown}),
            "predictions": predicted,
            "predictions_file": predicted_in,
            "samples": len(shown),
            "seed": seed,
            "sources": sorted({(manifest.source.kind, manifest.source.revision) for manifest in manifests}),
            "split": split,
            "tabular": shards.tabular,
            "tokens": manifests[0].tokens,
            "total": sum(shards.sizes),
            "weighing": weighing,
            **read_script("shards", "preview.js"),
        },
    )


def _choose(categories: Sequence[str], sizes: Sequence[int], samples: int, seed: str) -> list[tuple[int, int]]:
    """Choose samples at random, evenly over the categories; return (shard, row) of each, in order."""
    first = np.concatenate([[0], np.cumsum(sizes)])
    drawn = []
    for category, group in groupby(range(len(sizes)), lambda shard: categories[shard]):
        numbers = list(group)
        population = range(first[numbers[0]], first[numbers[-1] + 1])
        drawn.append(random.Random(f"{seed} {category}").sample(population, min(samples, len(population))))
    interleaved = (number for number in chain.from_iterable(zip_longest(*drawn)) if number is not None)
    chosen = np.sort(list(islice(interleaved, samples)))
    shards = np.searchsorted(first, chosen, side="right") - 1
    return list(zip(shards.tolist(), (chosen - first[shards]).tolist(), strict=True))


def _read_samples(
    shards: Shards, manifests: Sequence[Manifest], chosen: Sequence[tuple[int, int]], weighing: SampleWeights | None
) -> Iterator[_Sample]:
    parts = [shard.part for manifest in manifests for shard in manifest.shards if shard.split == shards.split]
    fields = manifests[0].tokens.fields
    for shard, group in groupby(chosen, lambda position: position[0]):
        index, rows = shards.index(shard), [row for _, row in group]
        keys = [index.keys[row].as_py() for row in rows]
        outcomes = _outcomes(shards.location, shards.categories[shard], parts[shard], keys)
        for row, key in zip(rows, keys, strict=True):
            metadata = shards.metadata(shard, row)
            jpeg = bytes(shards.member(shard, row, "jpg")) if metadata["has_image"] else b""
            yield _Sample(
                shards.categories[shard],
                metadata,
                data_url(jpeg) if jpeg else "",
                outcomes.get(key, "yes" if jpeg else "none"),
                _weight(metadata, weighing),
                assemble(metadata, fields),
                int(index.token_starts[row + 1] - index.token_starts[row]),
            )


def _outcomes(location: ShardLocation, category: str, part: str, keys: Sequence[str]) -> dict[str, str]:
    """Return the outcome of the fetch stage by key; empty if there are no images tables next to the shards."""
    if location.local_path is None:
        return {}
    table = location.local_path.parent / "images" / category / f"{part}.parquet"
    if not table.exists():
        return {}
    return {row["parent_asin"]: row["outcome"] for row in _rows_of(table, keys, "outcome")}


def _predictions(
    location: ShardLocation, path: Path | None, split: str, shown: Sequence[_Sample]
) -> tuple[dict[tuple[str, str], float], str]:
    """Return the predicted stars by category and id, and the file that has them; both are empty without any."""
    table = path
    if table is None and location.local_path is not None:
        table = location.local_path.parent / "predictions" / f"{split}.parquet"
    if table is None or (path is None and not table.exists()):
        return {}, ""
    rows = _rows_of(table, [sample.metadata["parent_asin"] for sample in shown], "category", "prediction")
    of = {(sample.category, sample.metadata["parent_asin"]) for sample in shown}
    found = {key: row["prediction"] for row in rows if (key := (row["category"], row["parent_asin"])) in of}
    if path is not None and not found:
        raise UserError(f"{path} has no prediction of these {split} samples; name the predictions of these shards")
    return found, "/".join(table.parts[-2:]) if found else ""


def _rows_of(table: Path, ids: Iterable[str], *columns: str) -> list[dict[str, Any]]:
    """Return the rows of a table whose parent_asin is one of `ids`."""
    names = ["parent_asin", *columns]
    try:
        found = pq.read_table(table, columns=names, filters=[("parent_asin", "in", set(ids))])
        return list(found.select(names).to_pylist())
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise UserError(
            f"{table} cannot be read ({first_sentence(error)}); run `dvc checkout`, or remove it"
        ) from error


def _count_labels(location: ShardLocation, manifests: Sequence[Manifest], split: str) -> list[tuple[int, int]]:
    """Count the samples of a split by label, rounded to tenths of stars.

    Returns:
        Tenths and count, for 1 to 5 stars; empty if that takes the download of more than `_REMOTE_INDEXES`.
    """
    found = [(about, shard) for about in manifests for shard in about.shards if shard.split == split]
    if location.local_path is None:
        if sum(shard.index_bytes for _, shard in found) > _REMOTE_INDEXES:
            return []
        location.prefetch(index_file(about.category, shard) for about, shard in found)
    counts = np.zeros(10 * STARS[1] + 1, np.int64)
    for about, shard in found:
        labels = location.index(about.category, shard, about.tokens.max_tokens)["average_rating"].to_numpy()
        counts += np.bincount(np.rint(10 * labels).astype(np.int64), minlength=len(counts))
    return list(enumerate(counts.tolist()))[10 * STARS[0] :]


def _weighing(location: ShardLocation, path: Path | None, of: Sequence[str] | None) -> SampleWeights | None:
    """Return the content of weights.json, or None if no path is given and the default does not exist."""
    if path is None:
        if location.local_path is None or not (location.local_path.parent / "weights.json").exists():
            return None
        path = location.local_path.parent / "weights.json"
    weights = read_weights(path)
    manifests = [location.manifest(category) for category in of or location.categories()]
    check_weights(weights, path, sum(s.samples for about in manifests for s in about.shards if s.split == TRAIN))
    return weights


def _weight(metadata: Mapping[str, Any], weighing: SampleWeights | None) -> float | None:
    """Return the loss weight of a sample."""
    if weighing is None:
        return None
    count = 0 if weighing.count == "none" else metadata[weighing.count]
    return float(sample_weights(np.array([count]), weighing)[0])
