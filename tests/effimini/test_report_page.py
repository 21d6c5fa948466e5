"""The report in a real browser: it shows everything and makes no requests."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from playwright.sync_api import expect

from tests.conftest import Visit
from validation.checks import GATES

SECTIONS = ("model", "predictions", "examples", "groups", "inputs", "training", "weights", "rows", "data", "parameters")
FIGURES = 6


def test_a_click_on_each_section_shows_it(run: Path, visit: Visit) -> None:
    page, requests = visit(run / "results/report.html")
    links = page.get_by_role("navigation", name="Sections").get_by_role("link")
    assert [link.get_attribute("href") for link in links.all()] == [f"#{name}" for name in SECTIONS]
    for name, link in zip(SECTIONS, links.all(), strict=True):
        link.click()
        expect(page.locator(f"h2#{name}")).to_be_in_viewport()
    assert requests == []


def test_every_figure_image_and_table_is_shown(run: Path, visit: Visit) -> None:
    page, requests = visit(run / "results/report.html")
    for words in ("DEMO DATA", "EffiMini, image alone", "TF-IDF + ridge", "SmolVLM2", "Rows in = rows out"):
        expect(page.get_by_text(words).first).to_be_visible()
    figures = page.locator("figure svg")
    assert figures.count() == FIGURES
    sizes = figures.evaluate_all("all => all.map(one => one.getBoundingClientRect().width)")
    assert min(sizes) > 200
    widths = page.locator("article img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert set(widths) == {32}
    frame = pq.read_table(run / "data/predictions/test.parquet").to_pandas()
    off = frame["prediction"] - frame["average_rating"]
    assert page.locator("article").count() == min(6, (off < 0).sum()) + min(6, (off > 0).sum()) + 6 + 12
    assert min(table.locator("tbody tr").count() for table in page.locator("table").all()) > 0
    assert requests == []


def test_no_part_of_the_page_is_wider_than_a_phone_except_in_what_scrolls(run: Path, visit: Visit) -> None:
    page, _ = visit(run / "results/report.html")
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unreachable = "all => all.filter(one => one.scrollWidth > one.clientWidth && one.tabIndex < 0).length"
    assert page.locator(".scroll").evaluate_all(unreachable) == 0  # the others can be scrolled with the keyboard
    names = page.get_by_role("region").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert all(names)
    assert len(set(names)) == len(names)


def test_each_slice_has_its_row_and_a_small_one_its_reason(run: Path, visit: Visit) -> None:
    page, _ = visit(run / "results/report.html")
    by_category = page.get_by_role("region", name="By category")
    assert by_category.locator("tbody tr").count() == 3
    expect(by_category.get_by_role("row", name="Alpha 32")).to_be_visible()
    by_count = page.get_by_role("region", name="By number of ratings", exact=True)
    expect(by_count.get_by_role("row", name="0-1 4").get_by_text("fewer than 30 samples")).to_be_visible()
    inputs = page.get_by_role("region", name="Image and text left out")
    row = inputs.get_by_role("row", name="without image")
    expect(row.get_by_role("cell").nth(2)).to_have_text("0.00")  # there is no image to leave out
    for name in ("with features", "without description", "Latin"):
        expect(inputs.get_by_role("row", name=name)).to_be_visible()


def test_collapsed_details_open(run: Path, visit: Visit) -> None:
    page, requests = visit(run / "results/report.html")
    text = page.locator("article pre").first
    expect(text).to_be_hidden()
    page.locator("article summary").first.click()
    expect(text).to_be_visible()
    assert re.match("Main category: (Alpha|Beta)", str(text.text_content()))
    row = page.get_by_role("row", name="sample.fraction")
    expect(row).to_be_hidden()
    page.get_by_text("parameters that shards, model and evaluation depend on").click()
    expect(row).to_be_visible()
    assert requests == []


def test_the_links_to_the_checks_work_next_to_the_report(run: Path, visit: Visit, tmp_path: Path) -> None:
    shutil.copytree(run / "results", tmp_path / "results")
    docs = tmp_path / "results/validation"
    docs.mkdir()
    for table in GATES:
        (docs / f"{table}.html").write_text(f"<title>{table}</title>")
    page, requests = visit(tmp_path / "results/report.html")
    for table in GATES:
        page.get_by_role("navigation", name="Data Docs").get_by_role("link", name=table, exact=True).click()
        assert page.title() == table
        page.go_back()
    assert requests == []


def test_an_image_is_enlarged_by_a_click_or_the_space_bar(run: Path, visit: Visit) -> None:
    page, requests = visit(run / "results/report.html")
    image, box = page.locator("article img").first, page.get_by_label("Enlarge the image of").first

    def width() -> float:
        return float(image.evaluate("one => one.getBoundingClientRect().width"))

    small = width()
    image.click()
    assert width() > 5 * small
    image.click()
    assert width() == small
    box.focus()
    page.keyboard.press("Space")
    assert width() > 5 * small
    assert requests == []


def test_requests_of_a_page_are_detected(visit: Visit, tmp_path: Path) -> None:
    asks = '<img src="/picture.png"><link rel="stylesheet" href="http://127.0.0.1:9/style.css">'
    (tmp_path / "page.html").write_text(asks)
    _, requests = visit(tmp_path / "page.html")
    assert {url.rsplit("/", 1)[-1] for url in requests} == {"picture.png", "style.css"}
