"""What is known only later, such as the price, does not reach the model at launch."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from effimini.evaluate import AT_LAUNCH, MODEL, evaluate
from effimini.metrics import Evaluation
from effimini.train import train
from prep.core.params import Params
from shards.shard import shard

from .conftest import CATEGORIES, replace


def evaluation(params: Params, data: Path, run: Path, *, planted: str = "") -> Evaluation:
    """Train and evaluate on `data`, with the label in the column `planted`."""
    shutil.copytree(data, run / "data")
    for path in sorted((run / "data/sample").glob("*/*.parquet")) if planted else ():
        table = pq.read_table(path)
        place = table.column_names.index(planted)
        pq.write_table(table.set_column(place, table.schema.field(planted), table["average_rating"]), path)
    if planted:
        shutil.rmtree(run / "data/shards")
        for category in CATEGORIES:
            shard(category, params, run / "data")
    train(params, run / "data/shards", run / "data/weights.json", run / "models", run / "results/train")
    return evaluate(params, run / "data", run / "models", run / "results")


@pytest.mark.parametrize("refit", [False, True])
def test_a_planted_leak_among_later_columns_changes_only_the_model_with_them(
    small: Params, data: Path, tmp_path: Path, refit: bool
) -> None:
    params = replace(
        small,
        model={"kernel": 1000, "tabular": ("title_length", "price"), "pooling": "mean", "hashed_ngrams": 1 << 12},
        train={"freeze_encoders": True, "epochs": 1, "refit": refit},
    )
    honest = evaluation(params, data, tmp_path / "honest")
    leaking = evaluation(params, data, tmp_path / "leaking", planted="price")
    assert leaking.test[MODEL].plcc > honest.test[MODEL].plcc + 0.01
    differ = {
        name
        for name in honest.test
        if (honest.test[name].plcc, honest.test[name].rmse) != (leaking.test[name].plcc, leaking.test[name].rmse)
    }
    assert AT_LAUNCH in honest.test
    assert not {AT_LAUNCH, "TF-IDF + ridge", "frozen features + ridge"} & differ


def test_a_model_without_later_columns_has_no_second_figure(small: Params, data: Path, tmp_path: Path) -> None:
    params = replace(
        small,
        model={"kernel": 1000, "tabular": ("title_length",), "pooling": "mean"},
        train={"freeze_encoders": True, "epochs": 1},
    )
    assert AT_LAUNCH not in evaluation(params, data, tmp_path / "run").test
