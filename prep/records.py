"""Parse lines of the dataset's JSONL into typed columns.

Input: the bytes of whole lines.
Output: a table with a schema of `prep.core.tables.raw`, and the rejected lines with reasons.
Guarantees: every line is a row or a reject. Unused fields (title and text of a review) are skipped, of any type, and
never stored. A price, videos or categories without a plain meaning are null, and no reason to reject a line.

All lines are first parsed as if they were valid. If one is not, each line is checked separately, at a third of the
speed.
"""

import codecs
import gc
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta
from xxhash import xxh3_64_intdigest

from prep import rewritten
from prep.core.errors import shown
from prep.core.hashes import hashes
from prep.core.keys import KEY_LENGTH, item_key, item_keys
from prep.core.tables.raw import ITEMS, REVIEWS, Kind
from prep.core.tabular import read_count, read_names, read_price
from prep.core.text import ABSENT


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected line."""

    line: int  # line number, from 1
    reason: str  # one word, see `parse_lines`
    found: str = field(default="", compare=False)  # the field and its value, or the line; only of the first few


_NULL = msgspec.Raw(b"null")


class _Image(msgspec.Struct, gc=False):
    hi_res: str | None = None
    large: str | None = None


class _Object(msgspec.Struct, gc=False):
    """Any object; its values are skipped."""


class _Item(msgspec.Struct):
    parent_asin: str
    main_category: str | None = None
    title: str | None = None
    average_rating: float | None = None
    rating_number: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    features: list[str | None] | None = None
    description: list[str | None] | None = None
    store: str | None = None
    details: msgspec.Raw = msgspec.Raw(b"{}")
    images: list[_Image] | None = None
    price: msgspec.Raw = _NULL
    videos: msgspec.Raw = _NULL
    categories: msgspec.Raw = _NULL


class _Review(msgspec.Struct, gc=False):
    parent_asin: str
    user_id: str
    rating: float
    timestamp: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    verified_purchase: bool = False


_FOUND = 3  # rejects of a call of `parse_lines` whose values are kept
_ABSENT = pa.array(sorted(map(item_key, ABSENT)))
_NO_URL = {None, "", *ABSENT}

_objects = msgspec.json.Decoder(list[_Object])
_decoders: dict[Kind, msgspec.json.Decoder[Any]] = {
    "items": msgspec.json.Decoder(_Item),
    "reviews": msgspec.json.Decoder(_Review),
}


def parse_lines(kind: Kind, content: bytes, first: int) -> tuple[pa.Table, list[Reject]]:
    """Parse the lines of `content`.

    Args:
        kind: items or reviews.
        content: whole lines; only the last one of the file may lack a line ending.
        first: line number of the first line.

    Returns:
        A table with schema `ITEMS` or `REVIEWS` in line order, and the rejected lines. A line is rejected if it is
        not UTF-8 (bad_utf8) or not JSON (not_json, truncated), if a required key is missing (missing_key:
        parent_asin for items; parent_asin, user_id, rating and timestamp for reviews), if a field that is used has a
        wrong type (wrong_type), or if parent_asin is absent or too long (bad_parent_asin). What another tool wrote of a
        valid line (`prep.rewritten`) is a row.
    """
    with _no_collection():
        lines = _lines(content)
        table = _read_all(kind, content, lines, first)
        return (table, []) if table is not None else _read_each(kind, lines, first)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable the garbage collector, which would spend half of the time on tens of thousands of new records."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _lines(content: bytes) -> list[bytes]:
    r"""Return the lines with their endings, all normalized to \n; only the last line may lack it."""
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n")
    return io.BytesIO(content).readlines()  # takes half the time of bytes.split


def _read_all(kind: Kind, content: bytes, lines: list[bytes], first: int) -> pa.Table | None:
    """Return the rows of all lines, or None if a line is invalid."""
    try:
        content.decode()  # check unused fields too, which msgspec skips
        records = list(map(_decoders[kind].decode, lines))
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None
    table = _to_table(kind, records, range(first, first + len(records)), lines)
    asins = table["parent_asin"]
    lengths = pc.binary_length(asins)
    named = pc.and_(pc.greater(lengths, 0), pc.less_equal(lengths, KEY_LENGTH))
    if kind == "items":  # reviews of others have no item
        named = pc.and_not(named, pc.is_in(asins, value_set=_ABSENT))
    return table if pc.all(named, min_count=0).as_py() else None


def _read_each(kind: Kind, lines: list[bytes], first: int) -> tuple[pa.Table, list[Reject]]:
    """Parse each line separately; return the rows and the rejects."""
    kept: list[tuple[int, bytes, Any]] = []
    rejects: list[Reject] = []
    for number, marked in enumerate(lines, first):
        line = marked.removeprefix(codecs.BOM_UTF8)  # editors write one, and such files are concatenated
        try:
            kept.append((number, line, _decode(kind, line)))
        except _RejectedError as rejected:
            reason, found = rejected.args
            rejects.append(Reject(number, reason, found if len(rejects) < _FOUND else ""))
    numbers, good, records = zip(*kept, strict=True) if kept else ((), (), ())
    return _to_table(kind, records, numbers, good), rejects


class _RejectedError(Exception):
    """The reason to reject a line, and the field and its value."""


def _decode(kind: Kind, line: bytes) -> Any:
    """Return the record of a line.

    Raises:
        _RejectedError: it has none.
    """
    try:
        text = line.decode()
        record = _decoders[kind].decode(line)
    except UnicodeDecodeError as error:
        raise _RejectedError("bad_utf8", shown(line.decode(errors="replace"))) from error
    except (msgspec.DecodeError, RecursionError) as error:
        try:
            record = _record(kind, rewritten.values(kind, text))
        except rewritten.UnreadableError as found:
            raise _RejectedError(_reason(error, line), str(found)) from found
    if not 0 < len(item_key(record.parent_asin)) <= KEY_LENGTH or (kind == "items" and record.parent_asin in ABSENT):
        raise _RejectedError("bad_parent_asin", f"parent_asin {shown(record.parent_asin)}")
    return record


def _reason(error: Exception, line: bytes) -> str:
    if isinstance(error, msgspec.ValidationError):
        return "missing_key" if "missing required field" in str(error) else "wrong_type"
    return "not_json" if isinstance(error, RecursionError) or line.endswith(b"\n") else "truncated"


def _record(kind: Kind, values: dict[str, Any]) -> _Item | _Review:
    """Return the record with values of `rewritten.values`."""
    if kind == "reviews":
        return _Review(**values)
    typed: dict[str, Any] = {name: msgspec.Raw(value) for name, value in values.items() if isinstance(value, bytes)}
    if values.get("images"):
        typed["images"] = [_Image(**image) for image in values["images"]]
    return _Item(**values | typed)


def _to_table(kind: Kind, records: Sequence[Any], numbers: Sequence[int], lines: Sequence[bytes]) -> pa.Table:
    return _items_table(records, numbers) if kind == "items" else _reviews_table(records, lines)


def _items_table(records: Sequence[_Item], numbers: Sequence[int]) -> pa.Table:
    columns = {
        "parent_asin": item_keys([record.parent_asin for record in records]),
        "line": numbers,
        "main_category": [record.main_category for record in records],
        "title": [record.title for record in records],
        "average_rating": [record.average_rating for record in records],
        "rating_number": [record.rating_number for record in records],
        "features": _joined_texts([record.features for record in records]),
        "description": _joined_texts([record.description for record in records]),
        "store": [record.store for record in records],
        "details": [_details(bytes(record.details)) for record in records],
        "hi_res": [_url(record.images, "hi_res") for record in records],
        "large": [_url(record.images, "large") for record in records],
        "price": [None if record.price == _NULL else read_price(_value(record.price)) for record in records],
        "video_count": [_video_count(record.videos) for record in records],
        "image_count": [_count(record.images) for record in records],
        "categories": [read_names(_value(record.categories)) for record in records],
    }
    return pa.table(columns, ITEMS)


def _joined_texts(lists: list[list[str | None] | None]) -> pa.ListArray:
    """Return lists of strings without nulls; a null list becomes empty."""
    array = pa.array([texts or [] for texts in lists], pa.list_(pa.string()))
    if array.values.null_count:  # rare, so nulls are removed only if there are any
        array = pa.array([[text for text in texts or [] if text is not None] for texts in lists], array.type)
    return array


def _url(images: list[_Image] | None, kind: str) -> str | None:
    """Return the first URL of a kind among an item's images, None if there is none."""
    for image in images or ():
        if (url := getattr(image, kind)) and url not in ABSENT:
            return url  # type: ignore[no-any-return]
    return None


