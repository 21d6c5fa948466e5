import html
import json
import re
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.core.fields import assemble
from prep.core.text import clean, clean_details, clean_list, normalized

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("<p>Soft &amp; warm</p><br/>towel", "Soft & warm towel"),
        ("&lt;br&gt;escaped &amp;amp; twice", "escaped & twice"),
        ("see https://example.com/a?b=c or www.example.com now", "see or now"),
        ("  many\n\t spaces\u00a0here ", "many spaces here"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<script>var x = 1;</script>kept", "kept"),
        ("cafe\u0301", "caf\u00e9"),
        ("zero\u200bwidth\x00nul", "zero width nul"),
        (None, ""),
        ("", ""),
    ],
)
def test_text_is_cleaned(raw: str | None, expected: str) -> None:
    assert clean(raw) == expected


_PIECES = st.sampled_from(
    ["a", "B", " ", "  ", "www.x", "WWW.", "http://y", "&amp;", "&", "<b>", "<", ">", "\t", "\x7f", "."]
)


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_the_fast_path_for_plain_text_gives_the_same_result(raw: str) -> None:
    assert clean(f"{raw} é") == f"{clean(raw)} é".strip()


@given(st.text(max_size=200))
def test_clean_text_has_single_spaces_and_no_control_characters(raw: str) -> None:
    cleaned = clean(raw)
    assert cleaned == " ".join(cleaned.split())
    assert not any(ord(c) < 32 for c in cleaned)


def test_empty_list_elements_are_omitted() -> None:
    assert clean_list(["<b>a</b>", " ", None, "b"], " | ") == "a | b"
    assert clean_list(None, " ") == ""


def test_details_are_flattened_in_order() -> None:
    raw = '{"Brand": "A &amp; B", "Rank": {"Toys": 12}, "Made": ["here", null], "Empty": "", "Price": null}'
    assert clean_details(raw) == "Brand: A & B; Rank: Toys 12; Made: here,"
    assert clean_details("{}") == ""
    assert clean_details("by hand") == "by hand"


def test_the_text_has_the_papers_lines_in_the_requested_order() -> None:
    fields = {"title": "A pan", "main_category": "Kitchen", "features": "", "description": "Good."}
    order = ("main_category", "title", "features", "description")
    assert assemble(fields, order) == "Main category: Kitchen\nTitle: A pan\nDescription: Good."
    assert assemble(fields, ("title",)) == "Title: A pan"


@pytest.mark.parametrize("word", ["None", "nan", "NaN", "NaT", "NA", "N/A", "n/a", "null", "NULL", "<NA>", " nan "])
def test_a_word_for_an_absent_value_is_empty(word: str) -> None:
    assert clean(word) == clean_details(word) == clean_list([word, None], " | ") == ""
    assert clean_details(json.dumps({"Brand": word, "Colour": "red"})) == "Colour: red"
    assert clean_list(["a", word, "b"], " | ") == "a | b"


@pytest.mark.parametrize("text", ["None of these", "Nan bread", "NA 4", "Nanna", "nulls", "none", "Na", "N.A."])
def test_other_text_with_such_a_word_stays(text: str) -> None:
    assert clean(text) == clean_list([text], " ") == text


@pytest.mark.parametrize(
    "text",
    [
        "fits <Less than 5 lbs> dogs",
        "if <b and c> hold",
        "<a or b>",
        "<i think so>",
        "5 < 6 and 7 > 3",
        "a<b and c>d",
        "p <p = 0.05> small",
        "<user@example.com>",
        "<and/or> <b/w> <3 <- -> <>",
        "<New!> <Product Name> <size>",
        "x <!- y -> z",
        "a[b[0]]>c",
        "< b >",
        "an <unclosed",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "क्\u200dष",
        "👩\u200d🔬 and 👨\u200d👩\u200d👧 ❤️",
    ],
)
def test_text_in_angle_brackets_and_joiners_are_kept(text: str) -> None:
    assert clean(text) == text
    assert clean(text.replace("<", "&lt;").replace(">", "&gt;")) == text


@pytest.mark.parametrize(
    "markup",
    [
        "<b>", "</b>", "<BR/>", "<br />", "</p >", '<a href="x y">', "<a\nhref=x>", "<input disabled>",
        "<td nowrap width=1>",
        "<font color=red>", "<h1>", "<o:p></o:p>", "<st1:place w:st=\"on\">", "<!DOCTYPE html>", "<!-- a > <b> c -->",
        "<script>if (a<b) {}</script>", "<STYLE type='x'>p > a {}</style >", "<![if !vml]>", "<![endif]>",
        "<video controls loop src=x>", "<svg viewBox='0 0 1 1'>",
    ],
)  # fmt: skip
def test_markup_is_removed(markup: str) -> None:
    assert clean(f"one{markup}two") == "one two"
    assert clean(f"one {html.escape(html.escape(markup))} two") == "one two"


def test_text_in_a_cdata_section_is_kept() -> None:
    assert clean("<![CDATA[soft <b>towel</b>]]> here") == "soft towel here"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("co\u00adope\u00adrate", "cooperate"),
        ("co&shy;operate", "cooperate"),
        ("\ufeffTitle", "Title"),
        ("no\u2060break", "nobreak"),
        ("\u200eleft\u200f", "left"),
        ("\u202aleft\u202c right", "left right"),
        ("\u200d a \u200c b\u200c\u200cc \u200d", "a b\u200cc"),
        ("thin\u200bair", "thin air"),
        ("two\u2028lines", "two lines"),
        ("\u200c\u200d\u00ad", ""),
    ],
)
def test_characters_without_width_split_no_word(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize("text", ["&#" + "9" * 5000, "&#" + "9" * 5000 + ";", "&amp;#" + "1" * 5000 + ";"])
def test_an_entity_of_many_digits_is_no_character(text: str) -> None:
    assert clean(f"a {text} b") == "a b"
    assert clean("&#" + "0" * 5000 + "65;") == "A"
    assert clean("&#x" + "f" * 5000 + "; b") == "b"


@given(st.text("ae\u0301\u0327\u0344\u0f73\uac00\uff9e\u00e9 ", max_size=40), st.sampled_from(["NFC", "NFKC"]))
def test_texts_with_few_marks_are_in_the_normal_form_of_unicode(text: str, form: Literal["NFC", "NFKC"]) -> None:
    text = text.replace("\u0f73", "\u0f73 ").replace("\u0344", "\u0344 ")
    few = "".join(" " * (number % 15 == 0) + character for number, character in enumerate(text))
    assert normalized(form, few) == unicodedata.normalize(form, few)


def test_no_run_of_marks_is_longer_than_in_the_stream_safe_format() -> None:
    for mark in ("\u0301", "\u0344", "\u0f73", "\uff9e", "\u0301\u0327"):
        found = unicodedata.normalize("NFKD", normalized("NFKC", "a" + mark * 200))
        runs = "".join("m" if unicodedata.combining(character) else " " for character in found).split()
        assert max(map(len, runs)) <= 31
        assert sorted(found.replace("\u034f", "")) == sorted(unicodedata.normalize("NFKD", "a" + mark * 200))
    assert normalized("NFC", "—" * 99) == "—" * 99


def test_no_group_is_repeated_possessively() -> None:
    """Before Python 3.11.5 such a repeat of a group that backtracks does not match (python/cpython#106052)."""
    sources = [
        path for package in ("prep", "shards", "effimini", "validation") for path in (ROOT / package).rglob("*.py")
    ]
    found = [path for path in sources if re.search(r"\)[*+?]\+", path.read_text(encoding="utf-8"))]
    assert sources
    assert found == []
