"""Every line is a row or a reject with its reason, independent of the other lines."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.core.tables.raw import ITEMS, REVIEWS
from prep.records import Kind, Reject, parse_lines

ITEM = {
    "main_category": "Toys", "title": "A pan", "average_rating": 4.5, "rating_number": 3, "features": ["x"],
    "description": [], "price": "None", "images": [], "videos": [], "store": None, "categories": [],
    "details": {"any": {"thing": [1]}}, "parent_asin": "B01", "bought_together": None,
}  # fmt: skip
REVIEW = {
    "rating": 5.0, "title": "so", "text": "secret words", "images": [], "asin": "A01", "parent_asin": "B01",
    "user_id": "AGNOBODY", "timestamp": 1_500_000_000_000, "helpful_vote": 2, "verified_purchase": True,
}  # fmt: skip
GOOD = {"items": json.dumps(ITEM).encode(), "reviews": json.dumps(REVIEW).encode()}
DEEP = 100_000


def item(**changes: Any) -> bytes:
    return json.dumps(ITEM | changes).encode()


def item_with(name: str, value: bytes) -> bytes:
    """Return an item line with the JSON `value` for a field."""
    return item(**{name: "HERE"}).replace(b'"HERE"', value)


def review(**changes: Any) -> bytes:
    return json.dumps(REVIEW | changes).encode()


def without(kind: Kind, key: str) -> bytes:
    whole = ITEM if kind == "items" else REVIEW
    return json.dumps({name: value for name, value in whole.items() if name != key}).encode()


def only(line: bytes) -> dict[str, Any]:
    """Parse a single item line and return its row."""
    table, rejects = parse_lines("items", line + b"\n", 1)
    assert rejects == []
    row: dict[str, Any] = table.to_pylist()[0]
    return row


BAD: dict[Kind, list[tuple[bytes, str]]] = {
    "items": [
        (b"<html>503</html>", "not_json"),
        (b"", "not_json"),
        (b" \t", "not_json"),
        (GOOD["items"][:40], "not_json"),
        (GOOD["items"] + GOOD["items"], "not_json"),
        (GOOD["items"] + b" " + GOOD["items"], "not_json"),
        (item_with("title", b'"\\ud800"'), "not_json"),
        (item_with("details", b'{"a": "\\udfff"}'), "not_json"),
        (item_with("price", b"nope"), "not_json"),
        (item_with("average_rating", b"-Infinity"), "not_json"),
        (item_with("title", b'"tab\there"'), "not_json"),
        (item_with("average_rating", b"1e400"), "wrong_type"),
        (item_with("rating_number", b"9007199254740993"), "wrong_type"),
        (item(average_rating="four"), "wrong_type"),
        (item(average_rating=True), "wrong_type"),
        (item(rating_number=-1), "wrong_type"),
        (item(rating_number=2.5), "wrong_type"),
        (item(average_rating="4,5"), "wrong_type"),
        (item(average_rating="1e999"), "wrong_type"),
        (item(rating_number="1,234"), "wrong_type"),
        (item(rating_number="9007199254740993"), "wrong_type"),
        (item(rating_number=1e300), "wrong_type"),
        (item(rating_number=[3]), "wrong_type"),
        (item(features="['a' ... 'z']"), "wrong_type"),
        (item(features={"0": "a"}), "wrong_type"),
        (item(features=["a", ["b"]]), "wrong_type"),
        (item(features=["a", True]), "wrong_type"),
        (item(title=12.5), "wrong_type"),
        (item(title=True), "wrong_type"),
        (item(images=["https://a/b.jpg"]), "wrong_type"),
        (item(images=[{"large": 1}]), "wrong_type"),
        (item(images="a.jpg"), "wrong_type"),
        (item(parent_asin=7145276), "wrong_type"),
        (item(parent_asin="None"), "bad_parent_asin"),
        (item(parent_asin="nan"), "bad_parent_asin"),
        (item_with("details", b'{"a": Infinity}'), "not_json"),
        (item_with("title", b"9" * 5000), "wrong_type"),
        (item(store=["S"]), "wrong_type"),
        (item(parent_asin=None), "wrong_type"),
        (b"[1]", "wrong_type"),
        (b"null", "wrong_type"),
        (b"{}", "missing_key"),
        (without("items", "parent_asin"), "missing_key"),
        (item(parent_asin=""), "bad_parent_asin"),
        (item(parent_asin=" \n"), "bad_parent_asin"),
        (item(parent_asin="B" * 241), "bad_parent_asin"),
        (item(parent_asin="\u00c4" * 41), "bad_parent_asin"),
        (item(parent_asin="N/A"), "bad_parent_asin"),
        (item(title="HERE").replace(b"HERE", b"\xff"), "bad_utf8"),
        (item(price="HERE").replace(b"HERE", b"\xed\xa0\x80"), "bad_utf8"),
    ],
    "reviews": [
        (review(rating="five"), "wrong_type"),
        (review(rating="nan"), "wrong_type"),
        (review(rating=float("nan")), "not_json"),
        (review(rating=None), "wrong_type"),
        (review(timestamp=1.5), "wrong_type"),
        (review(timestamp=2**53 + 1), "wrong_type"),
        (review(verified_purchase="yes"), "wrong_type"),
        (review(verified_purchase=2), "wrong_type"),
        (review(timestamp="yesterday"), "wrong_type"),
        (review(timestamp=None), "wrong_type"),
        (review(user_id=7), "wrong_type"),
        (without("reviews", "parent_asin"), "missing_key"),
        (without("reviews", "user_id"), "missing_key"),
        (without("reviews", "rating"), "missing_key"),
        (without("reviews", "timestamp"), "missing_key"),
        (review(parent_asin=""), "bad_parent_asin"),
        (review(text="HERE").replace(b"HERE", b"\xc3("), "bad_utf8"),
        (b'{"rating": 5.0, "tit', "not_json"),
    ],
}
REJECTED = [(kind, line, reason) for kind, lines in BAD.items() for line, reason in lines]


@pytest.mark.parametrize(("kind", "line", "reason"), REJECTED)
def test_a_bad_line_is_a_reject_with_its_number_and_reason(kind: Kind, line: bytes, reason: str) -> None:
    good = GOOD[kind]
    table, rejects = parse_lines(kind, b"\n".join([good, line, good]) + b"\n", 41)
    assert rejects == [Reject(42, reason)]
    assert table.num_rows == 2


@pytest.mark.parametrize("kind", ["items", "reviews"])
@pytest.mark.parametrize("first", [b"\n", b"\r\n"])
def test_two_objects_on_a_line_are_rejected(kind: Kind, first: bytes) -> None:
    table, rejects = parse_lines(kind, first + GOOD[kind] * 2, 1)
    assert (table.num_rows, [reject.line for reject in rejects]) == (0, [1, 2])


@pytest.mark.parametrize("kind", ["items", "reviews"])
def test_the_last_line_may_lack_its_newline_and_is_truncated_if_incomplete(kind: Kind) -> None:
    good = GOOD[kind]
    for end in (b"", b"\n", b"\r\n"):
        assert parse_lines(kind, good + b"\n" + good + end, 1)[0].num_rows == 2
    table, rejects = parse_lines(kind, good + b"\n" + good[:-9], 1)
    assert (table.num_rows, rejects) == (1, [Reject(2, "truncated")])
    assert parse_lines(kind, good + b"\n" + b"{}", 1)[1] == [Reject(2, "missing_key")]


@pytest.mark.parametrize(("kind", "schema"), [("items", ITEMS), ("reviews", REVIEWS)])
def test_empty_content_gives_no_rows(kind: Kind, schema: pa.Schema) -> None:
    table, rejects = parse_lines(kind, b"", 1)
    assert (table.schema, table.num_rows, rejects) == (schema, 0, [])


HARMLESS: dict[Kind, list[bytes]] = {
    "items": [
        GOOD["items"],
        item(parent_asin="B02", title="\u00fc\u4e2d\U0001f600\u2028", price=9.99, details={"a\nb": [None]}),
        item(average_rating=4, features=None, images=None, store="S") + b"\r",
        b" " + item(extra={"of": ["later", "years"]}) + b" ",
        b'{"parent_asin":"B03"}',
    ],
    "reviews": [GOOD["reviews"], review(user_id="V", text="}\n{"), review(rating=0.0) + b"\r", review(rating=1)],
}
OVER_TWO = [b'{"parent_asin": "B04", "user_id": "U",', b' "rating": 1, "timestamp": 1}']


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Kind, list[bytes], bytes]:
    kind = draw(st.sampled_from(list(HARMLESS)))
    bad = [line for line, _ in BAD[kind]] + OVER_TWO
    any_line = st.sampled_from(HARMLESS[kind]) | st.sampled_from(HARMLESS[kind] + bad)
    return kind, draw(st.lists(any_line, max_size=8)), draw(st.sampled_from([b"\n", b""]))


@settings(max_examples=300, deadline=None)
@given(mixture=mixtures(), first=st.integers(1, 10**9))
def test_every_line_is_parsed_independently(mixture: tuple[Kind, list[bytes], bytes], first: int) -> None:
    kind, lines, end = mixture
    content = b"\n".join(lines) + (end if lines else b"")
    if lines and not end and not lines[-1]:
        return  # an empty last line without a newline is not a line
    table, rejects = parse_lines(kind, content, first)
    alone = [
        parse_lines(kind, line + (end if number == len(lines) - 1 else b"\n"), first + number)
        for number, line in enumerate(lines)
    ]
    schema = ITEMS if kind == "items" else REVIEWS
    assert table.equals(pa.concat_tables([schema.empty_table(), *(rows for rows, _ in alone)]))
    assert rejects == [reject for _, found in alone for reject in found]
    assert table.num_rows + len(rejects) == len(lines)


@pytest.mark.parametrize(
    "lines",
    [
        [GOOD["items"] + b" " + GOOD["items"], b""],
        [b"", GOOD["items"] + GOOD["items"]],
        [item()[:-1], b"}" + GOOD["items"]],
        [b'{"parent_asin": "B01", "details": {}', b', "store": "S"} ' + GOOD["items"]],
        [b'{"parent_asin": "B01", "details":', b"{}}" + GOOD["items"]],
    ],
)
def test_several_objects_on_one_line_do_not_compensate_for_empty_lines(lines: list[bytes]) -> None:
    table, rejects = parse_lines("items", b"\n".join(lines) + b"\n", 1)
    assert (table.num_rows, [reject.line for reject in rejects]) == (0, [1, 2])


@pytest.mark.parametrize("name", ["price", "details", "features", "unknown"])
@pytest.mark.parametrize(("begin", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_unlimited_nesting_is_rejected_without_a_crash(name: str, begin: bytes, end: bytes) -> None:
    deep = item_with(name, begin * DEEP + b"1" + end * DEEP)
    table, rejects = parse_lines("items", b"\n".join([GOOD["items"], deep, begin * DEEP, GOOD["items"]]) + b"\n", 1)
    assert [reject.line for reject in rejects] == [2, 3]
    assert table["line"].to_pylist() == [1, 4]


def test_windows_line_endings_change_nothing() -> None:
    for kind, good in GOOD.items():
        unix = parse_lines(kind, b"\n".join([good] * 3) + b"\n", 1)
        windows = parse_lines(kind, b"\r\n".join([good] * 3) + b"\r\n", 1)
        assert windows[0].equals(unix[0])
        assert windows[1] == unix[1] == []


def test_an_integer_is_a_valid_rating() -> None:
    assert [only(item_with("average_rating", value))["average_rating"] for value in (b"4", b"4.0", b"40e-1")] == [
        4.0
    ] * 3
    assert only(item(average_rating=0.0))["average_rating"] == 0.0
    assert only(item(average_rating=None, rating_number=None))["rating_number"] is None
    assert parse_lines("reviews", review(rating=4) + b"\n", 1)[0]["rating"].to_pylist() == [4.0]


@pytest.mark.parametrize(
    ("details", "text"),
    [
        (b'{"b": 1, "a": {"c": [null, 1.50]}}', '{"b": 1, "a": {"c": [null, 1.50]}}'),
        (b'"{\\"b\\": 1}"', '{"b": 1}'),  # as in the hub's parquet
        (b'"none"', "{}"),
        (b'""', "{}"),
        (b"null", "{}"),
        (b"[1]", "{}"),
        (b"7", "{}"),
    ],
)
def test_details_are_the_unchanged_object_or_empty(details: bytes, text: str) -> None:
    assert only(item_with("details", details))["details"] == text
    assert only(without("items", "details"))["details"] == "{}"


def test_lists_have_no_nulls_and_are_never_null() -> None:
    row = only(item(features=[None, "a", None, ""], description=None))
    assert (row["features"], row["description"]) == (["a", ""], [])
    assert only(without("items", "features"))["features"] == []


@pytest.mark.parametrize(
    ("images", "urls"),
    [
        (None, (None, None)),
        ([], (None, None)),
        ([{}], (None, None)),
        ([{"hi_res": None, "large": "l1"}, {"hi_res": "h2", "large": "l2"}], ("h2", "l1")),
        ([{"hi_res": "", "large": ""}, {"hi_res": "h2", "large": None}], ("h2", None)),
        ([{"thumb": 1, "variant": None, "large": "l1"}], (None, "l1")),
    ],
)
def test_an_image_is_the_first_url_of_its_kind(images: Any, urls: tuple[str | None, str | None]) -> None:
    row = only(item(images=images))
    assert (row["hi_res"], row["large"]) == urls


def test_neither_the_text_nor_the_user_of_a_review_is_stored() -> None:
    table, _ = parse_lines("reviews", GOOD["reviews"] + b"\n", 1)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    assert b"B01" in content
    assert b"secret" not in content
    assert b"AGNOBODY" not in content


def test_hashes_depend_only_on_the_user_and_on_the_line() -> None:
    lines = [review(), review(rating=1.0), review(user_id="V"), review() + b"\r", review()]
    table, _ = parse_lines("reviews", b"\n".join(lines) + b"\n", 1)
    users, hashed = table["user_hash"].to_pylist(), table["line_hash"].to_pylist()
    assert users[0] == users[1] == users[3] == users[4] != users[2]
    assert hashed[0] == hashed[3] == hashed[4]
    assert len({*hashed}) == 3


def test_review_hashes_are_the_same_on_every_machine_and_version() -> None:
    row = parse_lines("reviews", GOOD["reviews"] + b"\n", 1)[0].to_pylist()[0]
    assert (f"{row['line_hash']:016x}", f"{row['user_hash']:016x}") == ("13a5ff8445f254eb", "dda7ff206bcfa7e4")
