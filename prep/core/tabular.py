"""Compute the numbers that describe an item beside its texts and image; training and prediction share them.

Input: the raw fields of an item, and its cleaned texts.
Output: a number for each of `prep.core.tables.tabular.COLUMNS`, None where it is missing.
Guarantees: pure functions, linear in the length of the fields; a missing value is never 0. What has no plain meaning as
a price, videos or categories is missing, and no reason to drop an item.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from prep.core.lists import read_list
from prep.core.tables.tabular import PRICES, TABULAR_NAMES
from prep.core.text import detail_pairs, present, python_value

_MOST = 2**53  # largest count that is exact in a float64
_LONGEST = 1_000_000  # characters of a printed list that is counted

_CURRENCY = r"""(?:(?:US|CA|AU?|C|R|HK|NZ|MX|S)?\$|[€£¥₹₩₺₽₪₫฿₴]|Rs\.?|[kK]r\.?|zł|TL
    |(?:AED|AUD|BRL|CAD|CHF|CNY|EUR|GBP|INR|JPY|MXN|NZD|PLN|SAR|SEK|SGD|TRY|USD))"""
_PRICE = re.compile(
    rf"""(?:{_CURRENCY}\s?)? (?:
        (?P<plain>\d+(?:\.\d*)?|\.\d+)
      | (?P<comma>\d{{1,3}}(?:,\d{{2,3}})*,\d{{3}}(?:\.\d+)?)  # 1,299.00 and 1,29,900.00
      | (?P<point>\d{{1,3}}(?:[.\ ']\d{{3}})+,\d{{1,2}}|\d{{1,3}}(?:[.\ ']\d{{3}}){{2,}}|\d+,\d{{1,2}})  # 1.299,00
    ) (?:\s?{_CURRENCY})?""",
    re.VERBOSE | re.ASCII,
)
_AMBIGUOUS = re.compile(r"(?<!\d)[1-9]\d{0,2}\.\d{3}(?!\d)")  # with a currency: one of Europe's thousands, or a decimal
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*", re.ASCII)
_YEAR = re.compile(r"(?<!\d)(?:1[89]|20)\d\d(?!\d)", re.ASCII)
_YEAR_IN_BRACKETS = re.compile(r"[(\[]((?:1[89]|20)\d\d)[)\]]", re.ASCII)
_CUT = ("...", "…")
_URLS = ("hi_res", "large")


class _Given(NamedTuple):
    """What the columns are computed from."""

    texts: Mapping[str, str]  # cleaned, by field name
    features: int  # number of those that are not blank
    details: Sequence[tuple[str, str]]  # names and values, cleaned, without leaks
    price: float | None
    videos: int | None
    images: int | None
    categories: int | None


def _year(pattern: re.Pattern[str], text: str) -> float | None:
    found = pattern.findall(text)
    return float(found[-1]) if found else None


def _detail(item: _Given, name: str) -> str:
    return next((value for key, value in item.details if key.lower() == name), "")


_VALUES: dict[str, Callable[[_Given], float | None]] = {
    "price": lambda item: item.price,
    "price_missing": lambda item: item.price is None,
    "list_price": lambda item: read_price(_detail(item, "list price")),
    "title_length": lambda item: len(item.texts["title"]) or None,
    "features_length": lambda item: len(item.texts["features"]) or None,
    "description_length": lambda item: len(item.texts["description"]) or None,
    "details_length": lambda item: len(item.texts["details"]) or None,
    "feature_count": lambda item: item.features,
    "detail_count": lambda item: len(item.details),
    "image_count": lambda item: item.images,
    "video_count": lambda item: item.videos,
    "category_count": lambda item: item.categories,
    "title_numbers": lambda item: len(_NUMBER.findall(item.texts["title"])) if item.texts["title"] else None,
    "title_year": lambda item: _year(_YEAR_IN_BRACKETS, item.texts["title"]),
    "available_year": lambda item: _year(_YEAR, _detail(item, "date first available")),
    "title_truncated": lambda item: item.texts["title"].endswith(_CUT) if item.texts["title"] else None,
}
RAW = ("price", "video_count", "image_count", "categories")  # what `tabular` reads besides features and details


def tabular(raw: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, float | None]:
    """Return the value of each of `prep.core.tables.tabular.TABULAR_NAMES`, None where it is missing.

    Args:
        raw: columns of `prep.core.tables.raw.ITEMS` by name: features, details, and those in `RAW`.
        texts: the cleaned texts by field name, columns of the sample.
    """
    categories = raw["categories"]
    item = _Given(
        texts=texts,
        features=sum(not feature.isspace() for feature in filter(present, raw["features"])),
        details=detail_pairs(raw["details"]),
        price=raw["price"],
        videos=raw["video_count"],
        images=raw["image_count"],
        categories=None if categories is None else len(categories),
    )
    values = {name: _VALUES[name](item) for name in TABULAR_NAMES}
    return {name: None if value is None else float(value) for name, value in values.items()}


def read_price(value: object) -> float | None:
    """Return a price, None if the value has no plain meaning as one: a range, a lower bound, 0, or an ambiguous text.

    Args:
        value: a JSON value; texts may have a currency and separators, as "$1,299.00" and "12,50 €".
    """
    if isinstance(value, str):
        value = _written_price(" ".join(present(value).split()).replace("\u2019", "'"))
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if PRICES[0] <= value <= PRICES[1] else None


def _written_price(text: str) -> float | None:
    found = _PRICE.fullmatch(text)
    if found is None or (found[0] != found["plain"] and _AMBIGUOUS.fullmatch(found["plain"] or "")):
        return None
    if found["point"]:
        return float(re.sub(r"[^\d,]", "", found["point"]).replace(",", "."))
    return float((found["plain"] or found["comma"]).replace(",", ""))


def read_count(value: object) -> int | None:
    """Return how many elements a value has, None if it has no plain meaning as a list.

    Args:
        value: a list, an object of lists (as the hub's parquet has it), one of them as JSON, Python or pandas print it,
            or the number itself.
    """
    if isinstance(value, str):
        value = _printed(present(value.strip()))
    if isinstance(value, Mapping):
        sizes = [len(one) if isinstance(one, list) else 1 for one in value.values() if one is not None]
        return max(sizes) if sizes else None if value else 0
    if isinstance(value, (list, tuple)):
        return sum(one is not None for one in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST:
        return None
    return int(value) if value == int(value) else None


def read_image_count(value: object) -> int | None:
    """Return how many images of an item have a URL, None if the value has no plain meaning as a list of images.

    Args:
        value: as of `read_count`; images are objects with hi_res and large, or URLs.
    """
    if isinstance(value, str):
        value = _printed(present(value.strip()))
    if isinstance(value, Mapping) and any(value.get(name) is not None for name in _URLS):
        columns = [one if isinstance(one, (list, tuple)) else [one] for one in map(value.get, _URLS)]
        value = [dict(zip(_URLS, urls, strict=True)) for urls in zip_longest(*columns)]
    if isinstance(value, (list, tuple)):
        images = (image if isinstance(image, Mapping) else {_URLS[0]: image} for image in value)
        return sum(any(isinstance(image.get(name), str) and present(image[name]) for name in _URLS) for image in images)
    return read_count(value)


def _printed(text: str) -> object:
    """Return the value that a text shows, None if it cannot be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not text.startswith(("[", "{", "array(", "(")) or len(text) > _LONGEST:
        return None
    python = re.sub(r"}\s+{", "}, {", re.sub(r"\barray\(", "(", re.sub(r",\s*dtype=\w+\)", ")", text)))
    return python_value(python)


def read_names(value: object) -> list[str] | None:
    """Return the texts of a list, None if it is missing or has no plain meaning as one.

    Args:
        value: a list of texts, or a text that `prep.core.lists.read_list` reads.
    """
    if isinstance(value, str):
        value = read_list(present(value)) if present(value).strip() else None
    if not isinstance(value, list):
        return None
    found = [one for one in value if one is not None]
    return found if all(isinstance(one, str) and not _has_surrogates(one) for one in found) else None


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)
