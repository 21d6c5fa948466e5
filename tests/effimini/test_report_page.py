"""The report in a real browser: it shows everything and asks for nothing."""

from collections.abc import Callable
from pathlib import Path


def test_the_report_shows_everything_and_asks_for_nothing(
    run: Path, opened: Callable[[str], tuple[str, set[str]]]
) -> None:
    dom, asked = opened((run / "results/report.html").read_text())
    for words in ("DEMO DATA", "EffiMini", "TF-IDF + ridge", "Calibration", "sample.fraction", "Rows in = rows out"):
        assert words in dom
    assert dom.count("<svg") == 4
    assert asked == set()


def test_a_page_that_asks_for_something_would_be_seen(opened: Callable[[str], tuple[str, set[str]]]) -> None:
    _, asked = opened('<img src="/picture.png"><link rel="stylesheet" href="http://127.0.0.1:9/style.css">')
    assert {url.rsplit("/", 1)[-1] for url in asked} == {"picture.png", "style.css"}
