"""Publish shards as a dataset on the Hugging Face hub.

Input: shards. Output: a dataset repository with a card, whose configurations `datasets.load_dataset` and the hub's
viewer read, a Croissant description, and either the files of the shards, or one parquet file per category and split
with ids, labels, counts and numbers. Guarantees: images and texts are published only under a stated licence; every
file is one that a manifest lists, of its size and sha256; data of an earlier version is removed, and nothing else; the
same shards give the same files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from prep.core import writers
from prep.core.errors import UserError
from prep.core.keys import item_id
from prep.core.progress import bar
from prep.core.tables.column import required
from shards import card, croissant, hub
from shards.index import tabular_values
from shards.location import File, ShardLocation, index_file
from shards.manifest import MANIFEST_FILE, Manifest

# What `publish` writes into a repository, and so may remove from it.
_OURS = (card.CARD_FILE, croissant.CROISSANT_FILE, "*.tar", "*.arrow", f"*/{MANIFEST_FILE}", "*.parquet")


def publish(
    location: ShardLocation,
    categories: Sequence[str],
    name: str,
    licence: str = "",
    *,
    content: bool = True,
    private: bool = False,
    branch: str | None = None,
) -> str:
    """Publish categories of a location, and return the commit.

    Args:
        location: a local folder if `content`.
        categories: the categories; those that the repository has besides are removed.
        name: the repository, OWNER/NAME; it is created if there is none.
        licence: of the images and texts, by the hub's name; "" if none is stated.
        content: whether images and texts are published.
        private: whether a new repository is private.
        branch: the branch, which is created if there is none; None is main.

    Raises:
        UserError: `content` without a licence, a file is missing or damaged, or as in `shards.hub`.
    """
    if content and licence in {"", "unknown"}:
        raise UserError(
            "images and texts are not published without a stated licence; state it with --license, for example "
            "--license cc-by-4.0, or publish ids, splits, labels, counts and numbers alone with --without-content"
        )
    if content and location.local_path is None:
        raise UserError(f"{location.url} is not a local folder; copy the shards to one, and publish that")
    manifests = [location.manifest(category) for category in categories]
    text = card.of_location(location, categories, licence=licence, content=content)
    created = hub.create(name, "dataset", private=private, branch=branch)  # first, because verifying takes a while
    with TemporaryDirectory(prefix="effimini-publish-") as temporary:
        folder = Path(temporary)
        for manifest in manifests:
            (folder / manifest.category).mkdir()
            (_link if content else _write_labels)(location, manifest, folder / manifest.category)
        (folder / card.CARD_FILE).write_text(text, encoding="utf-8")
        about = croissant.describe(manifests, name, hub.page(name, "dataset"), licence, created, content=content)
        writers.write_json(folder / croissant.CROISSANT_FILE, about)
        return hub.upload(folder, name, "dataset", branch, _OURS)


def label_schema(manifest: Manifest) -> pa.Schema:
    """Return the schema of published labels: id, category, label, counts, and the tabular columns, null if missing."""
    return pa.schema(
        [
            required("parent_asin", pa.string()),
            required("category", pa.string()),
            required("average_rating", pa.float32()),
            required("rating_number", pa.int64()),
            required("review_count", pa.int64()),
            required("has_image", pa.bool_()),
            *(pa.field(name, pa.float32()) for name in manifest.tabular),
        ]
    )


def _link(location: ShardLocation, manifest: Manifest, folder: Path) -> None:
    """Link the files that a manifest lists, and the manifest, into a folder, after verifying them."""
    assert location.local_path is not None
    source = (location.local_path / manifest.category).absolute()
    for shard in bar(manifest.shards, f"publish {manifest.category}, verify: shards"):
        location.content(File(f"{manifest.category}/{shard.name}", shard.bytes, shard.sha256))
        location.content(index_file(manifest.category, shard))
        for name in (shard.name, shard.index):
            (folder / name).symlink_to(source / name)
    (folder / MANIFEST_FILE).symlink_to(source / MANIFEST_FILE)


def _write_labels(location: ShardLocation, manifest: Manifest, folder: Path) -> None:
    """Write the labels of each split as parquet, from the indexes."""
    schema = label_schema(manifest)

    def rows(split: str) -> Iterator[pa.RecordBatch]:
        for shard in manifest.shards:
            if shard.split == split:
                index = location.index(
                    manifest.category, shard, manifest.tokens.max_tokens, tabular=len(manifest.tabular)
                )
                columns: dict[str, Any] = {"parent_asin": pa.array(map(item_id, index["key"].to_pylist()), pa.string())}
                columns["category"] = pa.repeat(manifest.category, len(index))
                columns |= {label: index[label] for label in list(card.LABEL_FIELDS)[2:]}
                numbers = tabular_values(index)
                columns |= {
                    column: pa.array(numbers[:, place].copy(), from_pandas=True)  # NaN becomes null
                    for place, column in enumerate(manifest.tabular)
                }
                yield from pa.table(columns, schema).to_batches()

    for split in {shard.split: None for shard in manifest.shards}:
        writers.write_batches(folder / f"{split}.parquet", schema, rows(split))
