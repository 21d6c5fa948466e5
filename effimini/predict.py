"""Predictions for items that are in no shard: the challenge's input file to its submission file.

In: a saved or an exported model, a CSV file of items, a folder of images. Out: a CSV file with a score for each item.
Guaranteed: text is cleaned and assembled, and images are fitted and encoded, by the functions that made the
training data; the output is whole or absent; no image outside the folder is read.
"""

import ast
import csv
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from effimini import cost
from effimini.export import GRAPH, Array, Graph
from effimini.inference import STARS
from effimini.model import CONFIG_FILE, Config, EffiMini
from prep.core import files, memory
from prep.core.errors import UserError
from prep.core.fields import LABELS, assemble
from prep.core.progress import bar
from prep.core.text import clean, clean_details, clean_list
from shards import tokens
from shards.images.pixels import Unusable, decode, to_training
from validation import columns
from validation.suites import PREDICT_INPUT_SUITE
from validation.verdicts import require

log = logging.getLogger(__name__)

INPUT_COLUMNS = ("parent_asin", "main_category", "title", "features", "description", "image_paths")
SEPARATORS = {"features": " | ", "description": " "}  # between the parts of a list, as in the sample table
ITEMS_PER_BATCH = 32


class Item(NamedTuple):
    """A row of the input, checked."""

    id: str
    text: str
    image: Path | None


class Scorer(NamedTuple):
    """What scores items, whichever library runs it."""

    config: Config
    tokenizer: Tokenizer
    parameters: int
    flops: int  # of one sample
    score: Callable[..., npt.NDArray[np.float32]]  # the arguments of `EffiMini.forward` as arrays; stars, not clamped


def predict(model: Path, items: Path, images: Path, out: Path) -> None:
    """Write a score for each item of the CSV file `items` to `out`.

    Args:
        model: a folder written by `EffiMini.save_pretrained`, or by `export`, which onnxruntime runs on the CPU.
        items: CSV with `INPUT_COLUMNS`; further columns named as a text field (store, details) are read where the
            model's text uses them. Lists may be plain text, JSON or Python lists. Image paths are separated
            by ";" and relative to `images`; the first one is used, an empty cell is an item without an
            image.
        images: the folder of images.
        out: CSV with item_id, score (2 decimals, 1 to 5), params (millions) and flops (G), 1 decimal each.

    Raises:
        UserError: the model or the file cannot be read, or a row is wrong; nothing is written.

    Source: reference section 2 (challenge files).
    """
    opened = _exported(model) if (model / GRAPH).exists() else _saved(model)
    if opened.config.source == "demo":
        log.warning("%s was trained on made demo data: its scores say nothing about real products", model)
    rows = read_items(items, images, opened.config)
    costs = [f"{opened.parameters / 1e6:.1f}", f"{opened.flops / 1e9:.1f}"]
    with files.atomic_write(out) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["item_id", "score", "params", "flops"])
        for first in bar(range(0, len(rows), ITEMS_PER_BATCH), "predict"):
            part = rows[first : first + ITEMS_PER_BATCH]
            stars = np.clip(opened.score(*_batch_inputs(opened, part)), *STARS).tolist()
            writer.writerows([item.id, f"{score:.2f}", *costs] for item, score in zip(part, stars, strict=True))


def _saved(folder: Path) -> Scorer:
    """Open a model that torch runs, on the GPU if there is one."""
    network = EffiMini.from_pretrained(folder)
    costs = cost.costs(network)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    if device.type == "cpu":
        memory.keep_freed()  # a batch needs what the one before it freed

    @torch.inference_mode()
    def score(*inputs: Array) -> npt.NDArray[np.float32]:
        stars = network(*(torch.from_numpy(array).to(device) for array in inputs))
        return cast(npt.NDArray[np.float32], stars.cpu().numpy())

    return Scorer(network.config, network.tokenizer, costs.parameters, costs.flops, score)


def _exported(folder: Path) -> Scorer:
    """Open a model that onnxruntime runs."""
    try:
        config = msgspec.json.decode((folder / CONFIG_FILE).read_bytes(), type=Config)
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} is not the configuration of an exported model ({error}); "
            "run `effimini export` again"
        ) from None
    graph = Graph(folder / GRAPH, config.size)
    return Scorer(config, tokens.load_tokenizer(str(folder)), graph.parameters, graph.flops, graph.score)


