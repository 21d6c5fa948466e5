import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.core.fields import assemble
from prep.core.text import clean, clean_details, clean_list


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
