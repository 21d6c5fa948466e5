"""Prediction for items that are not in shards: from the challenge's input file to its submission file.

Input: a saved or an exported model, a CSV file of items, a folder of images. Output: a CSV file with a score for each
item. Guarantees: text and images are processed by the same functions as the training data; the output is written
atomically; no image outside the folder is read; an item whose images cannot be read is scored without one and named.
"""

import csv
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from effimini import calibration, cost, precheck
from effimini.export import Graph
from effimini.input_csv import csv_rows
from effimini.metrics import Array
from effimini.model import Config, EffiMini, read_config
from effimini.precheck import CONFIG_FILE, GRAPH
from prep.core import files, memory
from prep.core.errors import UserError, first_sentence, shown
from prep.core.fields import LABELS, assemble
from prep.core.lists import read_list
from prep.core.progress import bar
from prep.core.tables.shards import COUNTS, STARS
from prep.core.tables.tabular import TABULAR_NAMES
from prep.core.tabular import read_count, read_image_count, read_names, read_price, tabular
from prep.core.text import clean, clean_details, clean_list
from shards import tokens
from shards.images.pixels import Fit, Preparation, Resample, Unusable, to_pixels
from validation import columns
from validation.suites import PREDICT_INPUT_SUITE
from validation.verdicts import require

log = logging.getLogger(__name__)

SEPARATORS = {"features": " | ", "description": " "}  # between the elements of a list, as in the sample table
COUNT = "rating_number"
_WHOLE = re.compile(r"([0-9]{1,16})(\.0*)?")  # pandas writes 12.0 where another cell of the column is empty
ITEMS_PER_BATCH = 32
NAMED = 5  # items that a message names; it counts the others
LARGEST = 1 << 20  # bytes of an image file besides its pixels
Pixels: TypeAlias = npt.NDArray[np.uint8]


class Item(NamedTuple):
    """A validated row of the input."""

    id: str
    text: str
    image: Path | Pixels | None  # a file that can be read, or what `training_pixels` returns
    fault: str = ""  # why none of its images can be read; "" if one can, or it has none
    tabular: tuple[float | None, ...] = ()  # values of `prep.core.tables.tabular.COLUMNS`; None where missing
    ratings: int | None = None  # its rating_number, if intervals are wanted and it has one


class Written(msgspec.Struct, frozen=True):
    """A table of scores or features: what `effimini predict --json` and `effimini embed --json` print."""

    output: str  # the file
    items: int
    without_image: int  # the items that have none, or none that can be read
    image_faults: list[dict[str, str]]  # item_id and fault of those that have none that can be read


class Scorer(NamedTuple):
    """A loaded model, run by torch or onnxruntime."""

    config: Config
    tokenizer: Tokenizer
    parameters: int
    flops: int  # per sample
    score: Callable[..., npt.NDArray[np.float32]]  # `EffiMini.forward` on arrays: unclamped stars


