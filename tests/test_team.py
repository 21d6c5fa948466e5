"""Changes to an up-to-date project: categories are added and removed, a clone pulls, images are retried."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from prep import demo
from tests.clone import SMALL, Clone, commit_project

TINY = {
    "images.resolution": 32,
    "model.image.name": "test_efficientnet",
    "model.hidden": [8],
    "model.hashed_ngrams": 0,
    "train.epochs": 1,
    "evaluate.bootstrap": 100,
}


def lock(clone: Clone) -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe", pure=True).load((clone.folder / "dvc.lock").read_text())["stages"]
    return stages


def choose(clone: Clone, *categories: str) -> str:
    """Set the categories in params.yaml and update dvc.yaml; return its messages."""
    path = clone.folder / "params.yaml"
    path.write_text(re.sub(r"categories:.*(\n  - .*)*", f"categories: [{', '.join(categories)}]", path.read_text()))
    return clone.run("effimini", "pipeline").stderr


def is_clean(clone: Clone) -> bool:
    said = clone.run("dvc", "status").stdout
    assert "up to date" in said, said
    return clone.run("git", "status", "--short").stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_categories_are_added_and_removed_and_a_clone_pulls_validates_trains_and_evaluates(tmp_path: Path) -> None:
    one = commit_project(tmp_path / "one", SMALL | TINY | {"source.categories": ["Demo_Kitchen", "Demo_Toys"]})
    one.run("dvc", "remote", "add", "-q", "-d", "team", str(tmp_path / "remote"))
    one.run("dvc", "repro", "-q")
    two_categories = lock(one)
    choose(one, "Demo_Kitchen", "Demo_Toys", "Demo_Beauty")
    one.run("dvc", "repro", "-q")
    three_categories = lock(one)
    assert three_categories["join@Demo_Toys"] == two_categories["join@Demo_Toys"]

    said = choose(one, "Demo_Kitchen", "Demo_Toys")
    one.run("dvc", "repro", "-q")
    assert re.search("remove these folders, .* data/items/Demo_Beauty", said)
    assert lock(one) == two_categories
    assert json.loads(one.run("effimini", "info", "data/shards", "--json").stdout)["total"]["shards"] == len(
        [
            *(one.folder / "data/shards/Demo_Kitchen").glob("*.tar"),
            *(one.folder / "data/shards/Demo_Toys").glob("*.tar"),
        ]
    )
    choose(one, "Demo_Kitchen", "Demo_Toys", "Demo_Beauty")
    one.run("dvc", "repro", "-q")
    assert lock(one) == three_categories

    choose(one, "Demo_Kitchen", "Demo_Toys")
    one.run("dvc", "repro", "-q")
    one.run("git", "add", "-A")
    one.run("git", "commit", "-qm", "two categories")
    one.run("dvc", "push", "-q")
    assert is_clean(one)  # although the folders of the third category still exist
    other = one.cloned(tmp_path / "other")
    other.run("dvc", "pull", "-q")
    assert is_clean(other)
    for command in ("validate", "train", "evaluate"):
        other.run("effimini", command)
    assert is_clean(other)

    few = one.cloned(tmp_path / "few")
    few.run("dvc", "pull", "-q", "shard", "weights")
    few.run("dvc", "repro", "--pull", "--allow-missing", "evaluate")
    assert few.run("git", "status", "--short").stdout == ""
    assert {path.name for path in (few.folder / "data/shards").iterdir()} == {"Demo_Kitchen", "Demo_Toys"}


@pytest.mark.slow
def test_retried_images_are_in_the_shards_and_stay(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    demo.write_catalogue(mirror, ["Demo_Toys"], 100, 7)
    changes = SMALL | {"source.kind": "mirror", "source.location": str(mirror), "images.max_bad_fraction": 1.0}
    clone = commit_project(tmp_path / "one", changes)
    images = mirror / "images/I"
    images.rename(mirror / "images/away")
    images.mkdir()
    clone.run("dvc", "repro", "-q", "shard")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "no image")

    def fetched() -> int:
        tables = [pq.read_table(path) for path in (clone.folder / "data/images/Demo_Toys").glob("*.parquet")]
        return sum(table["outcome"].to_pylist().count("ok") for table in tables)

    assert fetched() == 0
    images.rmdir()
    (mirror / "images/away").rename(images)
    clone.run("dvc", "repro", "-q", "shard")
    assert fetched() == 0  # DVC sees no change
    said = clone.run("effimini", "fetch", "Demo_Toys", "--retry", "gone").stderr
    assert "run `dvc commit --force fetch@Demo_Toys` to keep these images, then `dvc repro`" in said
    found = fetched()
    assert found > 10
    clone.run("dvc", "commit", "-q", "--force", "fetch@Demo_Toys")
    done = clone.run("dvc", "repro", "shard").stdout
    assert "> effimini shard Demo_Toys" in done
    assert fetched() == found
    clone.run("dvc", "exp", "run", "-q", "-S", "images.quality=80", "shard")
    clone.run("dvc", "exp", "run", "-q", "-S", "images.quality=90", "shard")
    assert fetched() == found  # DVC's run cache restores the retried images
    assert "up to date" in clone.run("dvc", "status", "shard").stdout


def test_other_categories_in_the_parameters_than_in_dvc_yaml_are_an_error(tmp_path: Path) -> None:
    clone = commit_project(tmp_path / "one", SMALL)
    path = clone.folder / "params.yaml"
    path.write_text(path.read_text().replace("- Demo_Toys", "- Demo_Toys\n  - Demo_Beauty"))
    done = clone.run("dvc", "repro", check=False)
    assert "run `effimini pipeline`, then `dvc repro`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "data/raw/Demo_Toys").exists()
    clone.run("effimini", "pipeline")
    assert "data/raw/Demo_Beauty" in (clone.folder / "dvc.yaml").read_text()
    shutil.rmtree(clone.folder)
