"""A line that another tool wrote again is the row that it was."""

import io
import json
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from prep.core.tables.raw import Kind
from prep.records import parse_lines
from tests.prep.test_records import ITEM, REVIEW, item_with

IMAGES = [{"hi_res": None, "large": "https://a/1.jpg"}, {"hi_res": "https://a/2.jpg", "large": "https://a/3.jpg"}]
WHOLE = ITEM | {"images": IMAGES, "features": ["x", "y"], "description": ["text"], "store": "S", "main_category": "M"}


def rows(kind: Kind, lines: bytes) -> list[dict[str, Any]]:
    table, rejects = parse_lines(kind, lines, 1)
    assert [(one.line, one.reason, one.found) for one in rejects] == []
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def changed(kind: Kind, **changes: Any) -> dict[str, Any]:
    """Return the row of a line of another tool."""
    return rows(kind, json.dumps((WHOLE if kind == "items" else REVIEW) | changes).encode() + b"\n")[0]


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("rating_number", 3.0, 3),
        ("rating_number", "3", 3),
        ("rating_number", "3.0", 3),
        ("rating_number", " 3 ", 3),
        ("rating_number", float("nan"), None),
        ("rating_number", "nan", None),
        ("rating_number", "None", None),
        ("average_rating", "4.5", 4.5),
        ("average_rating", "4", 4),
        ("average_rating", float("nan"), None),
        ("average_rating", "<NA>", None),
        ("title", 1984, "1984"),
        ("title", float("nan"), None),
        ("store", 7, "7"),
        ("features", ["a", 12, 1.5, None, float("nan")], ["a", "12", "1.5"]),
        ("features", "one text", ["one text"]),
        ("features", "['a' 'b']", ["a", "b"]),
        ("features", '["a", "b"]', ["a", "b"]),
        ("features", float("nan"), []),
        ("features", "nan", []),
        ("features", "[]", []),
        ("description", "one text", ["one text"]),
        ("description", [1], ["1"]),
        ("details", {"a": float("nan"), "b": 1.50}, {"a": None, "b": 1.5}),
        ("details", '{"a": 1}', {"a": 1}),
        ("details", float("nan"), {}),
        ("images", [None, *IMAGES, None], IMAGES),
        ("images", [None], []),
        ("images", {"hi_res": [None, "https://a/2.jpg"], "large": ["https://a/1.jpg"], "thumb": [None] * 9}, IMAGES),
        ("images", {"hi_res": [], "large": []}, []),
        ("images", {"hi_res": None, "large": "https://a/1.jpg"}, IMAGES[:1]),
        ("images", json.dumps(IMAGES), IMAGES),
        ("images", [{"hi_res": "None", "large": "nan"}, *IMAGES], IMAGES),
        ("images", "nan", None),
        ("images", float("nan"), None),
        ("price", float("inf"), None),
        ("price", float("nan"), None),
        ("price", "None", None),
        ("price", "\ud83d", None),
        ("price", "$1,299.00", 1299.0),
        ("videos", ["\ud83d"], [{"title": "a video"}]),
        ("videos", {"title": ["a", None], "url": ["u", "v"], "user_id": [None, None]}, [{}, {}]),
        ("videos", {"title": [], "url": [], "user_id": []}, []),
        ("videos", "[{'title': 'a'}, {'title': 'b'}]", [{}, {}]),
        ("videos", float("nan"), None),
        ("categories", {"\udfff": 1}, None),
        ("categories", "['Home' 'Lamps']", ["Home", "Lamps"]),
        ("categories", [None, "Home"], ["Home"]),
        ("categories", "nan", None),
    ],
)
def test_a_value_of_one_plain_meaning_is_read(name: str, value: Any, same: Any) -> None:
    found = changed("items", **{name: value})
    expected = changed("items", **{name: same})
    for row in (found, expected):
        row["details"] = json.loads(row["details"])
    assert found == expected


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("rating", "5", 5.0),
        ("rating", "5.0", 5.0),
        ("timestamp", 1_500_000_000_000.0, 1_500_000_000_000),
        ("timestamp", "1500000000000", 1_500_000_000_000),
        ("timestamp", "1500000000000.0", 1_500_000_000_000),
        ("timestamp", "2017-07-14T02:40:00.123Z", 1_500_000_000_123),
        ("timestamp", "2017-07-14 02:40:00.123", 1_500_000_000_123),
        ("timestamp", "2017-07-14T04:40:00.123000+02:00", 1_500_000_000_123),
        ("verified_purchase", None, False),
        ("verified_purchase", float("nan"), False),
        ("verified_purchase", "True", True),
        ("verified_purchase", "False", False),
        ("verified_purchase", "false", False),
        ("verified_purchase", 1.0, True),
        ("verified_purchase", 0, False),
        ("verified_purchase", "None", False),
        ("text", "\ud83d", "so"),
        ("helpful_vote", float("nan"), 2),
    ],
)
def test_a_value_of_a_review_is_read(name: str, value: Any, same: Any) -> None:
    found, expected = changed("reviews", **{name: value}), changed("reviews", **{name: same})
    del found["line_hash"], expected["line_hash"]  # of the line as it is
    assert found == expected


