from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import rankdata

from effimini.evaluate import evaluate
from effimini.export import export
from effimini.inference import open_split
from effimini.input_csv import INPUT_COLUMNS
from effimini.model import EffiMini
from effimini.predict import predict
from effimini.ranks import Ranks
from effimini.train import train
from prep.core.errors import UserError
from prep.core.params import Params
from prep.core.tables.tabular import TABULAR_NAMES
from shards.stream import ShardDataset

from .conftest import replace
from .test_predict import raw_rows, scores, write_csv

COLUMNS = ("title_length", "price")


def columns(rows: int = 3000) -> Any:
    random = np.random.default_rng(0)
    values = np.stack(
        [random.lognormal(size=rows), random.poisson(2, rows), np.full(rows, 3.0), np.full(rows, np.nan)], axis=1
    ).astype(np.float32)
    values[::7, 0] = np.nan
    return values


def test_a_value_has_its_rank_among_the_training_values() -> None:
    values, ranks = columns(), Ranks(4)
    ranks.fit(values)
    found = ranks(torch.from_numpy(values)).numpy()
    for number in range(3):
        known = ~np.isnan(values[:, number])
        expected = (rankdata(values[known, number]) - 0.5) / known.sum()
        assert np.abs(found[known, number] - expected).max() < 0.02
    assert (found[np.isnan(values[:, 0]), 0] == 0.5).all()
    assert np.array_equal(found[:, 4], np.isnan(values[:, 0]))
    assert not found[:, 5:].any()  # no absence, or nothing but absence, tells nothing
    beyond = ranks(torch.tensor([[-1e30, 1e30, torch.inf, 5.0]])).numpy()
    assert beyond[0, :3].tolist() == [0, 1, 1]
    assert np.isfinite(beyond).all()


@pytest.fixture(scope="module")
def with_columns(small: Params) -> Params:
    return replace(
        small,
        model={"kernel": 1000, "tabular": COLUMNS, "pooling": "mean", "hashed_ngrams": 1 << 12},
        train={"freeze_encoders": True, "epochs": 1},
    )


@pytest.fixture(scope="module")
def project(with_columns: Params, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    for name in ("shards", "weights.json", "pictures"):
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / name).symlink_to(data / name)
    train(
        with_columns, folder / "data/shards", folder / "data/weights.json", folder / "models", folder / "results/train"
    )
    evaluate(with_columns, folder / "data", folder / "models", folder / "results")
    return folder


@torch.inference_mode()
def test_columns_change_a_score_and_are_chosen_by_name(with_columns: Params, project: Path) -> None:
    model = EffiMini.from_pretrained(project / "models/best")
    assert model.config.tabular == COLUMNS
    assert model.closed_form is not None
    model.closed_form.fraction.fill_(1)
    test = ShardDataset(project / "data/shards", with_columns.source.categories, "test", tabular=COLUMNS)
    everything = ShardDataset(project / "data/shards", with_columns.source.categories, "test")
    np.testing.assert_array_equal(test.tabular, everything.tabular[:, [TABULAR_NAMES.index(name) for name in COLUMNS]])
    batch = test.batch(np.arange(4), 4)
    np.testing.assert_array_equal(batch.tabular.numpy(), test.tabular[:4])
    given = (batch.images, batch.tokens.long(), batch.mask.long(), batch.has_image)
    assert not torch.equal(model(*given, batch.tabular), model(*given))
    nothing = torch.full_like(batch.tabular, torch.nan)
    assert torch.equal(model(*given, nothing), model(*given))


@pytest.mark.parametrize("exported", [False, True])
def test_predict_reads_the_columns_of_an_item(
    with_columns: Params, project: Path, tmp_path: Path, exported: bool
) -> None:
    model = project / "models/best"
    if exported:
        export(model, tmp_path / "onnx")
        model = tmp_path / "onnx"
    rows = [
        each | {"price": str(each["tabular"][TABULAR_NAMES.index("price")])} for each in raw_rows(with_columns, project)
    ]
    items = write_csv(tmp_path / "items.csv", rows, (*INPUT_COLUMNS, "price"))
    predict(model, items, project / "data/pictures", tmp_path / "out.csv")
    expected = pq.read_table(project / "data/predictions/test.parquet").to_pandas()
    found = scores(tmp_path / "out.csv")
    for asin, stars in zip(expected["parent_asin"], expected["prediction"], strict=True):
        assert float(found[asin]) == pytest.approx(stars, abs=0.0051)


def test_shards_without_a_column_are_an_error(with_columns: Params, project: Path) -> None:
    with pytest.raises(UserError, match="has no tabular column weight, which model.tabular names"):
        open_split(project / "data/shards", with_columns, "test", None, 32, tabular=("price", "weight"))


def test_columns_without_a_kernel_and_unknown_ones_are_errors(small: Params, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.tabular has 1 columns and model.kernel is 0"):
        replace_all(small, kernel=0, tabular=("price",))
    with pytest.raises(ValueError, match="tabular"):
        replace_all(small, kernel=10, tabular=("weight",))


def replace_all(params: Params, **model: Any) -> Params:
    from dataclasses import replace as of_dataclass

    changed = of_dataclass(params.model, **model)
    return of_dataclass(params, model=changed, train=of_dataclass(params.train, freeze_encoders=True))
