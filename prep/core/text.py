"""Clean the strings of an item; training and prediction share it.

Input: the raw fields of an item.
Output: clean strings, from which `prep.core.fields` assembles the text that the model reads.
Guarantees: pure functions, linear in the length of the text whatever it is.
"""

import ast
import html
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

from prep.core.leaks import is_leak

# What tools write for a value that is absent: the names that pandas reads as such, and pandas' NaT.
ABSENT = frozenset(("None", "nan", "NaN", "NaT", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL"))

# The elements of HTML, obsolete ones too, and of Word's XML. Other words in angle brackets are text.
_ELEMENTS = """a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink
blockquote body br button canvas caption center cite code col colgroup data datalist dd del details dfn dialog dir div
dl dt em embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i
iframe img input ins kbd label legend li link listing main map mark marquee math menu meta meter nav nobr noembed
noframes noscript object ol optgroup option output p param picture plaintext pre progress q rb rp rt rtc ruby s samp
script search section select slot small source span strike strong style sub summary sup svg table tbody td template
textarea tfoot th thead time title tr track tt u ul var video wbr xml xmp"""
_FLAGS = """allowfullscreen async autofocus autoplay checked compact controls defer disabled hidden ismap loop multiple
muted nohref noresize noshade novalidate nowrap open readonly required reversed selected"""
# A tag has attributes with values or well-known ones without: <b and c> is text.
_TAG = re.compile(
    rf"""<(?=[a-z/!])(?:
        (?:/\s*+)?(?:{"|".join(_ELEMENTS.split())}|(?:o|v|w|x|st1):\w++)
        (?:\s++(?:{"|".join(_FLAGS.split())})(?=[\s/>]))* (?:\s++[a-z_][\w:.-]*+\s*+=[^<>]*+ | \s*+/?\s*+)
      | !doctype\b[^<>]*+ | !\[(?:if|endif)\b[^<>]*+ | (?:https?://|www\.)[^\s<>]*+
    )>""",
    re.IGNORECASE | re.VERBOSE,
)
_HIDDEN = re.compile(r"<(script|style)(?=[\s/>])|<(!)--", re.IGNORECASE)
_ENDS = {
    "script": re.compile(r"</script\s*+>", re.IGNORECASE),
    "style": re.compile(r"</style\s*+>", re.IGNORECASE),
    "!": re.compile(r"-->"),
}
_LONG_ENTITY = re.compile(r"&#0*([0-9]{1,8})[0-9]*")
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_DEEP = 200  # brackets; details with more of them are not parsed
_MARKS = re.compile(r"[<&]|  |://|www\.", re.IGNORECASE)  # a printable ASCII text without a match is clean
_SPACE = re.compile(r"\s+")
# Characters without width that join what is beside them, or say nothing about it: soft hyphen, marks of direction.
_INVISIBLE = re.compile(r"[\u00ad\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_STRAY_JOINER = re.compile(r"(?<!\S)[\u200c\u200d]++|[\u200c\u200d]++(?!\S)|(?<=[\u200c\u200d])[\u200c\u200d]++")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028\u2029\ufffd\ud800-\udfff]")
_MOST_MARKS = 30  # of Unicode's Stream-Safe Text Format
_MARK = r"[^\w\s\x00-\x7f]"  # any mark, and others; NFKC turns the letters U+FF9E and U+FF9F into marks
_MAYBE_MARK = {"NFC": _MARK, "NFKC": rf"(?:{_MARK}|[\uff9e\uff9f])"}
_MANY_MARKS = {form: re.compile(f"{one}{{{_MOST_MARKS + 1}}}") for form, one in _MAYBE_MARK.items()}
_RUN = {form: re.compile(f"{one}++") for form, one in _MAYBE_MARK.items()}


def present(text: str | None) -> str:
    """Return `text`, or "" if it is one of the words of `ABSENT`, which tools write for a value that is absent."""
    return "" if text is None or text.strip() in ABSENT else text


def normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    """Return `text` in a normal form of Unicode.

    A run of more than 30 combining marks is interrupted by U+034F, as in Unicode's Stream-Safe Text Format (UAX #15),
    because `unicodedata` sorts a run in quadratic time.
    """
    if _MANY_MARKS[form].search(text):
        text = _RUN[form].sub(_interrupted, text)
    return unicodedata.normalize(form, text)


def clean(text: str | None) -> str:
    """Return `text` without markup, entities, URLs and control characters, in NFC, with single spaces.

    A word that tools write for an absent value (`ABSENT`) is "" if nothing else is there.
    """
    if not text:
        return ""
    if text.isascii() and text.isprintable() and not _MARKS.search(text):
        text = text.strip(" ")  # fast path for most texts: a tenth of the time
        return "" if text in ABSENT else text
    # Unescape before removing tags, because descriptions contain escaped markup (&lt;br&gt;), and do it twice, because
    # some are escaped twice (&amp;amp;).
    text = _unescape(_unescape(text))
    if "<![CDATA[" in text:
        text = text.replace("<![CDATA[", " ").replace("]]>", " ")  # what is within is text
    if "<" in text:
        text = _TAG.sub(" ", _without_hidden(text))
    text = _CONTROL.sub(" ", _URL.sub(" ", text))
    if not text.isascii():
        text = normalized("NFC", _INVISIBLE.sub("", text))
        if "\u200c" in text or "\u200d" in text:
            text = _STRAY_JOINER.sub("", text)
    return present(_SPACE.sub(" ", text).strip())


def clean_list(texts: Iterable[str | None] | None, separator: str) -> str:
    """Return the cleaned texts that are not empty, joined by `separator`."""
    return separator.join(filter(None, map(clean, texts or ())))


def clean_details(details: str) -> str:
    """Return an item's `details`, a JSON object, as ``key: value; key: value`` in the order of the object.

    Nested values are flattened. Details that tell how popular the item became (`prep.core.leaks`) are left out. Text
    that is not a JSON object is cleaned like any other text, because the details of an item to predict may be written
    manually.
    """
    return "; ".join(f"{key}: {value}" if key else value for key, value in detail_pairs(details))


@lru_cache(1)  # the text and the columns of an item need it one after the other
def detail_pairs(details: str) -> tuple[tuple[str, str], ...]:
    """Return the keys and values of `clean_details`; what has no key in a text that is not a JSON object has key ""."""
    if details == "{}":
        return ()
    content = _object(details)
    if content is None:
        return tuple(_written_pairs(clean(details)))
    pairs = ((clean(str(key)), clean(_flatten(value))) for key, value in content.items())
    return tuple((key, value) for key, value in pairs if key and value and not is_leak(key, value))


def _object(details: str) -> dict[str, Any] | None:
    """Return an object written as JSON or, as pandas prints it, in Python; None if it is none or nests too deeply."""
    if details.count("{") + details.count("[") > _DEEP:
        return None
    try:
        content = json.loads(details)
    except ValueError:
        content = python_value(details) if details.startswith("{") else None
    return content if isinstance(content, dict) else None


def python_value(text: str) -> object:
    """Return the value of a text that is a Python literal, None if it is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _written_pairs(text: str) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of a text like that of `clean_details`; what follows a leak without a key is of it."""
    leaking = False
    for part in filter(None, text.split("; ")):
        key, colon, value = part.partition(": ")
        leaking = is_leak(key, value) if colon else leaking or is_leak("", part)
        if not leaking:
            yield (key, value) if key and value else ("", part)


def _flatten(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flatten(inner)}" for key, inner in value.items() if not is_leak(clean(str(key))))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_flatten, value))
    return "" if value is None else str(value)


def _unescape(text: str) -> str:
    """Replace entities; of a long number the first digits are kept, with which it is out of range all the same."""
    return html.unescape(_LONG_ENTITY.sub(r"&#\1", text)) if "&" in text else text


def _without_hidden(text: str) -> str:
    """Replace scripts, styles and comments by a space; one without an end stays."""
    kept, at, search, endless = [], 0, 0, set()
    while begin := _HIDDEN.search(text, search):
        search = begin.end()
        kind = (begin[1] or begin[2]).lower()
        end = None if kind in endless else _ENDS[kind].search(text, search)
        if end:
            kept += [text[at : begin.start()], " "]
            at = search = end.end()
        else:
            endless.add(kind)  # so that the rest is searched once
    return "".join([*kept, text[at:]])


def _interrupted(run: re.Match[str]) -> str:
    """Return a run of characters with U+034F wherever `_MOST_MARKS` combining marks are in a row."""
    found, marks = [], 0
    for character in run[0]:
        parts = unicodedata.normalize("NFKD", character)
        marks = marks + len(parts) if all(map(unicodedata.combining, parts)) else 0
        if marks > _MOST_MARKS:
            found.append("\u034f")
            marks = len(parts)
        found.append(character)
    return "".join(found)
