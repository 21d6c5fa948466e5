"""A table with other columns, other ids and images by path goes from file to report, with the commands a user types."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prep.core.files import sha256
from tests.clone import SMALL, commit_project
from tests.prep.catalogue.test_convert import PRODUCTS, csv_file, png

TINY = {
    "sample.min_chars": 0,
    "images.resolution": 32,
    "decontaminate.reasons": [],
    "validation.drift.fail_above": 1000.0,
    "validation.mode_fraction.fail_above": 1.0,
    "model.image.name": "test_efficientnet",
    "model.hidden": [8],
    "train.epochs": 1,
    "evaluate.bootstrap": 100,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_table_goes_from_file_to_report(tmp_path: Path) -> None:
    clone = commit_project(tmp_path / "clone", {name: SMALL[name] for name in SMALL if "." in name} | TINY)
    (clone.folder / "photos").mkdir()
    for n in range(len(PRODUCTS)):
        (clone.folder / f"photos/{n}.png").write_bytes(png(4 * n))
    csv_file(clone.folder / "products.csv", ";")
    shown = json.loads(clone.run("effimini", "inspect", "products.csv", "--write", "--json").stdout)
    assert (shown["usable"], shown["dropped"], shown["images"]) == (60, {}, {"path": 60})
    clone.run("dvc", "repro", "-q")
    assert (clone.folder / "results/report.html").exists()
    assert clone.run("effimini", "lint").stdout == ""
    folder = clone.folder / "data/predictions"
    predicted = {row["parent_asin"] for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    assert predicted
    assert predicted < {row["sku"] for row in PRODUCTS}

    tars = {path: sha256(path) for path in clone.folder.glob("data/shards/*/*.tar")}
    csv_file(clone.folder / "products.csv", ";", [row | {"name": "changed"} for row in PRODUCTS[:1]] + PRODUCTS[1:])
    assert "download" in clone.run("dvc", "status").stdout
    clone.run("dvc", "repro", "-q", "shard@Products")
    changed = [path.name for path, before in tars.items() if sha256(path) != before]
    assert len(changed) == 1
