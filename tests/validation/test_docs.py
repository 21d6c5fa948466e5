"""The Data Docs in a real browser: complete, styled, and without requests."""

import dataclasses
import re
from pathlib import Path

import pytest

from prep.core.errors import UserError
from prep.core.params import Limits
from tests.conftest import Visit
from tests.validation import tree
from validation.checks import GATES
from validation.validate import accept, validate

PARAMS = tree.small_params()


def docs(data: Path, table: str) -> Path:
    return data.parent / "results/validation" / f"{table}.html"


def test_a_page_shows_every_expectation_and_links_the_others(data: Path, visit: Visit) -> None:
    validate("items", PARAMS, data)
    page, requests = visit(docs(data, "items"))
    dom = page.content()
    assert requests == []
    assert "items: passed" in dom
    for text in ("parent_asin unique", "review_mean between 1 and 5", f"Columns of {tree.ONE}", "size of title"):
        assert text in dom
    assert {f"{table}.html" for table in GATES} <= set(re.findall(r'href="([^"]+)"', dom))


def test_the_page_of_a_failed_table_shows_what_failed_and_where(data: Path, visit: Visit) -> None:
    path = data / "items" / tree.ONE / "items-000.parquet"
    tree.edit(path, lambda rows: rows[0].update(review_mean=9.0))
    with pytest.raises(UserError):
        validate("items", PARAMS, data)
    page, requests = visit(docs(data, "items"))
    dom = page.content()
    assert requests == []
    assert "items: failed" in dom
    assert "(review_mean 9.0)" in dom


def test_the_largest_drift_is_shown_first(data: Path, visit: Visit) -> None:
    for table in ("items", "sample", "images"):
        validate(table, PARAMS, data)
    accepted = accept(data)
    text = accepted.read_text()
    accepted.write_text(text.replace(f"items,{tree.OTHER},", "items,Removed,"))
    path = data / "profiles/sample.csv"
    path.write_text(re.sub(rf"(sample,{tree.ONE},size of title,\d+),0,", r"\1,0.4,", path.read_text()))
    validate("profiles", PARAMS, data)
    page, requests = visit(docs(data, "profiles"))
    dom = page.content()
    assert requests == []
    rows = re.findall(r"<tr><td>(\w+)</td><td>(\w+)</td><td>([^<]+)</td><td>([^<]+)</td>", dom)
    assert rows[0] == ("sample", tree.ONE, "size of title", "absent")
    assert f"added: items {tree.OTHER}" in dom
    loose = dataclasses.replace(PARAMS.validation, drift=Limits(warn_above=0.1, fail_above=0.3))
    with pytest.raises(UserError, match=r"effimini accept"):
        validate("profiles", dataclasses.replace(PARAMS, validation=loose), data)
