"""Clean the strings of an item; training and prediction share it.

Input: the raw fields of an item.
Output: clean strings, from which `prep.core.fields` assembles the text that the model reads.
Guarantees: pure functions.
"""

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_TAG = re.compile(r"<(?:[a-zA-Z/!][^<>]{0,1000})>")
_SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_DEEP = 200  # brackets; details with more of them are not parsed
_MARKS = re.compile(r"[<&]|  |://|www\.", re.IGNORECASE)  # a printable ASCII text without a match is clean
_SPACE = re.compile(r"\s+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd\ud800-\udfff]")


def clean(text: str | None) -> str:
    """Return `text` without markup, entities, URLs and control characters, in NFC, with single spaces."""
    if not text:
        return ""
    if text.isascii() and text.isprintable() and not _MARKS.search(text):
        return text.strip(" ")  # fast path for most texts: a tenth of the time
    # Unescape before removing tags, because descriptions contain escaped markup (&lt;br&gt;), and do it twice, because
    # some are escaped twice (&amp;amp;).
    text = html.unescape(html.unescape(text))
    text = _TAG.sub(" ", _SCRIPT.sub(" ", text))
    text = _CONTROL.sub(" ", _URL.sub(" ", text))
    return _SPACE.sub(" ", unicodedata.normalize("NFC", text)).strip()


def clean_list(texts: Iterable[str | None] | None, separator: str) -> str:
    """Return the cleaned texts that are not empty, joined by `separator`."""
    return separator.join(filter(None, map(clean, texts or ())))


def clean_details(details: str) -> str:
    """Return an item's `details`, a JSON object, as ``key: value; key: value`` in the order of the object.

    Nested values are flattened. Text that is not a JSON object is cleaned like any other text, because the details of
    an item to predict may be written manually.
    """
    if details == "{}":
        return ""
    if details.count("{") + details.count("[") > _DEEP:
        return clean(details)
    try:
        content = json.loads(details)
    except ValueError:
        return clean(details)
    if not isinstance(content, dict):
        return clean(details)
    pairs = ((clean(key), clean(_flatten(value))) for key, value in content.items())
    return "; ".join(f"{key}: {value}" for key, value in pairs if key and value)


def _flatten(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flatten(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_flatten, value))
    return "" if value is None else str(value)
