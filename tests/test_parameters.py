"""Changing a parameter changes the output of an up-to-date project, through DVC and its run cache."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from ruamel.yaml import YAML

from prep import demo
from prep.core.files import sha256
from tests.clone import SMALL, Clone, commit_project
from tests.test_graph import KEYS, documented

# Another value of each parameter, in a project of `BASE`.
CHANGES: dict[str, Any] = {
    "source.reviews": False,
    "download.buckets": 3,
    "join.reviews": "first_by_user",
    "groups.max_items_per_key": 2,
    "sample.require": ["main_category", "title", "description"],
    "sample.min_chars": 90,
    "sample.fraction": 0.8,
    "sample.bands": 10,
    "sample.min_per_category": 90,
    "sample.eval_fraction": 0.5,
    "sample.eval_min_per_category": 30,
    "sample.split": "time",
    "sample.validation": 0.3,
    "sample.test": 0.3,
    "sample.salt": "other",
    "images.prefer": "large",
    "images.request": 256,
    "images.resolution": 48,
    "images.fit": "letterbox",
    "images.resample": "bilinear",
    "images.quality": 50,
    "decontaminate.reasons": ["same_product_title"],
    "text.fields": ["title", "store"],
    "text.max_tokens": 16,
    "shards.samples_per_shard": 10,
    "weights.count": "review_count",
    "weights.half_at": 50,
    "weights.clip": 0.5,
    "model.image.name": "test_resnet",
    "model.pooling": "mean",
    "model.hashed_ngrams": 1024,
    "model.hidden": [4],
    "model.dropout": 0.5,
    "model.attention_dropout": 0.5,
    "model.drop_path": 0.5,
    "train.seed": 1,
    "train.epochs": 1,
    "train.batch_size": 16,
    "train.learning_rate": 0.01,
    "train.head_learning_rate": 0.01,
    "train.weight_decay": 0.5,
    "train.warmup": 0.9,
    "train.max_grad_norm": 0.001,
    "train.huber_delta": 0.1,
    "train.length_bucket_batches": 4,
    "train.freeze_encoders": True,
    "train.refit": True,
    "train.mixture": {"Demo_Toys": 2},
    "train.skip": ["1-2", 5],
    "evaluate.bootstrap": 200,
    "evaluate.seed": 1,
}
# Parameters that are tested elsewhere, or cannot be tested with this source and machine.
ELSEWHERE = {
    "source.kind": "another source has other files",
    "source.categories": "tests/test_team.py",
    "source.location": "another mirror may have the same files",
    "source.revision": "only the hub has revisions: tests/prep/test_source.py",
    "source.metadata": "needs the hub's parquet: tests/prep/test_metadata.py",
    "model.kernel": "needs frozen encoders: tests/effimini/test_closed_form.py",
    "model.tabular": "needs a kernel: tests/effimini/test_ranks.py",
    "source.demo.items": "only for the demo: tests/prep/test_demo.py",
    "source.demo.seed": "only for the demo: tests/prep/test_demo.py",
    "source.table.columns": "only for a table: tests/prep/catalogue/test_convert.py",
    "source.table.image_folder": "only for a table: tests/prep/catalogue/test_convert.py",
    "source.table.rating_scale": "only for a table: tests/prep/catalogue/test_convert.py",
    "download.max_bad_fraction": "decides whether the stage fails",
    "images.max_bad_fraction": "decides whether the stage fails",
    "fetch.mirror": "another mirror may have the same images",
    "fetch.max_bytes": "no image exceeds this limit: tests/shards/test_fetch.py",
    "fetch.max_pixels": "no image exceeds this limit: tests/shards/test_pixels.py",
    "model.image.weights": "needs another file of weights: tests/effimini/test_model.py",
    "model.text.name": "needs another encoder: tests/effimini/test_model.py",
    "model.text.weights": "needs another file of weights: tests/effimini/test_model.py",
    "train.patience": "needs epochs without improvement: tests/effimini/test_train.py",
    "train.gradient_accumulation_steps": "equal within rounding: tests/effimini/test_train.py",
    "train.precision": "needs a processor with bfloat16 instructions: tests/effimini/test_bfloat16.py",
    "train.tf32": "only some GPUs have it: tests/effimini/test_train.py",
    "train.compile": "takes minutes; equal within rounding",
    "train.sync_batchnorm": "needs GPUs",
    **{key: "tests/validation" for key in KEYS if key.startswith("validation.")},
}
# The outputs of a stage, except files that contain the parameters.
OUTPUTS = {
    "download": "data/raw/Demo_Toys/*.parquet",
    "join": "data/items/Demo_Toys/*.parquet",
    "groups": "data/groups/Demo_Toys/*.parquet",
    "sample": "data/sample/Demo_Toys/*.parquet",
    "fetch": "data/images/Demo_Toys/*.parquet",
    "shard": "data/shards/Demo_Toys/*.[ta]*r*",
    "weights": "data/weights.json",
    "train": "models/*/model.safetensors",
    "evaluate": "results/evaluation.json",
}


def test_every_parameter_that_affects_outputs_is_tested_or_excused() -> None:
    affecting = {key for key, stages in documented().items() if stages}
    assert set(CHANGES) | set(ELSEWHERE) == affecting
    assert not set(CHANGES) & set(ELSEWHERE)


def catalogue(folder: Path) -> Path:
    """Write the demo catalogue with images that are not square, others for hi_res, and some of two products."""
    demo.write_catalogue(folder, ["Demo_Toys"], 200, 7)
    shown = sorted((folder / "images/I").glob("*.jpg"))
    for first, second in zip(shown[:60:2], shown[1:60:2], strict=True):  # products with the same picture
        shutil.copyfile(first, second)
    for path in shown:
        try:
            with Image.open(path) as picture:
                wide = picture.convert("RGB").crop((0, 8, 96, 80))
        except OSError:  # the catalogue has broken images
            continue
        for name, picture in ((path.stem, wide), (f"{path.stem}-H", ImageOps.mirror(wide))):
            picture.save(path.with_name(f"{name}.jpg"), quality=95)
            picture.resize((64, 48)).save(path.with_name(f"{name}._SL256_.jpg"), quality=95)
    metadata = folder / "raw/meta_categories/meta_Demo_Toys.jsonl"
    text = re.sub(r'"hi_res": "([^"]+)\.jpg"', r'"hi_res": "\1-H.jpg"', metadata.read_text())
    products = text.splitlines(keepends=True)
    for number in (20, 21, 22):  # one product under three ids
        one = json.loads(products[number]) | {"title": "One lamp of three ids", "store": "Alder"}
        products[number] = json.dumps(one) + "\n"
    metadata.write_text("".join(products))
    reviews = folder / "raw/review_categories/Demo_Toys.jsonl"
    lines = reviews.read_text().splitlines(keepends=True)
    earlier = [json.loads(line) for line in lines[:50]]
    changed = [json.dumps(one | {"rating": 1.0, "timestamp": one["timestamp"] - 1}) + "\n" for one in earlier]
    reviews.write_text("".join([*changed, *lines]))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    folder = tmp_path_factory.mktemp("project")
    base = SMALL | {
        "source.kind": "mirror",
        "source.location": str(catalogue(folder / "mirror")),
        "images.resolution": 32,
        "validation.drift.fail_above": 1000.0,
        "sample.fraction": 0.5,
        "sample.validation": 0.2,
        "sample.test": 0.2,
        "model.image.name": "test_efficientnet",
        "model.hidden": [8],
        "model.hashed_ngrams": 0,
        "model.attention_dropout": 0.1,
        "train.epochs": 2,
        "evaluate.bootstrap": 100,
    }
    clone = commit_project(folder / "clone", base)
    clone.run("dvc", "repro", "-q", "evaluate")
    return clone


def outputs(clone: Clone, stage: str) -> dict[str, str]:
    found = {str(path.relative_to(clone.folder)): sha256(path) for path in sorted(clone.folder.glob(OUTPUTS[stage]))}
    assert found
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", CHANGES)
def test_another_value_changes_the_output_and_the_old_value_restores_it(project: Clone, key: str) -> None:
    stage = next(stage for stage in OUTPUTS if stage in documented()[key])
    target = stage if stage in {"groups", "weights", "train", "evaluate"} else f"{stage}@Demo_Toys"
    path = project.folder / "params.yaml"
    before, first = path.read_text(), outputs(project, stage)
    yaml = YAML()
    params = yaml.load(before)
    *sections, name = key.split(".")
    section = params
    for part in sections:
        section = section[part]
    assert section[name] != CHANGES[key]
    section[name] = CHANGES[key]
    yaml.dump(params, path)
    try:
        project.run("dvc", "repro", "-q", target)
        assert outputs(project, stage) != first
        if key == "images.resolution":
            project.run("dvc", "repro", "-q", "shard")
            shards = json.loads(project.run("effimini", "info", "data/shards", "--json").stdout)
            assert [group["image_size"] for group in shards["made"]] == [48]
            assert project.run("effimini", "lint").stdout == ""
    finally:
        path.write_text(before)
        project.run("dvc", "repro", "-q", "evaluate")
    assert outputs(project, stage) == first