def predict(
    model: Path,
    items: Path,
    images: Path,
    out: Path,
    strict: bool = False,
    image_faults: bool = False,
    interval: float | None = None,
    ratings: int | None = None,
) -> Written:
    """Write a score for each item of the CSV file `items` to `out`.

    Args:
        model: a folder written by `EffiMini.save_pretrained`, or by `export`, which onnxruntime runs on the CPU.
        items: CSV with `effimini.input_csv.INPUT_COLUMNS`; additional columns named like a text field (store, details),
            or like the dataset's price, images, videos and categories, are read if the model uses them. Lists may be
            plain text, JSON, or as Python, numpy or pandas print them; a word for an absent value
            (`prep.core.text.ABSENT`) is an empty cell. Image paths are separated by ";" and relative to `images`; the
            first one that can be read is used; an empty cell means that the item has none.
        images: the folder of images.
        out: CSV with item_id, score (2 decimals, 1 to 5), params (millions) and flops (G), 1 decimal each.
        strict: whether an item whose images cannot be read is an error; otherwise it is scored without an image.
        image_faults: whether `out` has a column image_fault, which says why an item is scored without its image.
        interval: the fraction of labels that the columns low and high of `out` (stars, 2 decimals) should contain;
            None if `out` has none.
        ratings: number of ratings whose mean the interval is for. None is the item's rating_number, where `items` has
            that column and it is not empty or 0, or else the median of the items that the model was trained on.

    Raises:
        UserError: the model or the file cannot be read, a row or an option is invalid, the model has no interval, or
            `strict` and an item's images cannot be read; nothing is written.
    """
    precheck.interval_options(interval, ratings)
    scorer = load(model)
    intervals = intervals_of(scorer.config, model, interval, ratings)
    rows = read_items(items, images, scorer.config, counts=interval is not None and ratings is None)
    report_faults(items, rows, strict)
    costs = [f"{scorer.parameters / 1e6:.1f}", f"{scorer.flops / 1e9:.1f}"]
    with files.atomic_write(out) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = ["low", "high"] if interval is not None else []
        writer.writerow(["item_id", "score", "params", "flops", *ends, *(["image_fault"] if image_faults else [])])
        for first in bar(range(0, len(rows), ITEMS_PER_BATCH), f"predict: batches of {ITEMS_PER_BATCH} items"):
            batch = rows[first : first + ITEMS_PER_BATCH]
            stars = stars_of(scorer, batch)
            for item, score, low_high in zip(batch, stars.tolist(), intervals(batch, stars), strict=True):
                numbers = [f"{score:.2f}", *costs, *(f"{end:.2f}" for end in low_high)]
                writer.writerow([item.id, *numbers, *([item.fault] if image_faults else [])])
    return written(out, rows)


def written(out: Path, items: Sequence[Item]) -> Written:
    """Return what was written to `out`."""
    faults = [{"item_id": item.id, "fault": item.fault} for item in items if item.fault]
    return Written(str(out), len(items), sum(item.image is None for item in items), faults)


def load(model: Path) -> Scorer:
    """Load a saved or an exported model, and warn if it was trained on demo data.

    Raises:
        UserError: it cannot be read.
    """
    scorer = _exported(model) if (model / GRAPH).exists() else _saved(model)
    warn_of_demo(scorer.config, model)
    return scorer


def warn_of_demo(config: Config, model: Path) -> None:
    """Warn if a model was trained on demo data."""
    if config.source == "demo":
        log.warning(
            "%s was trained on demo data (synthetic products): its scores say nothing about real products", model
        )


def stars_of(scorer: Scorer, batch: Sequence[Item]) -> npt.NDArray[np.float32]:
    """Return the stars of items, float32 [B], from 1 to 5.

    Raises:
        OSError, Unusable: an image file was replaced by one that cannot be read.
    """
    return np.clip(scorer.score(*batch_inputs(scorer.config, scorer.tokenizer, batch)), *STARS)


def intervals_of(
    config: Config, model: Path, coverage: float | None, ratings: int | None, dashes: str = "--"
) -> Callable[[Sequence[Item], npt.NDArray[np.float32]], list[tuple[float, ...]]]:
    """Return the function of a batch and its stars that gives (low, high) for each item, or () if `coverage` is None.

    In the message, the name of the option begins with `dashes`.

    Raises:
        UserError: the model has no interval.
    """
    if coverage is None:
        return lambda batch, _: [()] * len(batch)
    if (fitted := config.interval) is None:
        raise UserError(
            f"{model} has no interval, because it was saved by an earlier version or its validation split had fewer "
            f"than {calibration.FEWEST} samples; train again with more items, or predict without {dashes}interval"
        )

    def ends(batch: Sequence[Item], stars: npt.NDArray[np.float32]) -> list[tuple[float, ...]]:
        counts = np.array([ratings or item.ratings or fitted.ratings for item in batch], np.int64)
        low, high = calibration.bounds(fitted, stars, counts, coverage)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    return ends