def _count(images: list[_Image] | None) -> int | None:
    """Return how many images have a URL."""
    if images is None:
        return None
    return sum(image.large not in _NO_URL or image.hi_res not in _NO_URL for image in images)


def _video_count(encoded: msgspec.Raw) -> int | None:
    try:
        return len(_objects.decode(encoded))  # does not decode what is in them
    except (msgspec.DecodeError, RecursionError):
        return read_count(_value(encoded))


def _value(encoded: msgspec.Raw) -> Any:
    """Return a JSON value; also with what only Python reads, as NaN and lone surrogates."""
    try:
        return msgspec.json.decode(encoded)
    except (msgspec.DecodeError, RecursionError):
        try:
            return json.loads(bytes(encoded))
        except (ValueError, RecursionError):
            return None


def _details(details: bytes) -> bytes | str:
    """Return the JSON text of an item's details, ``{}`` if they are not an object."""
    if details.startswith(b"{"):
        return details
    if details.startswith(b'"'):  # an object encoded as a string, as in the hub's parquet
        text: str = msgspec.json.decode(details)
        return text if text.startswith("{") else "{}"
    return "{}"


def _reviews_table(records: Sequence[_Review], lines: Sequence[bytes]) -> pa.Table:
    """Return the rows of reviews; the user id is stored as a keyed hash, the line as the XXH3 of it with a newline."""
    terminated = [*lines[:-1], *(line.removesuffix(b"\n") + b"\n" for line in lines[-1:])]
    columns = {
        "parent_asin": item_keys([record.parent_asin for record in records]),
        "line_hash": np.fromiter(map(xxh3_64_intdigest, terminated), np.uint64, len(terminated)),
        "user_hash": hashes("effimini/user", [record.user_id for record in records]),
        "rating": [record.rating for record in records],
        "timestamp": [record.timestamp for record in records],
        "verified_purchase": [record.verified_purchase for record in records],
    }
    return pa.table(columns, REVIEWS)
