"""The numbers that describe an item, read from what tools write of its raw fields."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prep.core.tables.tabular import COLUMNS, TABULAR_NAMES
from prep.core.tabular import read_count, read_image_count, read_names, read_price, tabular

RAW = {"features": [], "details": "{}", "price": None, "video_count": None, "image_count": None, "categories": None}
TEXTS = {"title": "", "features": "", "description": "", "details": ""}


def values(raw: dict[str, Any] | None = None, **texts: str) -> dict[str, float | None]:
    return tabular(RAW | (raw or {}), TEXTS | texts)


def test_every_column_is_listed_once_with_its_range_and_when_it_is_known() -> None:
    assert len(set(TABULAR_NAMES)) == len(COLUMNS)
    assert all(column.known in {"at_launch", "later"} and column.meaning for column in COLUMNS)
    later = {column.name for column in COLUMNS if column.known == "later"}
    assert later == {"price", "price_missing", "list_price", "video_count"}


def test_what_is_missing_is_never_0() -> None:
    assert {name: value for name, value in values().items() if value is not None} == {
        "price_missing": 1, "feature_count": 0, "detail_count": 0,
    }  # fmt: skip


def test_the_columns_of_an_item() -> None:
    details = {"Brand": "X", "List Price": "\u20b91,29,900", "Date First Available": "March 3, 2014"}
    raw = {
        "features": ["a", " ", "b"], "details": json.dumps(details), "price": 9.5, "video_count": 0, "image_count": 3,
        "categories": [],
    }  # fmt: skip
    title = "Heat (1995) [DVD] 2.5 m, 3 pack..."
    assert values(raw, title=title, features="a | b", description="cd", details="ef") == {
        "price": 9.5, "price_missing": 0, "list_price": 129_900, "title_length": len(title), "features_length": 5,
        "description_length": 2, "details_length": 2, "feature_count": 2, "detail_count": 3, "image_count": 3,
        "video_count": 0, "category_count": 0, "title_numbers": 3, "title_year": 1995, "available_year": 2014,
        "title_truncated": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "price"),
    [
        (9.99, 9.99), (12, 12), ("9.99", 9.99), ("12", 12), ("$1,299.00", 1299), ("$ 1,299", 1299), ("1,299.00", 1299),
        ("US$5.50", 5.5), ("\u20b91,29,900.00", 129_900), ("Rs. 420", 420), ("EUR 12,50", 12.5), ("12,50 \u20ac", 12.5),
        ("1.299,00 \u20ac", 1299), ("1\u00a0299,00\u00a0\u20ac", 1299), ("1.299", 1.299), ("\u00a30.99", 0.99),
        (" 7.5 ", 7.5), (".5", 0.5), ("CHF 1\u2019299.50", None),
        (None, None), ("None", None), ("", None), ("nan", None), (math.nan, None), (math.inf, None), (0, None),
        (0.0, None), (-3, None), (True, None), ([9.99], None), ({"a": 1}, None), ("from 12.50", None), (10**400, None),
        ("$9.99 - $19.99", None), ("\u20ac1.299", None), ("ab 5", None), ("9.99 each", None), ("\u0663", None),
        ("1,2,3", None), ("Infinity", None), ("1e400", None), ("\ud83d", None),
    ],
)  # fmt: skip
def test_a_price_has_one_plain_meaning_or_is_missing(value: object, price: float | None) -> None:
    assert read_price(value) == price


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ([], 0), ([{"title": "a"}], 1), ([None, {}], 1), ({"title": ["a", "b"], "url": ["u", None]}, 2),
        ({"title": [], "url": []}, 0), ({"title": None, "url": None}, None), ({}, 0), (3, 3), (3.0, 3), ("3", 3),
        ("[]", 0), ('[{"a": "}{"}, {"b": 1}]', 2), ("[{'a': None}, {'b': \"it's\"}]", 2), ("[{'a': 1}\n {'b': 2}]", 2),
        ("array([{'a': 1}, {'b': 2}], dtype=object)", 2), ("{'title': ['a', 'b']}", 2),
        (None, None), ("", None), ("None", None), ("nan", None), (math.nan, None), (-1, None), (1.5, None),
        (True, None), ("a video", None), ("[open", None), (math.inf, None),
    ],
)  # fmt: skip
def test_a_list_is_counted_however_a_tool_wrote_it(value: object, count: int | None) -> None:
    assert read_count(value) == count


def test_pandas_cells_of_objects_are_counted(tmp_path: Path) -> None:
    lists = [[{"title": "a", "url": "u"}, {"title": "b's \\d", "url": "v"}], []]
    frame = pd.DataFrame({"lists": lists, "arrays": [np.array(one, object) for one in lists]})
    frame.to_csv(tmp_path / "items.csv", index=False)
    cells = pd.read_csv(tmp_path / "items.csv", dtype=str)
    assert [[read_count(cell) for cell in cells[name]] for name in cells] == [[2, 0], [2, 0]]


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ([{"hi_res": None, "large": "a"}, {"hi_res": "b"}, {"large": "None"}, {}], 2), ([], 0), ("[]", 0), ("", None),
        ({"hi_res": [None, "b"], "large": ["a"], "thumb": [None] * 9}, 2), ({"hi_res": [], "large": []}, 0),
        ('[{"large": "a"}]', 1), ("['a', 'b']", 2), (None, None), ("4", 4),
    ],
)  # fmt: skip
def test_images_with_a_url_are_counted(value: object, count: int | None) -> None:
    assert read_image_count(value) == count


def test_categories_are_a_list_of_texts_or_missing() -> None:
    assert read_names(["a", None]) == read_names('["a"]') == read_names("['a']") == ["a"]
    assert read_names([]) == read_names("[]") == []
    assert {read_names(value) is None for value in (None, "", "nan", {"a": 1}, [["a"]], [1], ["\ud83d"])} == {True}


@pytest.mark.parametrize("name", ["Best Sellers Rank", "Customer Reviews", "Kundenrezensionen"])
def test_a_leak_is_not_counted(name: str) -> None:
    details = {"Brand": "X", name: {"stars": 4.4}, "Color": "red"}
    assert values({"details": json.dumps(details)})["detail_count"] == 2