def _saved(folder: Path) -> Scorer:
    """Load a saved model, which torch runs on the GPU if there is one."""
    network, device = load_network(folder)
    costs = cost.costs(network)

    @torch.inference_mode()
    def score(*inputs: Array) -> npt.NDArray[np.float32]:
        stars = network(*(torch.from_numpy(array).to(device) for array in inputs))
        return cast(npt.NDArray[np.float32], stars.cpu().numpy())

    return Scorer(network.config, network.tokenizer, costs.parameters, costs.flops, score)


def load_network(folder: Path) -> tuple[EffiMini, torch.device]:
    """Load a saved model on the GPU if there is one, and return it with its device."""
    network = EffiMini.from_pretrained(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        memory.keep_freed()  # each batch reuses the memory of the previous one
    return network.to(device), device


def _exported(folder: Path) -> Scorer:
    """Load an exported model, which onnxruntime runs."""
    config = read_config(folder / CONFIG_FILE, "the configuration of an exported model", "run `effimini export` again")
    graph = Graph(folder / GRAPH, config.size)
    tokenizer = tokens.load_tokenizer(str(folder))
    tokens.check_vocabulary(tokenizer, config.text["vocab_size"], str(folder))
    return Scorer(config, tokenizer, graph.parameters, graph.flops, graph.score)


def read_items(path: Path, images: Path, config: Config, counts: bool = False) -> list[Item]:
    """Read the input and validate every row with `validation.suites.PREDICT_INPUT_SUITE`.

    Args:
        path: the CSV file.
        images: the folder of images.
        config: the configuration of the model.
        counts: whether the column rating_number is read, if there is one.

    Raises:
        UserError: the file or a column is missing, `images` is not a folder, an id is empty or duplicated, a list
            contains values other than strings, or a count is not a whole number; the message names the lines.
    """
    rows = list(csv_rows(path))
    if not images.is_dir() and any(row["image_paths"].strip() for _, row in rows):
        raise UserError(f"{images} is not a folder; set --images to the folder that image_paths is relative to")
    checked = {
        "line": [f"line {line}" for line, _ in rows],
        "parent_asin": [row["parent_asin"].strip() or None for _, row in rows],
        "not_text": [not_text(row) for _, row in rows],
        "not_count": [not_count(row) if counts else None for _, row in rows],
    }
    found = columns.check_columns("input", PREDICT_INPUT_SUITE, [pa.table(checked, PREDICT_INPUT_SUITE.schema)])
    require(str(path), found, lambda: "correct these lines, or leave cells empty")
    if missing := [name for name in config.fields if rows and name not in rows[0][1]]:
        log.warning("%s has no column %s, which the model was trained with", path, ", ".join(missing))
    return [
        item_of(row, config, counts, *_readable_image(row["image_paths"], images, config))
        for _, row in bar(rows, "check images: items")
    ]


def item_of(row: Mapping[str, str], config: Config, counts: bool, image: Path | Pixels | None, fault: str = "") -> Item:
    """Return a validated row, without its image paths, with the text and columns that the sample stage would give it.

    Args:
        row: cells by column; an absent value is "".
        config: the configuration of the model.
        counts: whether the column rating_number is read, if there is one.
        image: as of `Item`.
        fault: as of `Item`.
    """
    texts = {name: _field(name, row.get(name, "")) for name in LABELS}
    raw = {
        "features": read_list(row["features"]) or [],
        "details": row.get("details", ""),
        "price": read_price(row.get("price")),
        "video_count": read_count(row.get("videos")),
        "image_count": read_image_count(row.get("images")),
        "categories": read_names(row.get("categories")),
    }
    return Item(
        row["parent_asin"].strip(),
        assemble(texts, config.fields),
        image,
        fault,
        tuple(tabular(raw, texts).values()),
        _count(row) if counts else None,
    )


def _field(name: str, cell: str) -> str:
    """Clean a cell in the same way as the sample stage."""
    if name == "details":
        return clean_details(cell)
    if name not in SEPARATORS:
        return clean(cell)
    return clean_list(read_list(cell), SEPARATORS[name])


def not_text(row: Mapping[str, str]) -> str | None:
    """Return the beginning of a cell with a list of anything but texts, None if there is none."""
    return next((shown(row[name]) for name in SEPARATORS if read_list(row[name]) is None), None)


def _count(row: Mapping[str, str]) -> int | None:
    """Return the rating_number of a valid row, None if it is absent or 0, which has no mean."""
    return int(row.get(COUNT, "").strip().partition(".")[0] or 0) or None


def not_count(row: Mapping[str, str]) -> str | None:
    """Return the beginning of a rating_number that is not a whole number, None if it is one or empty."""
    cell = row.get(COUNT, "").strip()
    digits = _WHOLE.fullmatch(cell)
    return None if not cell or (digits and int(digits[1]) <= COUNTS[1]) else shown(cell)


def report_faults(path: Path, items: list[Item], strict: bool) -> None:
    """Name the items whose images cannot be read.

    Raises:
        UserError: there are some, and `strict`.
    """
    faults = [f"{item.id} ({item.fault})" for item in items if item.fault]
    if not faults:
        return
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    found = (
        f"{path}: {len(faults)} of {len(items)} items have no image that can be read: {', '.join(faults[:NAMED])}{more}"
    )
    if strict:
        raise UserError(f"{found}; correct their image_paths or leave them empty, or predict without --strict")
    log.warning("%s; they are scored without an image", found)


def _readable_image(cell: str, images: Path, config: Config) -> tuple[Path | None, str]:
    """Return the first image of a cell that can be read; if none can, what is wrong with the first."""
    fault = ""
    for name in filter(None, (text.strip() for text in cell.split(";"))):
        try:
            path = (images / name).resolve()
            if path.is_relative_to(images.resolve()):
                _pixels_of_file(path, config)
                return path, ""
            why = "outside the images folder"
        except Unusable as error:
            why = str(error)
        except FileNotFoundError:
            why = "does not exist"
        except OSError as error:
            why = error.strerror or first_sentence(error) or type(error).__name__
        except (RuntimeError, ValueError) as error:  # a loop of links, a null character
            why = first_sentence(error)
        fault = fault or f"{shown(name)}: {why}"
    return None, fault


def batch_inputs(config: Config, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[Array, ...]:
    """Return the arguments of `EffiMini.forward` as arrays."""
    ids = tokens.encode(tokenizer, [item.text for item in items], config.max_tokens)
    padded, mask = tokens.pad(ids, tokens.pad_id(tokenizer))
    pixels = np.zeros((len(items), config.size, config.size, 3), np.uint8)
    for row, item in enumerate(items):
        if item.image is not None:
            pixels[row] = _pixels_of_file(item.image, config) if isinstance(item.image, Path) else item.image
    has_image = np.array([item.image is not None for item in items])
    columns = [TABULAR_NAMES.index(name) for name in config.tabular]
    tabular = np.array([item.tabular for item in items], np.float32)[:, columns]  # None becomes NaN
    return pixels.transpose(0, 3, 1, 2), padded, mask, has_image, tabular


def _pixels_of_file(path: Path, config: Config) -> Pixels:
    """Return an image file as `training_pixels`; errors as there, and OSError if it cannot be read."""
    if not path.is_file():  # a folder, or a pipe, which would never end
        raise OSError("not a file") if path.exists() else FileNotFoundError
    _check_bytes(path.stat().st_size, config)
    return training_pixels(path.read_bytes(), config)


def training_pixels(data: bytes, config: Config) -> Pixels:
    """Return an image processed like the training images: uint8 [size, size, 3], RGB.

    Raises:
        OSError: it has too many bytes.
        Unusable: it is not an image, is corrupt, too large or too small.
    """
    _check_bytes(len(data), config)
    fit, resample = cast(Fit, config.fit), cast(Resample, config.resample)
    how = Preparation(config.size, fit, config.quality, config.max_pixels, resample, config.request)
    return to_pixels(data, how)


def _check_bytes(size: int, config: Config) -> None:
    if size > LARGEST + 8 * config.max_pixels:  # no type takes more than 8 bytes for a pixel
        raise OSError("too large")
