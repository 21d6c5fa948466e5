"""A printed list is read whole or refused, and text that is no list stays."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.core.lists import read_list

WORDS = ["one here", "it's", 'a "b"', "c, d", "[x]", "(e) f", "back\\slash", "two\nlines", "é😀", "...", "nan", ""]


@pytest.mark.parametrize(
    "text",
    [
        "['one here' 'two here']",
        "['one here'\n 'two here']",
        '["one here" "two here"]',
        "['one here', 'two here']",
        '["one here", "two here"]',
        "('one here', 'two here')",
        " ['one here' , nan 'two here', None] ",
        '["one here", null, "two here", NaN]',
        "array(['one here', 'two here'], dtype=object)",
        "array(['one here', 'two here'],\n      dtype='<U8')",
        "np.array([u'one here', u'two here'])",
        "[np.str_('one here'), np.str_('two here')]",
        "list(['one here', 'two here'])",
        "Index(['one here', 'two here'], dtype='object')",
        "<StringArray>\n['one here', 'two here']\nLength: 2, dtype: string",
    ],
)
def test_a_printed_list_is_read(text: str) -> None:
    assert read_list(text) == ["one here", "two here"]


@pytest.mark.parametrize(
    "text", ["", " ", "[]", "()", "[nan]", "[None]", "[<NA> null]", "[NaN]", "[null, NaN]", "array([], dtype=object)"]
)
def test_a_list_of_nothing_is_empty(text: str) -> None:
    assert read_list(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "['a' 1]",
        "['a' ... 'z']",
        "array(['a', ..., 'z'], shape=(2000,), dtype='<U1')",
        "[['a', 'b'], ['c']]",
        "[array(['a'], dtype=object)]",
        '[["a"]]',
        '["a", {"b": 1}]',
        "['a', {'b': 1}]",
        "[b'a']",
        "['a', True]",
        "['a''b']",
        "['a' 'b",
        "['a', 'b'",
        '["a", "b',
        "[" + "9" * 5000 + "]",
    ],
)
def test_a_list_that_would_lose_something_is_refused(text: str) -> None:
    assert read_list(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "one | two",
        "[NEW] Kettle",
        "[2 pack] towels",
        '["Best"] kettle',
        "(2 pack)",
        "(2, 3)",
        '(6" x 4")',
        '[6" x 4"]',
        "['Tis the season] mug",
        "['a'] and 'b'",
        "('quoted')",
        "[",
        "((([",
        "[)",
        "array of lamps",
        "array(red)",
        "<Array> of lamps",
        "list(a)",
    ],
)
def test_text_that_is_no_list_stays(text: str) -> None:
    assert read_list(text) == [text]


@given(st.lists(st.text(max_size=8) | st.sampled_from(WORDS), max_size=5))
def test_what_tools_print_of_any_texts_is_read(texts: list[str]) -> None:
    array = np.array(texts, dtype=object)
    printed = [json.dumps(texts), json.dumps(texts, ensure_ascii=False), repr(texts), str(array), repr(array)]
    if len(texts) > 1:
        printed.append(repr(tuple(texts)))
    for text in printed:
        assert read_list(text) == texts


@given(st.lists(st.text("ab' \"", min_size=1, max_size=8), min_size=1, max_size=400))
def test_what_pandas_writes_of_any_column_is_read_or_refused(texts: list[str]) -> None:
    cell = pd.read_csv(pd.io.common.StringIO(pd.DataFrame({"f": [np.array(texts, object)]}).to_csv()))["f"][0]
    assert read_list(cell) == texts


def test_a_summary_of_many_texts_is_refused() -> None:
    assert read_list(str(np.array(["a"] * 2000, object))) is None
