"""Two runs are compared item by item where both test the same items with the same label."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from effimini import metrics
from effimini.cli import app
from effimini.compare import RunComparison, compare, previous_run, read_run
from prep.core.errors import UserError
from prep.core.tables.predictions import PREDICTIONS
from tests.clone import Clone


def write(folder: Path, numbers: Sequence[int], noise: float, params: str = "train: {seed: 1}\n") -> None:
    """Write the predictions of a run that tests the items with these numbers."""
    random = np.random.default_rng(int(100 * noise))
    labels = [1 + number % 9 / 2 for number in numbers]
    rows = {
        "parent_asin": [f"B{number:03d}" for number in numbers],
        "category": ["Toys"] * len(numbers),
        "split": ["test"] * len(numbers),
        "average_rating": labels,
        "rating_number": [5000 if number == 99 else 3 for number in numbers],
        "has_image": [True] * len(numbers),
        "prediction": np.array(labels) + random.normal(0, noise, len(numbers)),
    }
    (folder / "data/predictions").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows, PREDICTIONS), folder / "data/predictions/test.parquet")
    (folder / "params.yaml").write_text(params)


def compared(first: Path, second: Path) -> RunComparison:
    """Return how the runs of two folders compare."""
    return compare(read_run(str(first)), read_run(str(second)))


def test_the_difference_is_paired_on_the_items_that_both_test(tmp_path: Path) -> None:
    write(tmp_path / "a", range(100), 2.0)
    write(tmp_path / "b", range(20, 140), 0.5, "train: {seed: 2}\nsample: {split: time}\n")
    found = compared(tmp_path / "a", tmp_path / "b")
    assert [run.samples for run in found.runs] == [100, 120]
    assert (found.shared, found.relabelled) == (80, 0)
    first, second = (pq.read_table(tmp_path / name / "data/predictions/test.parquet").to_pandas() for name in "ab")
    ours, theirs = second[:80], first[20:]
    assert list(ours["parent_asin"]) == list(theirs["parent_asin"])
    stars = [table["prediction"].to_numpy() for table in (ours, theirs)]
    difference, low, high = metrics.lead(*stars, ours["average_rating"].to_numpy(), 1000, 0)
    assert (found.difference, found.interval) == (difference, (low, high))
    assert low > 0
    assert found.parameters == {"train.seed": [1, 2], "sample.split": [None, "time"]}
    assert [run.split for run in found.runs] == [None, "time"]
    assert [(group.by, group.group, group.samples) for group in found.groups] == [
        ("category", "Toys", 80),
        ("rating_number", "2-4", 79),
        ("rating_number", "1000+", 1),
    ]
    toys, few, one = found.groups
    assert (toys.difference, toys.interval) == (difference, (low, high))
    assert few.difference is not None
    assert few.difference != difference
    assert one.difference is None


def test_other_labels_and_few_items_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a", range(40), 1.0)
    write(tmp_path / "b", range(40), 0.5)
    path = tmp_path / "b/data/predictions/test.parquet"
    table = pq.read_table(path)
    labels = table["average_rating"].to_numpy().copy()
    labels[:15] = 5.0
    pq.write_table(table.set_column(3, PREDICTIONS.field(3), pa.array(labels)), path)
    found = compared(tmp_path / "a", tmp_path / "b")
    assert found.shared + found.relabelled == 40
    assert found.relabelled >= 13
    assert (found.difference, found.interval) == (None, None)
    shown = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")]).stdout
    assert "fewer than 30, so the runs are not compared item by item" in " ".join(shown.split())


def test_revisions_are_read_from_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Clone(tmp_path).run
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    for tag, noise in (("v1", 2.0), ("v2", 0.5)):
        write(tmp_path, range(60), noise, f"train: {{seed: {noise}}}\n")
        run("dvc", "add", "-q", "data/predictions")
        run("git", "add", "-A")
        run("git", "commit", "-qm", tag)
        run("git", "tag", tag)
    monkeypatch.chdir(tmp_path)
    found = json.loads(CliRunner().invoke(app, ["compare", "v1", "v2", "--json"], catch_exceptions=False).stdout)
    assert found["shared"] == 60
    assert found["difference"] > 0
    assert found["parameters"] == {"train.seed": [2.0, 0.5]}
    here = json.loads(CliRunner().invoke(app, ["compare", "v2", "--json"], catch_exceptions=False).stdout)
    assert (here["difference"], here["parameters"]) == (0, {})
    commit = subprocess.run(("git", "rev-parse", "--short=7", "v2"), capture_output=True, text=True, check=True)
    assert [run["commit"] for run in here["runs"]] == [commit.stdout.strip()] * 2
    (tmp_path / "params.yaml").write_text("train: {seed: 3}\n")
    assert read_run(".").commit == ""  # not committed
    write(tmp_path / "copy", range(3), 1.0)
    assert read_run("copy").commit == ""  # within another project
    with pytest.raises(UserError, match="has no revision v3"):
        read_run("v3")


def test_a_run_without_predictions_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a", range(40), 1.0)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"test\.parquet does not exist; run `dvc repro evaluate` there"):
        compared(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a/data/predictions/test.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a table of predictions"):
        compared(tmp_path / "a", tmp_path / "a")


def test_the_previous_run_is_the_last_commit_with_other_predictions(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return Clone(tmp_path).run("git", *words).stdout.strip()

    def lock(predictions: str, other: str) -> None:
        outs = [{"path": "data/predictions", "md5": predictions}, {"path": "results", "md5": other}]
        (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"evaluate": {"outs": outs}}}))

    git("init", "-q")
    commits = []
    for predictions, other in (("a", "1"), ("b", "1"), ("b", "2")):
        lock(predictions, other)
        git("add", "-A")
        git("commit", "-qm", predictions)
        commits.append(git("rev-parse", "--short", "HEAD"))
    assert previous_run(tmp_path) == commits[0]
    lock("c", "2")  # not committed
    assert previous_run(tmp_path) == commits[2]
    lock("b", "3")
    assert previous_run(tmp_path) == commits[0]