def read_items(path: Path, images: Path, config: Config) -> list[Item]:
    """Read and check every row of the input, by the suite `validation.suites.PREDICT_INPUT_SUITE`.

    Raises:
        UserError: the file or a column is absent, an id is empty or twice there, a cell is a list of other things than
            texts, or an image path leaves `images` or does not exist; the sentence names lines.
    """
    rows = list(_csv_rows(path))
    pictures = [_image_file(row["image_paths"], images) for _, row in rows]
    checked = {
        "line": [f"line {line}" for line, _ in rows],
        "parent_asin": [row["parent_asin"].strip() or None for _, row in rows],
        "not_text": [next((row[name] for name in SEPARATORS if _parts(row[name]) is None), None) for _, row in rows],
        "outside": [picture.outside for picture in pictures],
        "missing": [picture.missing for picture in pictures],
    }
    found = columns.check_columns("input", PREDICT_INPUT_SUITE, [pa.table(checked, PREDICT_INPUT_SUITE.schema)])
    require(str(path), found, lambda: "correct these lines, or leave cells empty")
    if absent := [name for name in config.fields if rows and name not in rows[0][1]]:
        log.warning("%s has no column %s, which the model was trained with", path, ", ".join(absent))
    return [
        Item(
            row["parent_asin"].strip(),
            assemble({name: _field(name, row.get(name, "")) for name in LABELS}, config.fields),
            picture.path,
        )
        for (_, row), picture in zip(rows, pictures, strict=True)
    ]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row with the line it ends in."""
    csv.field_size_limit(sys.maxsize)  # descriptions are longer than the module's default
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if absent := [name for name in INPUT_COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(
                    f"{path}, line 1: no column {', '.join(absent)}; the header must name {', '.join(INPUT_COLUMNS)}, "
                    f"found {', '.join(reader.fieldnames or ()) or 'nothing'}"
                )
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: the row has not the {len(reader.fieldnames or ())} cells of "
                        "the header; put text that holds commas or quotes in quotes"
                    )
                yield reader.line_num, row
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; --input names the CSV file of items") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; --input names the CSV file of items") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{path}, after line {reader.line_num}: not CSV ({error}); quote cells with quotes in them"
        ) from None


def _field(name: str, cell: str) -> str:
    """Clean a cell as the sample stage cleans the field."""
    if name == "details":
        return clean_details(cell)
    if name not in SEPARATORS:
        return clean(cell)
    return clean_list(_parts(cell) or [], SEPARATORS[name])


def _parts(cell: str) -> list[str] | None:
    """Return the strings of a JSON or Python list, None if it has others; a cell that is no list is its only part."""
    if cell.lstrip().startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                parts = read(cell)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            return parts if isinstance(parts, list) and all(isinstance(part, str) for part in parts) else None
    return [cell]


class _ImageFile(NamedTuple):
    """The first image of a cell, or what is wrong with it."""

    path: Path | None = None
    outside: str | None = None
    missing: str | None = None


def _image_file(cell: str, images: Path) -> _ImageFile:
    name = next(filter(None, (part.strip() for part in cell.split(";"))), None)
    if name is None:
        return _ImageFile()
    if "\0" in name or not (path := (images / name).resolve()).is_relative_to(images.resolve()):
        return _ImageFile(outside=name)
    return _ImageFile(path) if path.is_file() else _ImageFile(missing=name)


def _batch_inputs(model: Scorer, items: list[Item]) -> tuple[Array, Array, Array, Array]:
    """Return the arguments of `EffiMini.forward` as arrays."""
    config = model.config
    ids = tokens.encode(model.tokenizer, [item.text for item in items], config.max_tokens)
    padded, mask = tokens.pad(ids, tokens.pad_id(model.tokenizer))
    pixels = np.zeros((len(items), config.size, config.size, 3), np.uint8)
    for row, item in enumerate(items):
        if item.image is not None:
            pixels[row] = _pixels(item, config)
    return pixels.transpose(0, 3, 1, 2), padded, mask, np.array([item.image is not None for item in items])


def _pixels(item: Item, config: Config) -> npt.NDArray[np.uint8]:
    """Return an image as training saw its images: fitted, encoded as JPEG, decoded."""
    assert item.image is not None
    fit = cast(Literal["squash", "letterbox", "crop"], config.fit)
    try:
        made = to_training(item.image.read_bytes(), config.size, fit, config.quality, config.max_pixels)
    except Unusable as error:
        raise UserError(
            f"item {item.id}: image {item.image} is unusable ({error.outcome}); replace it or leave image_paths empty"
        ) from None
    return decode(made.image)
