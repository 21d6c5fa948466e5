"""The report beside other runs: both protocols, paired differences, near duplicates with their images."""

import re
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from effimini.run_report import run_report
from prep.core.errors import UserError
from prep.core.params import Params
from prep.core.tables.exclusions import EXCLUSIONS
from tests.clone import Clone
from tests.conftest import Visit


@pytest.fixture
def project(run: Path, run_params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that has run, with one excluded item of each reason."""
    shutil.copytree(run, tmp_path / "project")
    pair = {"other_split": "test", "other_category": "Beta"}
    rows = [
        {"parent_asin": "ATR00001", "reason": "same_picture", "other_asin": "BTE00002", "difference": 12.5},
        {"parent_asin": "ATR00005", "reason": "same_product_title", "other_asin": "BTE00003", "difference": None},
    ]
    path = tmp_path / "project/data/exclusions/Alpha/train-00.parquet"
    pq.write_table(pa.Table.from_pylist([row | pair for row in rows], EXCLUSIONS), path)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def other_run(project: Path, params: str, shift: float, rows: int) -> Path:
    """Return the folder of a run that tests the first items of `project`, with other predictions."""
    folder = project.parent / "by time"
    (folder / "data/predictions").mkdir(parents=True)
    table = pq.read_table(project / "data/predictions/test.parquet").to_pandas().head(rows)
    table["prediction"] += shift * (table.index % 2)
    table.to_parquet(folder / "data/predictions/test.parquet")
    (folder / "params.yaml").write_text(params)
    return folder


def test_other_runs_are_shown_with_their_protocol_and_a_paired_difference(
    project: Path, run_params: Params, visit: Visit
) -> None:
    before = (project / "results/report.html").read_bytes()
    (project / "params.yaml").write_text("sample: {split: hash, fraction: 0.2}\nevaluate: {bootstrap: 100, seed: 0}\n")
    other = other_run(project, "sample: {split: time, fraction: 0.4}\n", 0.5, 60)
    found = run_report([str(other)], run_params, Path("data"), Path("results"))
    assert [[run.run for run in each.runs] for each in found.compared] == [[str(other), "this run"]]
    assert (project / "results/report.html").read_bytes() == before
    (project / "results/runs.html").write_text(found.page)
    page, requests = visit(project / "results/runs.html")
    table = page.get_by_role("region", name="Runs", exact=True)
    this, by_time = (table.locator("tbody tr").nth(i).get_by_role("cell").all_text_contents() for i in (0, 1))
    assert this[:3] == ["hash", "0.2", "64"]
    assert by_time[:3] == ["time", "0.4", "60"]
    assert by_time[5] == "60"  # shared
    assert by_time[6].startswith("+0.")
    report = page.locator("dl.key").first
    expect(report).to_contain_text(this[3])  # the same PLCC and interval as in the report
    expect(report).to_contain_text(this[4])
    page.get_by_text(f"This run and {other}, by group").click()
    groups = page.get_by_role("region", name=f"This run and {other}, by group")
    expect(groups.get_by_role("row", name="Alpha")).to_contain_text("32")
    parameters = page.get_by_role("region", name=f"Parameters of this run and {other}")
    expect(parameters.get_by_role("row", name="sample.split")).to_contain_text("time")
    page.set_viewport_size({"width": 500, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    assert requests == []


def test_near_duplicates_are_shown_in_pairs(project: Path, run_params: Params, visit: Visit) -> None:
    (project / "results/runs.html").write_text(run_report([], run_params, Path("data"), Path("results")).page)
    page, requests = visit(project / "results/runs.html")
    pairs = page.locator("article.pair")
    assert pairs.count() == 2
    for words in (("ATR00001", "BTE00002", "12.5 of 255"), ("ATR00005", "excluded: train, Alpha", "test, Beta")):
        for word in words:
            expect(pairs.filter(has_text=words[0])).to_contain_text(word)
    assert pairs.nth(0).locator("img").count() == 2
    assert pairs.nth(1).locator("img").count() == 1  # every fifth item has no image
    assert pairs.nth(1).get_by_text("no image").count() == 1
    assert requests == []


def test_a_missing_or_an_older_report_is_an_error(project: Path, run_params: Params) -> None:
    page = project / "results/report.html"
    page.write_text(page.read_text().replace("<!-- runs -->", ""))
    with pytest.raises(UserError, match="report.html was written by another version of EffiMini; run `dvc repro evalu"):
        run_report([], run_params, Path("data"), Path("results"))
    page.unlink()
    with pytest.raises(UserError, match="report.html does not exist; run `dvc repro evaluate`"):
        run_report([], run_params, Path("data"), Path("results"))


def test_the_previous_run_is_shown_once(project: Path, run_params: Params) -> None:
    run = Clone(project).run

    def rows(*others: str) -> list[tuple[str, str]]:
        page = run_report(others, run_params, Path("data"), Path("results")).page
        section = page[page.index('id="runs"') : page.index('id="model"')]
        return re.findall(r'<th scope="row">([^<]+)<small>([^,]+),', section[: section.index("</table>")])

    predictions = Path("data/predictions")
    Path("params.yaml").write_text("evaluate: {bootstrap: 100, seed: 0}\n")
    Path("dvc.yaml").write_text(f"stages: {{evaluate: {{cmd: 'true', outs: [{predictions}: {{persist: true}}]}}}}\n")
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("dvc", "repro", "-q")
    run("git", "add", "dvc.yaml", "dvc.lock", "params.yaml")
    run("git", "commit", "-qm", "first")
    head = subprocess.run(("git", "rev-parse", "--short=7", "HEAD"), capture_output=True, text=True, check=True)
    first = head.stdout.strip()
    assert rows() == [("this run", first)]
    table = pq.read_table(predictions / "test.parquet").to_pandas()
    table["prediction"] += 0.25
    table.to_parquet(predictions / "test.parquet")
    run("dvc", "commit", "-q", "-f")
    assert rows() == [("this run", "not committed"), ("previous run", first)]
    assert rows("HEAD") == [("this run", "not committed"), ("HEAD", first)]