def test_a_byte_order_mark_before_a_line_is_nothing() -> None:
    for kind, record in (("items", ITEM), ("reviews", REVIEW)):
        line = json.dumps(record, ensure_ascii=False).encode()
        marked = b"\xef\xbb\xbf" + line
        for ending in (b"\n", b"\r\n"):
            assert rows(kind, ending.join([marked, line, marked, b""])) == rows(kind, (line + b"\n") * 3)


def test_a_byte_order_mark_in_a_text_stays() -> None:
    assert rows("items", item_with("title", '"a\ufeffb"'.encode()) + b"\n")[0]["title"] == "a\ufeffb"


def by_pandas(frame: pd.DataFrame) -> bytes:
    text = io.StringIO()
    frame.to_json(text, orient="records", lines=True)
    return text.getvalue().encode()


def by_dumps(frame: pd.DataFrame) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in frame.to_dict("records"))


def by_datasets(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    datasets.Dataset.from_list(frame.replace({np.nan: None}).to_dict("records")).to_json(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [by_pandas, by_dumps, by_datasets])
def test_what_tools_write_of_items_and_reviews_is_read(write: Callable[[pd.DataFrame], bytes]) -> None:
    items = [WHOLE | {"parent_asin": f"B{n}", "rating_number": n or None, "details": {"a": "b"}} for n in range(3)]
    reviews = [REVIEW | {"user_id": f"U{n}", "rating": n + 1, "verified_purchase": [True, False][n]} for n in range(2)]
    plain = b"".join(json.dumps(one).encode() + b"\n" for one in items)
    found, expected = rows("items", write(pd.DataFrame(items))), rows("items", plain)
    for row in [*found, *expected]:
        row["details"] = json.loads(row["details"])
    assert found == expected
    frame = pd.read_json(io.StringIO("".join(json.dumps(one) + "\n" for one in reviews)), lines=True)
    assert pd.api.types.is_datetime64_any_dtype(frame["timestamp"])  # pandas reads a column of this name as times
    whole = rows("reviews", b"".join(json.dumps(one).encode() + b"\n" for one in reviews))
    again = rows("reviews", frame.to_json(orient="records", lines=True, date_format="iso").encode())
    for row in [*whole, *again]:
        del row["line_hash"]
    assert again == whole


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"parent_asin": "B01", "rating_number": "many"}', "rating_number many"),
        (b'{"parent_asin": "B01", "average_rating": [4]}', "average_rating [4]"),
        (b'{"title": "x"}', "parent_asin is missing"),
        (b'{"parent_asin": "nan"}', "parent_asin nan"),
        (b'{"parent_asin": "B01", "title": {"a\\n\\u0007b": 1}}', "title {'a\\n\\x07b': 1}"),
        (b'{"parent_asin": "a\\n\\u0007\\u2028' + b"b" * 300 + b'"}', "parent_asin a   " + "b" * 56 + "..."),
        (b"<html>\t" + b"x" * 99, "<html> " + "x" * 53 + "..."),
        (b'{"parent_asin": "B01", "title": "a" "b"}', '..."B01", "title": "a" "b"}'),
        (b'{"parent_asin": "B01", "tit', '...t_asin": "B01", "tit'),
        (b"[1]", "[1]"),
        (b"\xff\xfe{", "\ufffd\ufffd{"),
    ],
)
def test_a_reject_names_the_field_and_its_value(line: bytes, found: str) -> None:
    _, rejects = parse_lines("items", line + b"\n", 1)
    assert [one.found for one in rejects] == [found]


def test_values_of_only_a_few_rejects_are_kept() -> None:
    _, rejects = parse_lines("items", b"{}\n" * 1000, 1)
    assert len(rejects) == 1000
    assert sum(bool(one.found) for one in rejects) == 3
