"""Lines of the dataset's JSONL, typed: the columns used and nothing else.

In: the bytes of whole lines. Out: a table of `prep.tables.ITEMS` or `REVIEWS`, and why the other lines gave no row.
Guaranteed: every line is a row or a reject; fields that are not used (price, videos, a review's title and text) are
skipped, whatever their type, and never kept.

All lines are decoded in one call. Where one of them is bad, they are decoded one by one, at a third of the speed.
"""

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from prep.hashes import hashes
from prep.source import Kind
from prep.tables import ITEMS, REVIEWS

# It becomes the name of a tar's members, so nothing that could be a path or an ending may stand in it.
ASIN = "^[A-Za-z0-9]{1,40}$"


class Reject(NamedTuple):
    """A line that gives no row."""

    line: int  # its number in the file, from 1
    reason: str  # one word


class _Image(msgspec.Struct, gc=False):
    hi_res: str | None = None
    large: str | None = None


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


class _Review(msgspec.Struct, gc=False):
    parent_asin: str
    user_id: str
    rating: float
    timestamp: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    verified_purchase: bool = False


_decoders: dict[Kind, msgspec.json.Decoder[Any]] = {
    "items": msgspec.json.Decoder(_Item),
    "reviews": msgspec.json.Decoder(_Review),
}


def read(kind: Kind, content: bytes, first: int) -> tuple[pa.Table, list[Reject]]:
    """Type the lines of `content`.

    Args:
        kind: items or reviews.
        content: whole lines; only the file's last one may lack its line end.
        first: the number of the first of them in the file.

    Returns:
        A table of `ITEMS` or `REVIEWS` in the order of the lines, and the lines that are not in it. A line is
        rejected when it is not UTF-8 (bad_utf8) or JSON (not_json, truncated), lacks a required key (missing_key: for
        items parent_asin, for reviews parent_asin, user_id, rating and timestamp), has another type than the dataset
        in a field used (wrong_type), or a parent_asin that can name no file (bad_parent_asin).
    """
    with _no_collection():
        records = _decode_all(kind, content)
        if records is not None:
            lines = _lines(content) if kind == "reviews" else []
            return _table(kind, records, range(first, first + len(records)), lines), []
        lines = _lines(content)
        rejects: list[Reject] = []
        kept: list[tuple[int, Any]] = []
        for number, line in enumerate(lines):
            whole = number < len(lines) - 1 or content.endswith(b"\n")
            record = _decode(kind, line, whole)
            if isinstance(record, str):
                rejects.append(Reject(first + number, record))
            else:
                kept.append((number, record))
        numbers = [number for number, _ in kept]
        kept_lines = [lines[number] for number in numbers]
        return _table(kind, [record for _, record in kept], [first + n for n in numbers], kept_lines), rejects


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from going through tens of thousands of new records, which takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _lines(content: bytes) -> list[bytes]:
    """Return the lines without their ends, of either kind."""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.rstrip(b"\r") for line in lines] if b"\r" in content else lines


def _decode_all(kind: Kind, content: bytes) -> list[Any] | None:
    """Return the records of all lines, or None if one is bad."""
    try:
        content.decode()  # unused fields are checked too, and msgspec does not look into them
        records: list[Any] = _decoders[kind].decode_lines(content)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None
    if not _one_a_line(content, len(records)):
        return None
    asins = pa.array([record.parent_asin for record in records], pa.string())
    return records if pc.all(pc.match_substring_regex(asins, ASIN), min_count=0).as_py() else None


def _one_a_line(content: bytes, records: int) -> bool:
    """Tell whether each line holds one of the objects that msgspec, which does not look at line ends, found."""
    characters = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(characters[:-1] == ord("\n"))
    before = characters[ends - 1]
    before = np.where(before == ord("\r"), characters[ends - 2], before)
    # no object goes on over a line end that stands between two of them
    between = (before == ord("}")) & (characters[ends + 1] == ord("{"))
    # a line end that comes first has nothing before it
    return len(ends) == records - 1 and bool(between.all()) and not content.startswith((b"\n", b"\r"))


def _decode(kind: Kind, line: bytes, whole: bool) -> Any:
    """Return the record of a line, or why there is none."""
    try:
        line.decode()
        record = _decoders[kind].decode(line)
    except UnicodeDecodeError:
        return "bad_utf8"
    except msgspec.ValidationError as error:
        return "missing_key" if "missing required field" in str(error) else "wrong_type"
    except RecursionError:
        return "not_json"
    except msgspec.DecodeError:
        return "not_json" if whole else "truncated"
    return record if re.fullmatch(ASIN, record.parent_asin) else "bad_parent_asin"


def _table(kind: Kind, records: list[Any], numbers: Sequence[int], lines: list[bytes]) -> pa.Table:
    return _items(records, numbers) if kind == "items" else _reviews(records, lines)


def _items(records: list[_Item], numbers: Sequence[int]) -> pa.Table:
    columns = [
        [record.parent_asin for record in records],
        numbers,
        [record.main_category for record in records],
        [record.title for record in records],
        [record.average_rating for record in records],
        [record.rating_number for record in records],
        [_parts(record.features) for record in records],
        [_parts(record.description) for record in records],
        [record.store for record in records],
        [_details(bytes(record.details)) for record in records],
        [next((image.hi_res for image in record.images or () if image.hi_res), None) for record in records],
        [next((image.large for image in record.images or () if image.large), None) for record in records],
    ]
    return pa.table([pa.array(v, field.type) for v, field in zip(columns, ITEMS, strict=True)], schema=ITEMS)


def _parts(parts: list[str | None] | None) -> list[str | None]:
    if parts and None in parts:
        return [part for part in parts if part is not None]
    return parts or []


def _details(details: bytes) -> bytes | str:
    """Return the JSON text of an item's details, ``{}`` where they are no object."""
    if details.startswith(b"{"):
        return details
    if details.startswith(b'"'):  # an object as a string, as the hub's parquet has it
        text: str = msgspec.json.decode(details)
        return text if text.startswith("{") else "{}"
    return "{}"


def _reviews(records: list[_Review], lines: list[bytes]) -> pa.Table:
    """Make the rows of reviews; the user id and the line are kept as hashes only."""
    columns = [
        [record.parent_asin for record in records],
        hashes("effimini/line", lines),
        hashes("effimini/user", [record.user_id for record in records]),
        [record.rating for record in records],
        [record.timestamp for record in records],
        [record.verified_purchase for record in records],
    ]
    return pa.table([pa.array(v, field.type) for v, field in zip(columns, REVIEWS, strict=True)], schema=REVIEWS)
