"""Every function of texts takes time in proportion to the text, whatever it is."""

import json
import time
from collections.abc import Callable

import pytest

from prep.core.errors import shown
from prep.core.fields import assemble
from prep.core.lists import read_list
from prep.core.text import clean, clean_details, clean_list, normalized
from prep.groups import image_key, title_key
from prep.near_duplicate_titles import signatures

SHORT, LONG = 1 << 13, 1 << 16  # characters
MOST = 4 * LONG / SHORT  # times the work; quadratic work would be twice this or more
NOISE = 0.05  # seconds, below which times say nothing
REPEATED = [
    "<style>", "<script ", "<!--", "<style></styl", "</style ", "<style></script>", "<", "<b ", "<b checked ", "</ ",
    "<a href=", "<o:p", "<!doctype ", "<![CDATA[", "<![CDATA[]]>", "]]>", "&", "&amp;", "&amp;amp;", "&lt;", "&#",
        "&#0",
    "\u0301\u0327", "\u0344", "\u0f73", "\uff9e\u0301", "\u0301\u0327\u034f", "\u200d", "\u00ad", "\u200d ", "\ufdfa",
        "—",
    "(a)", "()", "( ", "(a) ", "[", "[]", "!", "(a)!", "www.", "http://", "<http://", " ", "\n", "\x00", "\ud800", "a",
        "a.",
    "'a' ", "'a', ", "'a'", '"a', "\\", "['a'", "{", "}", '{"a":', "nan ", "... ", "1", "1 ", "array(", "<a_Array>",
    "word ", "No 1 ", "(1999)", "part 7 ", "\U0001f600", "%e2", "/",
]  # fmt: skip
BEGUN = {"clean": ["", "<style>", "<!--", "&#", "&#x", "<b", "<o:"], "read_list": ["[", "['", "('", "[1"]}


def pieces(text: str) -> list[str]:
    return [text[begin : begin + 64] for begin in range(0, len(text), 64)]


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "clean": clean,
    "clean_list": lambda text: clean_list([text] * 2, " "),
    "clean_lists": lambda text: clean_list(pieces(text), " | "),
    "clean_details": clean_details,
    "details": lambda text: clean_details(json.dumps({"a": text, text: "b"})),
    "flatten": lambda text: clean_details(json.dumps({"a": pieces(text)})),
    "nested": lambda text: clean_details(json.dumps({"a": [[[{"b": text}]]]})),
    "assemble": lambda text: assemble({"title": text, "features": text}, ("title", "features")),
    "normalized": lambda text: (normalized("NFC", text), normalized("NFKC", text)),
    "title_key": lambda text: title_key(text, text),
    "image_key": lambda text: image_key(None, text),
    "signatures": lambda text: signatures([text.encode(errors="replace").decode()], [""]),
    "read_list": read_list,
    "shown": shown,
}


def seconds(function: Callable[[str], object], text: str) -> float:
    """Return the least of three times of this thread."""
    times = []
    for _ in range(3):
        begin = time.thread_time()
        function(text)
        times.append(time.thread_time() - begin)
        if times[-1] < NOISE:
            break
    return min(times)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_work_is_linear_for_every_text(name: str) -> None:
    function = FUNCTIONS[name]
    for begin in BEGUN.get(name, [""]):
        for part in REPEATED:
            short, long = (begin + part * (size // len(part)) + "x" for size in (SHORT, LONG))
            if (time_of_long := seconds(function, long)) > NOISE:
                assert time_of_long <= MOST * max(seconds(function, short), NOISE * SHORT / LONG), (begin, part)
