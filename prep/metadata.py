"""Read item metadata from the hub's parquet files: ``raw_meta_<Category>/full-*.parquet``.

Input: the source.
Output: record batches of the columns used, with the same values as the JSONL of the same items: a null list is empty,
an image is its URL.
Guarantees: types come from the `datasets` features in this module and are never inferred. Only the columns used are
read. Memory is bounded by a batch and a row group, not by the file.
"""

import glob
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, List, Value, load_dataset
from huggingface_hub.errors import HfHubHTTPError

from prep import hub
from prep.core.errors import UserError, first_sentence
from prep.core.params import SourceParams
from prep.core.tabular import read_price
from prep.core.text import ABSENT
from prep.source import locate

ROWS_PER_READ = 10_000  # upper bound
FOLDER, NAMES = "raw_meta_{}", "full-*.parquet"

_STRING, _STRINGS = Value("string"), List(Value("string"))
# The files have more columns; only these are read.
_FEATURES = Features(
    {
        "parent_asin": _STRING,
        "main_category": _STRING,
        "title": _STRING,
        "average_rating": Value("float64"),
        "rating_number": Value("int64"),
        "features": _STRINGS,
        "description": _STRINGS,
        "store": _STRING,
        "details": _STRING,
        "price": _STRING,
        "videos": {"title": _STRINGS, "url": _STRINGS, "user_id": _STRINGS},
        "categories": _STRINGS,
        "images": {"hi_res": _STRINGS, "large": _STRINGS, "thumb": _STRINGS, "variant": _STRINGS},
    }
)
_NO_URL = pa.array(["", *sorted(ABSENT)])
ITEM_BATCH_SCHEMA = pa.schema(
    [
        ("parent_asin", pa.string()),
        ("main_category", pa.string()),
        ("title", pa.string()),
        ("average_rating", pa.float64()),
        ("rating_number", pa.int64()),
        ("features", pa.list_(pa.string())),
        ("description", pa.list_(pa.string())),
        ("store", pa.string()),
        ("details", pa.string()),  # the object as JSON
        ("hi_res", pa.string()),  # the first hi_res URL among the item's images
        ("large", pa.string()),  # the first large URL
        ("price", pa.float64()),
        ("video_count", pa.int64()),
        ("image_count", pa.int64()),
        ("categories", pa.list_(pa.string())),
    ]
)


def item_batches(source: SourceParams, category: str) -> Iterator[pa.RecordBatch]:
    """Yield the items of a category in file order, with `ITEM_BATCH_SCHEMA`.

    Args:
        source: the ``source`` section of the parameters.
        category: one of ``source.categories``.

    Raises:
        UserError: the source has no such files, or they are not parquet files with these columns.
    """
    urls = parquet_files(source, category)
    where = urls[0].rpartition("/")[0]
    opened = partial(
        load_dataset,
        "parquet",
        data_files=list(map(glob.escape, urls)),
        split="train",
        streaming=True,
        features=_FEATURES,
        columns=list(_FEATURES),
        batch_size=ROWS_PER_READ,
    )
    try:
        rows = hub.asking(opened, source.revision) if source.kind == "hub" else opened()
        for table in rows.with_format("arrow").iter(ROWS_PER_READ):
            yield _item_batch(table)
    except (HfHubHTTPError, httpx2.RequestError) as error:
        raise UserError(f"{where} cannot be read ({first_sentence(error)}); run again later") from error
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise UserError(
            f"{where} does not contain the hub's parquet metadata ({first_sentence(error)}); download its {NAMES} "
            "again, or set source.metadata: jsonl"
        ) from error


def parquet_files(source: SourceParams, category: str) -> list[str]:
    """Return the parquet files with a category's metadata, in order, as paths or hf:// URLs.

    Args:
        source: the ``source`` section of the parameters.
        category: one of ``source.categories``.

    Raises:
        UserError: there are none, or the source cannot be listed.
    """
    folder = FOLDER.format(category)
    location = locate(source, category)
    if source.kind == "hub":
        names = hub.listing(source.revision, folder)
        found = [hub.address(source.revision, name) for name in names if Path(name).match(NAMES)]
    elif location.is_remote:
        raise UserError(
            f"parquet files cannot be listed at {location.base}; use JSONL (source.metadata: jsonl, no --count), or "
            "set source.location to a directory, or use the hub"
        )
    else:
        found = sorted(map(str, (Path(location.base) / folder).glob(NAMES)))
    if not found:
        place = hub.REPO if source.kind == "hub" else location.base
        raise UserError(
            f"{place} has no {folder}/{NAMES}; check source.categories, or use JSONL (source.metadata: jsonl, no "
            "--count)"
        )
    return found


def _item_batch(table: pa.Table) -> pa.RecordBatch:
    """Convert rows from `_FEATURES` to `ITEM_BATCH_SCHEMA`."""
    columns: dict[str, pa.Array] = {name: table[name].combine_chunks() for name in table.column_names}
    images, videos = columns.pop("images"), columns.pop("videos")
    columns |= {name: _without_null(columns[name]) for name in ("features", "description")}
    columns |= {name: _first(pc.struct_field(images, name)) for name in ("hi_res", "large")}
    columns["price"] = pa.array(list(map(read_price, columns["price"].to_pylist())), pa.float64())
    columns["video_count"] = pc.list_value_length(pc.struct_field(videos, "url")).cast(pa.int64())
    columns["image_count"] = _image_counts(images)
    given = columns["categories"].is_valid()
    columns["categories"] = pc.if_else(given, _without_null(columns["categories"]), None)
    return pa.RecordBatch.from_arrays([columns[name] for name in ITEM_BATCH_SCHEMA.names], schema=ITEM_BATCH_SCHEMA)


def _without_null(lists: pa.ListArray) -> pa.ListArray:
    """Remove null elements, and replace null lists by empty ones."""
    valid = pc.is_valid(pc.list_flatten(lists))
    owners = pc.list_parent_indices(lists).filter(valid)
    counts = np.bincount(owners.to_numpy(), minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype("int32")
    return pa.ListArray.from_arrays(pa.array(offsets), pc.list_flatten(lists).filter(valid))


def _image_counts(images: pa.StructArray) -> pa.Array:
    """Return how many images with a URL each item has, null if its images are missing."""
    lists = [pc.struct_field(images, name) for name in ("hi_res", "large")]
    found = []
    for urls in lists:
        owners = pc.list_parent_indices(urls).to_numpy()
        places = np.arange(len(owners)) - np.searchsorted(owners, owners)
        found.append(np.stack([owners, places])[:, _is_url(pc.list_flatten(urls)).to_numpy(zero_copy_only=False)])
    owners, _ = np.unique(np.concatenate(found, axis=1), axis=1)
    missing = pc.and_(*(pc.is_null(urls) for urls in lists)).to_numpy(zero_copy_only=False)
    return pa.array(np.bincount(owners, minlength=len(images)), pa.int64(), mask=missing)


def _is_url(texts: pa.StringArray) -> pa.BooleanArray:
    return pc.and_not(pc.is_valid(texts), pc.is_in(texts, value_set=_NO_URL))


def _first(lists: pa.ListArray) -> pa.Array:
    """Return the first element of each list that is neither null nor empty, null if there is none."""
    values = pc.list_flatten(lists)
    present = _is_url(values)
    owners, first = np.unique(pc.list_parent_indices(lists).filter(present).to_numpy(), return_index=True)
    places = np.full(len(lists), -1)
    places[owners] = first
    return values.filter(present).take(pa.array(places, mask=places < 0))
