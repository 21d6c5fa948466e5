"""Read lines of the dataset that another tool has read and written again.

Input: a line that is not as the dataset has it.
Output: the values of the fields that are used, as the dataset has them.
Guarantees: a value is read if it has one plain meaning, else the line is refused with the field and its value.

What is read: NaN and nan for null; numbers as texts, counts and times as floats, times as ISO 8601; truth values as
texts or numbers; a text or a printed list for a list of texts, and numbers in it; images as an object of lists (as the
`datasets` library writes them) or with nulls; lone surrogates, NaN and Infinity in fields that are not used.
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from prep.core.errors import shown
from prep.core.lists import read_list
from prep.core.tables.raw import Kind
from prep.core.text import present

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_BEFORE = 20  # characters before an error of JSON that are shown
_MOST = 2**53  # integers above are not exact in floats
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnreadableError(Exception):
    """A line that cannot be read; the message is the field and its value, or where the line is no JSON."""


def values(kind: Kind, line: str) -> dict[str, Any]:
    """Return the values of the fields that are used, by name; an image as a mapping, fields of any type as JSON.

    Args:
        kind: items or reviews.
        line: the line.

    Raises:
        UnreadableError: the line is not a JSON object, lacks a required field, or a value has no plain meaning.
    """
    try:
        record = json.loads(line, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        begin = max(0, getattr(error, "pos", 0) - _BEFORE)
        raise UnreadableError("..." * (begin > 0) + shown(line[begin:])) from error
    if not isinstance(record, dict):
        raise UnreadableError(shown(line))
    found = {}
    for name, read in FIELDS[kind].items():
        if name in record:
            try:
                found[name] = read(record[name])
            except (ValueError, OverflowError, RecursionError) as error:
                raise UnreadableError(f"{name} {shown(record[name])}") from error
        elif name in _REQUIRED[kind]:
            raise UnreadableError(f"{name} is missing")
    return found


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    value.encode()  # an error if it has lone surrogates
    return value


def _text(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):  # a title that is a number, as pandas reads it
        return str(value)
    return None if value is None else _string(value)


def _texts(value: Any) -> list[str] | None:
    if isinstance(value, str):
        value = read_list(present(value))
        if value is None:
            raise ValueError
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError
    return [str(one) if isinstance(one, float) else str(_text(one)) for one in value if one is not None]


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        value = present(value.strip()) or None
        if value is not None and not _NUMBER.fullmatch(value):
            raise ValueError
    if value is None:
        return None
    if isinstance(value, (bool, list, dict)) or abs(number := float(value)) == float("inf"):
        raise ValueError
    return number


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value)
    number = value if isinstance(value, int) and not isinstance(value, bool) else _number(value)
    if number is None:
        return None
    if number != int(number) or abs(number) > _MOST:
        raise ValueError
    return int(number)


def _count(value: Any) -> int | None:
    count = _whole(value)
    if count is not None and count < 0:
        raise ValueError
    return count


def _rating(value: Any) -> float:
    rating = _number(value)
    if rating is None:
        raise ValueError
    return rating


def _time(value: Any) -> int:
    """Return milliseconds since 1970; a time without a zone is UTC."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        time = datetime.fromisoformat(value)
        return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
    time_in_ms = _whole(value)
    if time_in_ms is None:
        raise ValueError
    return time_in_ms


def _truth(value: Any) -> bool:
    if value is None or (isinstance(value, str) and not present(value)):
        return False
    known = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    if (text := str(value).strip().lower()) not in known:
        raise ValueError
    return known[text]


def _details(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _anything(value: Any) -> bytes:
    return json.dumps(value).encode()


def _images(value: Any) -> list[dict[str, str | None]] | None:
    if isinstance(value, str):
        value = json.loads(present(value) or "null", parse_constant=_constant)
    if isinstance(value, Mapping):
        columns = {name: column if isinstance(column, list) else [column] for name, column in value.items()}
        rows = range(max(map(len, columns.values()), default=0))
        value = [{name: column[row] for name, column in columns.items() if row < len(column)} for row in rows]
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(image, dict) for image in value if image is not None):
        raise ValueError
    return [
        {name: None if image.get(name) is None else _string(image[name]) for name in ("hi_res", "large")}
        for image in value
        if image is not None
    ]


FIELDS: dict[Kind, dict[str, Callable[[Any], Any]]] = {
    "items": {
        "parent_asin": _string,
        "main_category": _text,
        "title": _text,
        "average_rating": _number,
        "rating_number": _count,
        "features": _texts,
        "description": _texts,
        "store": _text,
        "details": _details,
        "images": _images,
        "price": _anything,
        "videos": _anything,
        "categories": _anything,
    },
    "reviews": {
        "parent_asin": _string,
        "user_id": _string,
        "rating": _rating,
        "timestamp": _time,
        "verified_purchase": _truth,
    },
}
_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "items": ("parent_asin",),
    "reviews": ("parent_asin", "user_id", "rating", "timestamp"),
}
