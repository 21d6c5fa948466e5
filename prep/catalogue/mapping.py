"""Map the columns of a table to the fields of the dataset's item metadata.

Input: a row, ``source.table``, and a function that keeps the bytes of an image.
Output: an object in the raw layout (`prep.records` parses it), or what to add to it.
Guarantees: pure, but for that function. A value without a plain meaning stays as it is, so that the parser rejects it
with its reason.

Several columns of one field: texts are joined by a space, lists one after the other, and `details` gets an object with
the columns' names.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from prep.core.lists import read_list
from prep.core.params import TableField, TableParams
from prep.core.tables.raw import LISTED
from prep.core.text import present

FIELDS: tuple[str, ...] = get_args(TableField)
HOST = "https://table.invalid/"  # of images that are no URLs: names in a folder
_TEXTS = ("main_category", "title", "store")
_LISTS = ("features", "description")
# "4.3", "4,3", "1,234", "4.3 out of 5 stars", "87/100", "24,269 ratings"
_NUMBER = re.compile(
    r"(?P<digits>[+-]?\d+(?:[.,]\d+)*|[+-]?\.\d+)\s*%?\s*"
    r"(?:(?:out of|of|/)\s*\d+\b.*|(?:global |customer )?(?:stars?|ratings?|reviews?|votes?)\b.*)?",
    re.IGNORECASE | re.DOTALL,
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?")
_BETWEEN_IMAGES = re.compile(r"[;|]|,\s*(?=https?:)|\s+(?=https?:)")
_LEVELS = re.compile(r"\s*[|>\u203a]+\s*|\s+/\s+")
_NAME = re.compile(r"[^A-Za-z0-9]+")


def columns_of(table: TableParams) -> dict[str, tuple[str, ...]]:
    """Return the columns of each field that has any."""
    given = {str(name): (one,) if isinstance(one, str) else one for name, one in table.columns.items()}
    return {name: given[name] for name in FIELDS if any(given.get(name, ()))}


def category_name(value: object) -> str:
    """Return the name of a category as ``source.categories`` has it: the first level, with words joined by _.

    A name without Latin letters or digits becomes ``category_`` and 8 digits of its hash.
    """
    first = _LEVELS.split(str(value or "").strip())[0]
    name = _NAME.sub("_", first.replace("&", " and ")).strip("_")
    return name or f"category_{hashlib.sha256(first.encode()).hexdigest()[:8]}"


def record(row: Mapping[str, Any], table: TableParams, image: Callable[[Sequence[object]], str | None]) -> Any:
    """Return the row as an object of the raw layout, JSON-serializable.

    Args:
        row: the cells by column.
        table: ``source.table``.
        image: returns the URL of the image of an item, given its texts and bytes in order; None if it has none.
    """
    columns_by_field = columns_of(table)
    cells = {name: [row.get(column) for column in columns] for name, columns in columns_by_field.items()}
    found: dict[str, Any] = {"parent_asin": _joined(cells["parent_asin"]) or ""}
    found |= {name: _joined(cells[name]) for name in _TEXTS if name in cells}
    found |= {name: [text for cell in cells[name] for text in _texts(cell)] for name in _LISTS if name in cells}
    if "average_rating" in cells:
        found["average_rating"] = stars(cells["average_rating"][0], table.rating_scale)
    if "rating_number" in cells:
        found["rating_number"] = number(cells["rating_number"][0])
    if "price" in cells:
        found["price"] = _plain(cells["price"][0])
    if "categories" in cells:
        found["categories"] = [name for cell in cells["categories"] for text in _texts(cell) for name in _levels(text)]
    found["details"] = _details(columns_by_field.get("details", ()), cells)
    if "images" in cells:
        url = image([one for cell in cells["images"] for one in images_in(cell)])
        found["images"] = [{"large": url}] if url else []
    return found


def number(value: object) -> object:
    """Return the number that a cell shows, for example of "1,234 ratings"; anything else as it is."""
    if not isinstance(value, str):
        return _plain(value)
    match = _NUMBER.fullmatch(value.strip())
    if match is None:
        return value
    digits = match["digits"]
    digits = digits.replace(",", "") if _THOUSANDS.fullmatch(digits) else digits.replace(",", ".")
    try:
        return int(digits) if digits.lstrip("+-").isdecimal() else float(digits)
    except ValueError:  # 1.2.3
        return value


def stars(value: object, scale: Sequence[float]) -> object:
    """Return a rating on a scale as stars, linearly from 1 at its low end to 5 at its high end.

    Args:
        value: a cell.
        scale: ``source.table.rating_scale``, the low and the high end.
    """
    found = number(value)
    low, high = scale
    if not isinstance(found, (int, float)) or isinstance(found, bool) or (low, high) == (1, 5):
        return found
    return round(1 + 4 * (found - low) / (high - low), 6)


def is_file(text: str, folder: str) -> bool:
    """Return whether a path names a file, whatever its characters and its length."""
    return os.path.isfile(Path(folder) / text)  # noqa: PTH113 -- Path.is_file raises if the name is too long


def chosen_image(found: Sequence[object], folder: str) -> str | bytes | None:
    """Return the image of an item: the first content, or else the first path that exists, or else the first text.

    Args:
        found: texts and contents, in order.
        folder: that paths are relative to.
    """
    contents = (one for one in found if isinstance(one, bytes) and one)
    texts = [one for one in found if isinstance(one, str)]
    here = (one for one in texts if "://" not in one and is_file(one, folder))
    return next(contents, None) or next(here, texts[0] if texts else None)


def image_name(text: str, folder: str) -> str:
    """Return the URL of an image, given a URL or a path.

    Args:
        text: a cell.
        folder: that paths are relative to.
    """
    if re.match("https?:", text):
        return text
    path = Path(text.removeprefix("file://"))
    if path.is_absolute() and path.is_relative_to(Path(folder).absolute()):
        path = path.relative_to(Path(folder).absolute())
    return HOST + quote(str(path))


def _plain(value: object) -> object:
    """Return a value as JSON has it."""
    if isinstance(value, bytes) or (isinstance(value, float) and math.isnan(value)):  # an image, or pandas' null
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value)  # dates, decimals


def _string(value: object) -> str:
    value = _plain(value)
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas writes 12.0 where another cell of the column is empty
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(cells: Sequence[object]) -> str | None:
    return " ".join(filter(None, map(_string, cells))) or None


def _texts(cell: object) -> list[str]:
    if isinstance(cell, (list, tuple)):
        return [text for text in map(_string, cell) if text]
    text = _string(cell)
    return (read_list(text) or [text]) if text else []


def _levels(text: str) -> list[str]:
    return [name for name in _LEVELS.split(text) if name]


def _details(columns: Sequence[str], cells: Mapping[str, Sequence[object]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column, cell in zip(columns, cells.get("details", ()), strict=False):
        value = _plain(cell)
        if isinstance(value, str) and value.startswith("{"):
            value = _object(value)
        if isinstance(value, dict):
            found |= value
        elif value is not None:
            found[column] = _string(value)
    if listed := _joined(cells.get("date", ())):
        found[LISTED] = listed
    return found


def _object(text: str) -> object:
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return text


def images_in(cell: object) -> Iterator[object]:
    """Yield the URLs, paths and contents of the images in a cell, in order."""
    if isinstance(cell, bytes):
        yield cell
    elif isinstance(cell, Mapping):  # an image of `datasets`, or of the dataset's own layout
        names = ("bytes", "large", "hi_res", "url", "src", "path")
        yield next((cell[name] for name in names if cell.get(name)), None)
    elif isinstance(cell, (list, tuple)):
        for one in cell:
            yield from images_in(one)
    elif text := present(str(cell or "")).strip():
        listed = read_list(text) if text.startswith(("[", "(")) else None
        for one in listed if listed is not None else _BETWEEN_IMAGES.split(text):
            if one.strip():
                yield one.strip()
