import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from effimini import report
from effimini.baselines import baselines
from effimini.evaluate import bucket_names, calibration, evaluate
from effimini.metrics import plcc
from prep import files
from prep.params import Params
from prep.tables import PREDICTIONS
from prep.templates import DEMO
from shards.stream import ShardDataset

from .conftest import CATEGORIES, SPLITS, replace
from .test_train import tree


def measured(run: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = files.read_json(run / "results/metrics.json")
    return content


def test_the_metrics_are_those_of_the_predictions(run: Path) -> None:
    table = pq.read_table(run / "data/predictions/test.parquet")
    assert table.schema.equals(PREDICTIONS)
    frame = table.to_pandas()
    assert len(frame) == len(set(frame["parent_asin"])) == SPLITS["test"] * len(CATEGORIES)
    assert frame["prediction"].between(1, 5).all()
    found = measured(run)
    assert found["samples"] == len(frame)
    ours = found["test"]["EffiMini"]
    assert ours["plcc"] == pytest.approx(plcc(frame["prediction"], frame["average_rating"]), abs=1e-6)
    assert ours["plcc_low"] <= ours["plcc"] <= ours["plcc_high"]
    assert ours["ces"] == pytest.approx(max(0, ours["plcc"]) * found["cost"]["E"], abs=1e-6)
    funnel = files.read_json(run / "data/predictions/report.json")["tables"]["predictions"]
    assert funnel["rows_in"] == funnel["rows_out"] == (SPLITS["test"] + SPLITS["validation"]) * len(CATEGORIES)


def test_a_second_evaluation_gives_the_same_bytes(small: Params, run: Path, tmp_path: Path) -> None:
    for name in ("data", "models", "results"):
        shutil.copytree(run / name, tmp_path / name)
    evaluate(small)
    assert tree(tmp_path / "results") == tree(run / "results")
    assert tree(tmp_path / "data") == tree(run / "data")


def test_the_saved_tokenizer_is_the_one_the_indexes_were_made_with(
    small: Params, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        evaluate(small, run / "data", run / "models", tmp_path)
    assert "made anew" not in caplog.text


def test_groups_hold_every_test_sample_once(run: Path) -> None:
    table = pd.read_csv(run / "results/plots/groups.csv")
    sums = table.groupby("by")["samples"].sum()
    assert sums.to_dict() == {"category": measured(run)["samples"], "rating_number": measured(run)["samples"]}
    assert set(table["group"]) <= {*CATEGORIES, *bucket_names()}
    assert bucket_names()[0] == "0-1"
    assert bucket_names()[-1] == "1000+"


def test_the_baselines_are_fitted_on_training_samples_with_their_weights(small: Params, data: Path) -> None:
    splits = [ShardDataset(data / "shards", small.source.categories, name) for name in ("train", "validation", "test")]
    train, validation, test = splits
    weights = files.read_json(data / "weights.json")
    found = baselines(train, validation, [test], weights, small.text.fields)
    each = np.minimum(np.log1p(train.rating_number) / weights["mean"], weights["clip"])
    assert found["constant"][0] == pytest.approx(np.average(train.labels, weights=each))
    alpha = np.array(train.categories) == "Alpha"
    expected = np.average(train.labels[alpha], weights=each[alpha])
    assert found["category mean"][0][test.categories.index("Alpha")] == pytest.approx(expected)
    assert plcc(found["TF-IDF + ridge"][0], test.labels) > 0.5  # the words of a title follow its rating


def test_calibration_bins_are_of_equal_size_and_ordered() -> None:
    predictions = np.linspace(1, 5, 25, dtype=np.float32)[::-1]
    bins = calibration(predictions, predictions)
    assert bins["samples"].sum() == 25
    assert bins["samples"].max() - bins["samples"].min() <= 1
    assert bins["prediction"].is_monotonic_increasing
    assert (bins["prediction"] == bins["average_rating"]).all()


def test_the_page_says_that_demo_data_is_demo_data_and_needs_no_network(run: Path) -> None:
    page = (run / "results/report.html").read_text()
    assert DEMO in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert page.count("<svg") == 4
    assert "<td>samples</td>" in page  # the funnel of the shard stage
    assert DEMO in str(report.metrics_table(dict(measured(run))).title)


def test_a_page_of_real_data_has_no_banner_and_escapes_names(small: Params, run: Path) -> None:
    found = dict(measured(run)) | {"source": "mirror"}
    tables = {name: pd.read_csv(run / f"results/plots/{name}.csv") for name in ("predictions", "calibration", "groups")}
    tables["groups"]["group"] = "<b>&"
    real = replace(small, source={"kind": "mirror", "location": "<script>"})
    page = report.page(real, found, tables, run / "data", run / "results/train")
    assert "DEMO DATA" not in page
    assert "<script>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "DEMO" not in str(report.metrics_table(found).title)
