"""Features as a table: those that the head of the model was trained on, with the scores of the evaluation."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from effimini.cli import app
from effimini.embed import OF_ITEMS, OF_SHARDS, embed_items, embed_shards
from effimini.export import GRAPH
from effimini.model import EffiMini
from effimini.predict import ITEMS_PER_BATCH, predict
from prep.core.errors import UserError
from prep.core.params import Params
from shards.loader import Loader
from shards.location import ShardLocation
from shards.stream import ShardDataset

from .conftest import CATEGORIES
from .test_predict import raw_rows, row, scores, write_csv


def vectors(table: pa.Table, name: str) -> np.ndarray:
    return np.array(table[name].to_pylist(), np.float32)


@pytest.fixture(scope="module")
def of_shards(run: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The features of the test split, written by the command."""
    out = tmp_path_factory.mktemp("features") / "features.parquet"
    words = ["embed", "--model", str(run / "models/best"), "--shards", str(run / "data/shards"), "--output", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done
    assert done.stdout == ""
    return pq.read_table(out)


def test_the_scores_and_labels_of_shards_are_those_of_the_evaluation(run: Path, of_shards: pa.Table) -> None:
    assert of_shards.schema.equals(OF_SHARDS)
    expected = pq.read_table(run / "data/predictions/test.parquet")
    assert np.ptp(expected["prediction"].to_numpy()) > 1  # else equal scores would prove nothing
    for name in ("parent_asin", "category", "has_image", "average_rating", "rating_number"):
        assert of_shards[name].to_pylist() == expected[name].to_pylist()
    np.testing.assert_allclose(of_shards["score"], expected["prediction"], atol=1e-4)


def test_the_features_of_shards_are_the_input_of_the_head(run: Path, of_shards: pa.Table) -> None:
    network = EffiMini.from_pretrained(run / "models/best")
    data = ShardDataset(run / "data/shards", CATEGORIES, "test", tabular=())
    batch = next(iter(Loader(data, batch_size=ITEMS_PER_BATCH, seed=None)))
    with torch.inference_mode():
        expected = network.features(*batch[:4]).numpy()
    image, text = vectors(of_shards, "image_features"), vectors(of_shards, "text_features")
    np.testing.assert_allclose(np.hstack([image, text])[: len(expected)], expected, atol=1e-5)
    without = ~np.array(of_shards["has_image"])
    assert 0 < without.sum() < len(without)
    assert not image[without].any()
    assert image[~without].any(axis=1).all()
    weights = load_file(run / "models/best/model.safetensors")
    assert image.shape[1] + text.shape[1] == len(weights["feature_mean"])


def test_an_item_has_the_same_features_from_a_csv_file_and_the_score_of_predict(
    run_params: Params, run: Path, of_shards: pa.Table, tmp_path: Path
) -> None:
    items, out = write_csv(tmp_path / "items.csv", raw_rows(run_params, run)), tmp_path / "features.parquet"
    assert embed_items(run / "models/best", items, run / "data/pictures", out).items == of_shards.num_rows
    table = pq.read_table(out)
    assert table.schema.equals(OF_ITEMS)
    assert table["parent_asin"].to_pylist() == of_shards["parent_asin"].to_pylist()
    for name in ("image_features", "text_features"):
        np.testing.assert_allclose(vectors(table, name), vectors(of_shards, name), atol=1e-4)
    predict(run / "models/best", items, run / "data/pictures", tmp_path / "scores.csv")
    found = [f"{score:.2f}" for score in table["score"].to_pylist()]
    assert found == list(scores(tmp_path / "scores.csv").values())
    before = out.read_bytes()
    embed_items(run / "models/best", items, run / "data/pictures", out)
    assert out.read_bytes() == before


def test_an_image_that_cannot_be_read_is_named(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items, out = write_csv(tmp_path / "items.csv", [row(image_paths="none.jpg")]), tmp_path / "features.parquet"
    with pytest.raises(UserError, match="1 of 1 items have no image"):
        embed_items(run / "models/best", items, tmp_path, out, strict=True)
    assert not out.exists()
    with caplog.at_level(logging.WARNING):
        embed_items(run / "models/best", items, tmp_path, out)
    assert "A1 (none.jpg: does not exist)" in caplog.text
    assert pq.read_table(out)["has_image"].to_pylist() == [False]


def test_a_mistake_is_one_sentence(run: Path, small: Params, tmp_path: Path) -> None:
    (tmp_path / GRAPH).touch()
    with pytest.raises(UserError, match="is an exported model, which gives scores and no features"):
        embed_items(tmp_path, tmp_path / "items.csv", tmp_path, tmp_path / "out")
    for words in ([], ["--input", "a.csv", "--shards", "b"]):
        done = CliRunner().invoke(app, ["embed", "--model", "m", "--output", "o", *words])
        assert isinstance(done.exception, UserError)
        assert "either --input" in str(done.exception)
    other = EffiMini.from_pretrained(run / "models/best")
    other.config = type(other.config)(
        **{n: getattr(other.config, n) for n in other.config.__struct_fields__} | {"size": 64}
    )
    other.save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match="images of 32 px and .* reads 64 px"):
        embed_shards(tmp_path / "large", ShardLocation(run / "data/shards", 1, 1), CATEGORIES, "test", tmp_path / "out")
