"""The Data Docs in a real browser: complete, styled, and without requests."""

import dataclasses
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

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
    # what passed is folded
    assert page.locator("details:not([open])").count() == len(PARAMS.source.categories)
    row = page.get_by_role("row", name="parent_asin unique").first
    expect(row).to_be_hidden()
    page.get_by_text(f"items/{tree.ONE} ").click()
    expect(row).to_be_visible()
    # each histogram counts the rows with a value, and times are dates
    rows = pd.concat(pq.read_table(path).to_pandas() for path in (data / "items" / tree.ONE).glob("*.parquet"))
    of_one = page.get_by_role("region", name=f"Columns of {tree.ONE}")
    for name in ("average_rating", "rating_number", "last_review", "size of title"):
        column = rows[name.removeprefix("size of ")].replace("", None).dropna()
        bars = of_one.get_by_role("img", name=f"Histogram of {name}", exact=True).locator("i")
        titles = bars.evaluate_all("all => all.map(one => one.title)")
        assert sum(int(title.rpartition(": ")[2].replace(",", "")) for title in titles) == len(column) > 0
    days = pd.to_datetime(rows["last_review"], unit="ms").dt.date
    cells = of_one.get_by_role("row", name="last_review").locator("td.n").all_text_contents()
    assert (cells[2], cells[-1]) == (str(days.min()), str(days.max()))
    page.set_viewport_size({"width": 500, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 500


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
    expect(page.get_by_role("row", name="joined: review_mean between 1 and 5")).to_be_in_viewport()
    assert page.locator("details[open]").count() == 0
    assert page.locator("details").get_by_text("review_mean between 1 and 5").count() == 0


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
