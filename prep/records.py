"""One line of the dataset's JSONL, typed: the columns used and nothing else.

In: the bytes of a line. Out: a row for `prep.tables.ITEMS` or `REVIEWS`, or the reason why there is none.
Guaranteed: fields that are not used (price, videos, a review's title and text) are skipped, whatever their type,
and never kept.
"""

import re
from hashlib import blake2b
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from prep.strata import hash64


class Reject(Exception):  # noqa: N818 -- the word of the rejects table
    """A line that gives no row; the message is its reason, a single word."""


class _Image(msgspec.Struct):
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


class _Review(msgspec.Struct):
    parent_asin: str
    user_id: str
    rating: float
    timestamp: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    verified_purchase: bool = False


# It becomes the name of a tar's members, so nothing that could be a path or an ending may stand in it.
ASIN = "^[A-Za-z0-9]{1,40}$"

_item = msgspec.json.Decoder(_Item)
_review = msgspec.json.Decoder(_Review)


def _decode(decoder: Any, line: bytes) -> Any:
    try:
        line.decode()
        record = decoder.decode(line)
    except UnicodeDecodeError:
        raise Reject("bad_utf8") from None
    except msgspec.ValidationError as error:
        raise Reject("missing_key" if "missing required field" in str(error) else "wrong_type") from None
    except msgspec.DecodeError:
        raise Reject("not_json" if line.endswith(b"\n") else "truncated") from None
    if not re.fullmatch(ASIN, record.parent_asin):
        raise Reject("bad_parent_asin")
    return record


def item_row(line: bytes, number: int) -> tuple[Any, ...]:
    """Return the `ITEMS` row of a metadata line, the `number`-th of its file.

    Raises:
        Reject: the line is not UTF-8 or JSON, lacks parent_asin, or a field used has another type than the dataset's.
    """
    item = _decode(_item, line)
    details = bytes(item.details).decode()
    if details.startswith('"'):  # the hub's parquet holds the object as a string
        details = msgspec.json.decode(details)
    images = [{"hi_res": image.hi_res, "large": image.large} for image in item.images or ()]
    return (
        item.parent_asin,
        number,
        item.main_category,
        item.title,
        item.average_rating,
        item.rating_number,
        [part for part in item.features or () if part is not None],
        [part for part in item.description or () if part is not None],
        item.store,
        details if details.startswith("{") else "{}",
        images,
    )


def review_row(line: bytes, _: int) -> tuple[Any, ...]:
    """Return the `REVIEWS` row of a review line.

    The user id is kept as a keyed hash only, and the line as a 64-bit hash, which finds exact duplicates.

    Raises:
        Reject: as `item_row`; parent_asin, user_id, rating and timestamp are required.
    """
    review = _decode(_review, line)
    line_hash = int.from_bytes(blake2b(line.rstrip(b"\r\n"), digest_size=8).digest(), "little")
    user_hash = hash64("effimini/user", review.user_id)
    return (
        review.parent_asin,
        line_hash,
        user_hash,
        review.rating,
        review.timestamp,
        review.verified_purchase,
    )
