"""Features of both encoders and the score of each item, as a table for other programs: search, clustering, a probe.

Input: a saved model, and a CSV file of items as of `effimini predict`, or a split of shards. Output: a parquet file,
one row per item in the order of the input. Guarantees: features and scores are those of the model on its training and
prediction inputs; rows are written as they are computed, and the file appears when it is complete.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from effimini.inference import clamp, to_device
from effimini.metrics import Array
from effimini.model import WEIGHTS_FILE, EffiMini, image_width
from effimini.precheck import GRAPH
from effimini.predict import (
    ITEMS_PER_BATCH,
    Written,
    batch_inputs,
    load_network,
    read_items,
    report_faults,
    warn_of_demo,
    written,
)
from prep.core import writers
from prep.core.errors import UserError
from prep.core.keys import item_id
from prep.core.progress import bar
from prep.core.tables.column import required
from shards.loader import Loader
from shards.location import ShardLocation
from shards.stream import ShardDataset
from shards.tokens import TokenizationConfig

log = logging.getLogger(__name__)

_VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))
OF_ITEMS = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("has_image", pa.bool_()),
        required("image_features", _VECTOR),  # [F]; zeros without an image
        required("text_features", _VECTOR),  # [D]
        required("score", pa.float32()),  # stars, 1 to 5
    ]
)
# Of shards, whose items have a category, and labels to compare with.
OF_SHARDS = pa.schema(
    [
        required("category", pa.string()),
        *OF_ITEMS,
        required("average_rating", pa.float32()),
        required("rating_number", pa.int64()),
    ]
)


def embed_items(model: Path, items: Path, images: Path, out: Path, strict: bool = False) -> Written:
    """Write `OF_ITEMS` of each item of a CSV file.

    Args:
        model: a folder written by `EffiMini.save_pretrained`.
        items: as of `effimini.predict.predict`.
        images: the folder that image_paths is relative to.
        out: the parquet file.
        strict: whether an item whose images cannot be read is an error; otherwise it has none.

    Raises:
        UserError: as `effimini.predict.predict`, or the model is an exported one.
    """
    network, device = _network(model)
    rows = read_items(items, images, network.config)
    report_faults(items, rows, strict)

    def batches() -> Iterator[pa.RecordBatch]:
        for first in bar(range(0, len(rows), ITEMS_PER_BATCH), f"embed: batches of {ITEMS_PER_BATCH} items"):
            batch = rows[first : first + ITEMS_PER_BATCH]
            inputs = batch_inputs(network.config, network.tokenizer, batch)
            ids, has_image = [item.id for item in batch], inputs[3]
            columns = [ids, has_image, *_embed(network, *(torch.from_numpy(array).to(device) for array in inputs))]
            yield pa.RecordBatch.from_arrays(_arrays(columns, OF_ITEMS), schema=OF_ITEMS)

    writers.write_batches(out, OF_ITEMS, batches())
    return written(out, rows)


def embed_shards(model: Path, location: ShardLocation, categories: Sequence[str], split: str, out: Path) -> Written:
    """Write `OF_SHARDS` of each sample of a split.

    Args:
        model: as of `embed_items`.
        location: of the shards.
        categories: to read, in this order.
        split: train, validation or test.
        out: the parquet file.

    Raises:
        UserError: the model is an exported one, or the shards cannot be read or have images of another size.
    """
    network, device = _network(model)
    config = network.config
    data = ShardDataset(
        location.url,
        categories,
        split,
        TokenizationConfig(str(model), config.fields, config.max_tokens),
        cache_bytes=location.cache_bytes,
        connections=location.connections,
        tabular=config.tabular,
    )
    if (found := data.shards.image_size) != config.size:
        raise UserError(
            f"{location.url} contains images of {found} px and {model} reads {config.size} px; use a model that was "
            "trained on such shards"
        )
    loader = Loader(data, batch_size=ITEMS_PER_BATCH, seed=None, workers=1)
    without_image = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal without_image
        for batch in bar(loader, f"embed {split}: batches of {ITEMS_PER_BATCH} items", len(loader)):
            without_image += int((~batch.has_image).sum())
            names = zip(*(key.split("/", 1) for key in batch.keys), strict=True)
            category, keys = (list(name) for name in names)
            found = _embed(network, *to_device(batch, device))
            columns = [
                category,
                list(map(item_id, keys)),
                batch.has_image.numpy(),
                *found,
                batch.label.numpy(),
                batch.rating_number.numpy(),
            ]
            yield pa.RecordBatch.from_arrays(_arrays(columns, OF_SHARDS), schema=OF_SHARDS)

    return Written(str(out), writers.write_batches(out, OF_SHARDS, batches()), without_image, [])


def _network(model: Path) -> tuple[EffiMini, torch.device]:
    if (model / GRAPH).exists() and not (model / WEIGHTS_FILE).exists():
        raise UserError(
            f"{model} is an exported model, which gives scores and no features; name the model folder that it was "
            "exported from"
        )
    network, device = load_network(model)
    warn_of_demo(network.config, model)
    return network, device


@torch.inference_mode()
def _embed(
    network: EffiMini,
    images: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    has_image: torch.Tensor,
    tabular: torch.Tensor,
) -> tuple[Array, Array, Array]:
    """Return image features [B, F], text features [B, D] and stars [B], all float32; arguments as of the model."""
    features = network.features(images, tokens, mask, has_image)
    stars = network.stars(features, tokens, mask, tabular)
    head = features[:, -len(network.feature_mean) :].float().cpu().numpy()
    width = image_width(network.image)
    return head[:, :width], head[:, width:], clamp(stars.cpu().numpy())


def _arrays(columns: Sequence[Any], schema: pa.Schema) -> list[pa.Array]:
    return [
        _vectors(column) if field.type == _VECTOR else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]


def _vectors(rows: Array) -> pa.Array:
    """Return the rows of an array, float32 [B, F], as lists."""
    ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(rows.ravel()), type=_VECTOR)
