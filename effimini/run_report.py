"""The report of a project's run with its commit and date, beside other runs, and with the near duplicates as images.

Input: results/report.html, which the stage `evaluate` wrote, the predictions of this run and of others, and
data/exclusions with the tables that it was made from. Output: a self-contained HTML page. Guarantees:
results/report.html is not changed, so it stays a function of shards, model and parameters; a difference between runs is
paired by item.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.parquet as pq

from effimini.compare import Run, RunComparison, compare, paired, previous_run, read_run
from effimini.slices import SMALL
from prep.core.errors import UserError
from prep.core.params import Params
from prep.core.parts import part_files
from prep.core.tables.exclusions import EXCLUSIONS, SAME_PICTURE, SAME_PRODUCT_TITLE
from prep.core.templates import data_url, render

log = logging.getLogger(__name__)

SHOWN = 12  # near duplicates of each reason
# Comments in report.html.jinja, each of which is replaced.
_LINKS, _RUNS, _NEAR_DUPLICATES = "<!-- links -->", "<!-- runs -->", "<!-- near duplicates -->"


class _Item(NamedTuple):
    """An item of a pair."""

    category: str
    parent_asin: str
    split: str
    title: str
    image: str  # a data: URL, empty if there is no image


class _Pair(NamedTuple):
    """An excluded item, and one that it repeats."""

    excluded: _Item
    kept: _Item
    difference: float | None  # of the pictures


class RunReport(NamedTuple):
    """The page, and what it compares: every other run with this one."""

    page: str
    compared: list[RunComparison]


def run_report(others: Sequence[str], params: Params, data: Path, results: Path, repo: str = ".") -> RunReport:
    """Return the page and the comparisons that it shows.

    Args:
        others: runs beside this one, as `effimini.compare.read_run` names them. Before them comes the last commit with
            other predictions, if there is one and its predictions are at hand.
        params: the parameters; the categories are read.
        data: the folder of the tables.
        results: the folder that contains report.html.
        repo: the project that the revisions belong to.

    Raises:
        UserError: there is no report, or it is of another version; a run has no predictions.
    """
    path = results / "report.html"
    if not path.exists():
        raise UserError(f"{path} does not exist; run `dvc repro evaluate`")
    page = path.read_text(encoding="utf-8")
    this, named = read_run(str(data.parent), shown="this run"), [read_run(name, repo) for name in others]
    commits = {run.commit for run in named}
    previous = [run for run in _previous(data.parent) if run.commit not in commits]
    compared = [compare(other, this) for other in (*previous, *named)]
    fragments = {
        _LINKS: '<a href="#runs">Runs</a><a href="#near-duplicates">Near duplicates</a>',
        _RUNS: _runs(this, compared),
        _NEAR_DUPLICATES: _near_duplicates(params.source.categories, data),
    }
    for mark, fragment in fragments.items():
        if page.count(mark) != 1:
            raise UserError(f"{path} was written by another version of EffiMini; run `dvc repro evaluate`")
        page = page.replace(mark, fragment)
    return RunReport(page, compared)


def _previous(project: Path) -> Iterator[Run]:
    """Yield the run before that of a project's folder, if it can be read."""
    try:
        if commit := previous_run(project):
            yield read_run(commit, str(project), "previous run")
    except UserError as error:
        log.info("the previous run is left out: %s", error)


def _runs(this: Run, compared: Sequence[RunComparison]) -> str:
    """Return the section that shows the runs."""
    rows: list[tuple[Any, int | None, str]] = [(this.scores, None, "")]
    rows += [(found.runs[0], found.shared, paired(found)) for found in compared]
    return render("effimini", "runs.html.jinja", {"runs": rows, "compared": compared, "small": SMALL})


def _near_duplicates(categories: Sequence[str], data: Path) -> str:
    """Return the section that shows excluded items."""
    tables = [
        pq.read_table(path).to_pandas().assign(category=category, part=path.stem)
        for category in categories
        for path in part_files(data / "exclusions" / category)
    ]
    none = EXCLUSIONS.empty_table().to_pandas().assign(category="", part="")
    excluded = pd.concat(tables or [none]).sort_values(
        ["difference", "category", "parent_asin"], ascending=[False, True, True]
    )
    reasons = {reason: excluded[excluded["reason"] == reason] for reason in (SAME_PICTURE, SAME_PRODUCT_TITLE)}
    return render(
        "effimini",
        "near_duplicates.html.jinja",
        {
            "most": SHOWN,
            "counts": {reason: len(rows) for reason, rows in reasons.items()},
            "pairs": {
                reason: [_pair(row, data) for row in rows.head(SHOWN).itertuples()] for reason, rows in reasons.items()
            },
        },
    )


def _pair(row: Any, data: Path) -> _Pair:
    kept_parts = [
        path.stem for path in part_files(data / "sample" / row.other_category) if path.stem.startswith(row.other_split)
    ]
    return _Pair(
        _item(row.category, row.parent_asin, [row.part], data),
        _item(row.other_category, row.other_asin, kept_parts, data),
        None if pd.isna(row.difference) else float(row.difference),
    )


def _item(category: str, parent_asin: str, parts: Sequence[str], data: Path) -> _Item:
    """Return an item of one of some parts of a category; without title and image if the tables are not there."""
    only, title, image = [("parent_asin", "=", parent_asin)], "", b""
    for part in parts:
        sample, images = (data / table / category / f"{part}.parquet" for table in ("sample", "images"))
        if sample.exists() and (found := pq.read_table(sample, columns=["title"], filters=only)).num_rows:
            title = found["title"][0].as_py() or ""
        if images.exists() and (found := pq.read_table(images, columns=["image"], filters=only)).num_rows:
            image = found["image"][0].as_py()
    return _Item(
        category, parent_asin, parts[0].split("-")[0] if parts else "", title, data_url(image) if image else ""
    )
