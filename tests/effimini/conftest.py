"""Fixtures: a small data set in real shards, and parameters with encoders small enough to train in a second."""

import dataclasses
import io
import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from effimini.evaluate import evaluate
from effimini.train import train
from prep.core import writers
from prep.core.params import EncoderParams, Params, load_params
from prep.core.tables.images import IMAGES
from prep.core.tables.sample import SAMPLE
from prep.core.tabular import RAW, tabular
from shards.decontaminate import decontaminate
from shards.images.pixels import Preparation, to_training
from shards.shard import shard

ROOT = Path(__file__).parents[2]
torch.set_num_threads(1)  # on a busy machine, waiting threads would be slower

CATEGORIES = ("Alpha", "Beta")
SPLITS = {"train-00": 40, "validation": 12, "test": 32}  # rows per category
GOOD, POOR = ("sturdy", "premium", "refined"), ("flimsy", "basic", "rough")


def replace(params: Params, **sections: dict[str, object]) -> Params:
    """Return `params` with some values of some sections changed."""
    return dataclasses.replace(
        params, **{name: dataclasses.replace(getattr(params, name), **new) for name, new in sections.items()}
    )


def png(colour: tuple[int, int, int]) -> bytes:
    """Return a PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "PNG")
    return out.getvalue()


def _part(folder: Path, category: str, part: str, rows: int, size: int) -> None:
    random = Random(f"{category}/{part}")
    samples, images = [], []
    for number in range(rows):
        good = random.random()
        words = [random.choice(GOOD if random.random() < good else POOR) for _ in range(5)]
        asin = f"{category[0]}{part[:2].upper()}{number:05d}"
        shade = int(40 + 200 * good)
        texts = {"title": " ".join(words), "features": "one | two", "description": "", "details": ""}
        raw = dict.fromkeys(RAW) | {"features": ["one", "two"], "details": "{}"}
        raw["price"] = 1 + round(10 * good, 2) if number % 4 else None
        samples.append(
            {
                "parent_asin": asin, "category": category, "group": asin, "split": part.split("-", maxsplit=1)[0],
                "band": 0 if part.startswith("train") else -1, "main_category": category, **texts,
                **tabular(raw, texts), "store": "Alder", "review_count": number % 7,
                "average_rating": round(1 + 4 * good, 1), "rating_number": 1 + number % 30, "image_urls": [],
            }
        )  # fmt: skip
        has_image = number % 5 != 0
        picture = folder / "pictures" / f"{asin}.png"
        if has_image:
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(png((shade, 90, 90)))
        made = to_training(picture.read_bytes(), Preparation(size, "squash", 90, 10**6)).image if has_image else b""
        images.append(
            {
                "parent_asin": asin, "outcome": "ok" if has_image else "no_url", "url": "", "status": 0,
                "source_bytes": 0, "source_width": 40, "source_height": 30, "source_sha256": "", "perceptual_hash": 0,
                "image": made,
            }
        )  # fmt: skip
    writers.write_table(folder / "sample" / category / f"{part}.parquet", pa.Table.from_pylist(samples, SAMPLE))
    writers.write_table(folder / "images" / category / f"{part}.parquet", pa.Table.from_pylist(images, IMAGES))


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder folder: the committed tokenizer with a BERT of two narrow layers."""
    folder = tmp_path_factory.mktemp("text")
    shutil.copytree(ROOT / "effimini/minilm", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 1500,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def small(small_text: Path) -> Params:
    """Parameters of a run that takes seconds."""
    params = load_params(ROOT / "params.yaml")
    model = dataclasses.replace(
        params.model,
        image=EncoderParams(name="test_efficientnet", weights="random"),
        text=EncoderParams(name=str(small_text), weights="random"),
        hidden=(16, 8),
        hashed_ngrams=0,
    )
    params = dataclasses.replace(params, model=model)
    return replace(
        params,
        source={"categories": CATEGORIES},
        images={"resolution": 32},
        decontaminate={"reasons": ()},
        text={"max_tokens": 24},
        shards={"samples_per_shard": 25},
        train={"epochs": 3, "patience": 3, "batch_size": 16, "learning_rate": 0.002},
        evaluate={"bootstrap": 100},
    )


@pytest.fixture(scope="session")
def data(small: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with shards and weights.json."""
    folder = tmp_path_factory.mktemp("catalogue") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder.parent / "store"))
        for category in CATEGORIES:
            for part, rows in SPLITS.items():
                _part(folder, category, part, rows, small.images.resolution)
        decontaminate(small, folder)
        for category in CATEGORIES:
            shard(category, small, folder)
    counts = np.array([1 + number % 30 for number in range(SPLITS["train-00"])] * len(CATEGORIES))
    mean = float(np.log1p(counts).mean())
    weights = {"count": "rating_number", "mean": mean, "clip": 5.0, "samples": len(counts)}
    writers.write_json(folder / "weights.json", weights)
    return folder


@pytest.fixture(scope="session")
def run_params(small: Params) -> Params:
    """Parameters of `run`: long enough that predictions differ, or tests would compare one clipped value."""
    return replace(small, train={"epochs": 10, "patience": 10, "learning_rate": 0.02})


@pytest.fixture(scope="session")
def run(run_params: Params, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, models and results of a whole run: trained and evaluated once for all tests that read it."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(data, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder / "store"))
        patch.chdir(folder)
        train(run_params)
        evaluate(run_params)
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVCLive looks for a project above the working folder; each test works in one of its own."""
    monkeypatch.chdir(tmp_path)
