import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from ruamel.yaml import YAML
from sklearn.linear_model import Ridge
from typer.testing import CliRunner

from effimini import ceiling, features, provenance, report
from effimini.baselines import FEATURE_ALPHAS, baselines
from effimini.calibration import covered
from effimini.cli import app
from effimini.evaluate import (
    IMAGE_ALONE,
    MODEL,
    TEXT_ALONE,
    _scatter,
    _Splits,
    calibration_table,
    evaluate,
    weights_by_count,
)
from effimini.examples import Example, examples
from effimini.inference import clamp, open_split, predict_split
from effimini.metrics import Slice, plcc
from effimini.model import EffiMini
from effimini.predictions import VALIDATION_FILE, read_predictions
from effimini.train import train
from prep.core import files
from prep.core.errors import UserError
from prep.core.fields import assemble
from prep.core.params import Params
from prep.core.reports import Funnel
from prep.core.tables.predictions import PREDICTIONS
from prep.core.templates import DEMO_NOTICE, data_url
from prep.weights import read_weights, sample_weights
from shards.location import ShardLocation
from shards.stream import ShardDataset
from shards.summary import summarise
from shards.tokens import TokenizationConfig
from validation.checks import GATES

from .conftest import CATEGORIES, ROOT, SPLITS, replace
from .test_train import ONE, tree


def measured(run: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = files.read_json(run / "results/evaluation.json")
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
    interval = EffiMini.from_pretrained(run / "models/best").config.interval
    assert interval is not None
    columns = (frame[name].to_numpy() for name in ("prediction", "average_rating", "rating_number"))
    assert ours["coverage_90"] == pytest.approx(covered(interval, *columns, 0.9), abs=1e-6)
    assert [name for name, scores in found["test"].items() if "coverage_90" in scores] == ["EffiMini"]
    funnel = files.read_json(run / "data/predictions/report.json")["tables"]["predictions"]
    assert funnel["rows_in"] == funnel["rows_out"] == (SPLITS["test"] + SPLITS["validation"]) * len(CATEGORIES)


def test_dvc_shows_few_metrics_all_of_the_model(run: Path) -> None:
    found, full = files.read_json(run / "results/metrics.json"), measured(run)
    names = ("plcc", "plcc_low", "plcc_high", "srcc", "mae", "rmse", "ces")
    of_run = {name: full[name] for name in ("source", "samples")}
    of_test = {name: full["test"][MODEL][name] for name in names}
    assert found == of_run | of_test | {"validation_plcc": full["validation"]["plcc"]}
    assert len(found) <= 12
    assert {type(value) for value in found.values()} <= {str, int, float}  # each is one column
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    metrics = [path for stage in stages.values() for path in stage.get("metrics", [])]
    assert metrics == ["results/metrics.json"]


def test_results_as_json_is_the_whole_evaluation(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    done = CliRunner().invoke(app, ["results", "--json"])
    assert done.exit_code == 0, done
    assert json.loads(done.stdout) == measured(run)


def test_a_second_evaluation_gives_the_same_bytes(run_params: Params, run: Path, tmp_path: Path) -> None:
    for name in ("data", "models", "results"):
        shutil.copytree(run / name, tmp_path / name)
    evaluate(run_params)
    assert tree(tmp_path / "results") == tree(run / "results")
    assert tree(tmp_path / "data") == tree(run / "data")


def test_the_saved_tokenizer_is_that_of_the_indexes(
    run_params: Params, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        evaluate(run_params, run / "data", run / "models", tmp_path)
    assert "token ids are recomputed" not in caplog.text


def test_each_grouping_contains_every_test_sample_once(run: Path) -> None:
    table = pd.read_csv(run / "results/plots/groups.csv")
    sums = table.groupby("by", sort=False)["samples"].sum()
    groupings = ["all", "category", "rating_number", "image", "features", "description", "script", "price"]
    assert sums.to_dict() == dict.fromkeys(groupings, measured(run)["samples"])
    rows = measured(run)["slices"]
    assert table["group"].tolist() == [row["group"] for row in rows]
    assert table["plcc"].dropna().tolist() == pytest.approx([row["plcc"] for row in rows if "plcc" in row], abs=1e-6)
    price = ShardDataset(run / "data/shards", CATEGORIES, "test", tabular=["price"]).tabular
    (without,) = (row["samples"] for row in rows if row["group"] == "no price")
    assert without == np.isnan(price).sum() > 0
    names = [f"{name} PLCC" for name in ("category mean", "TF-IDF + ridge")]
    assert [name for name in table.columns if name.endswith(" PLCC")] == names


def test_the_scatter_is_estimated_from_all_splits(run_params: Params, run: Path) -> None:
    splits = [ShardDataset(run / "data/shards", CATEGORIES, name) for name in ("train", "validation", "test")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "ENOUGH", 20)
        found = _scatter(_Splits(*splits))
    assert found.samples == sum(int((split.rating_number <= ceiling.FEW).sum()) for split in splits)
    assert measured(run)["scatter"]["samples"] == 0  # too few to estimate


def test_the_baselines_are_fitted_on_training_samples_with_their_weights(small: Params, data: Path) -> None:
    splits = [ShardDataset(data / "shards", small.source.categories, name) for name in ("train", "validation", "test")]
    train, validation, test = splits
    weights = read_weights(data / "weights.json")
    found = baselines(train, validation, test, weights, small.text.fields)
    each = np.minimum(np.log1p(train.rating_number) / weights.mean, weights.clip)
    assert found["constant"] == pytest.approx(np.average(train.labels, weights=each))
    alpha = np.array(train.categories) == "Alpha"
    expected = np.average(train.labels[alpha], weights=each[alpha])
    assert found["category mean"][test.categories.index("Alpha")] == pytest.approx(expected)
    assert plcc(found["TF-IDF + ridge"], test.labels) > 0.5  # the words of a title follow its rating


def test_a_single_modality_is_the_model_without_the_other(run_params: Params, run: Path) -> None:
    model = EffiMini.from_pretrained(run / "models/best")
    tokenization = TokenizationConfig(str(run / "models/best"), model.config.fields, model.config.max_tokens)
    test = open_split(run / "data/shards", run_params, "test", tokenization, model.config.size)
    both, image, text = (predict_split(model, test, ONE, run_params, seen) for seen in ("both", "image", "text"))
    found = measured(run)["test"]
    for name, stars in ((MODEL, both), (IMAGE_ALONE, image), (TEXT_ALONE, text)):
        assert found[name]["plcc"] == pytest.approx(plcc(clamp(stars), test.labels), abs=1e-6)
        assert found[name]["spread"] == pytest.approx(np.std(clamp(stars)), abs=1e-6)
    without = ~test.has_image
    np.testing.assert_allclose(text[without], both[without], rtol=1e-5)  # they have no image to remove
    assert np.abs(text - both)[~without].max() > 1e-4
    np.testing.assert_allclose(image[without], image[without][0], rtol=1e-5)  # no input is left
    assert np.std(image[~without]) > 1e-4


def test_a_frozen_training_is_compared_with_ridge_on_its_features(small: Params, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    frozen = replace(small, train={"freeze_encoders": True, "epochs": 1})
    train(frozen)
    found = evaluate(frozen).test["frozen features + ridge"]
    model = EffiMini.from_pretrained(Path("models/best"))
    tokenization = TokenizationConfig("models/best", model.config.fields, model.config.max_tokens)
    splits = [open_split("data/shards", frozen, name, tokenization, 32) for name in ("train", "validation", "test")]
    train_, validation, test = (features.of_split(model, split, ONE, frozen) for split in splits)
    middle, scale = train_.features.mean(axis=0), train_.features.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1)
    weights = sample_weights(train_.rating_number, read_weights(Path("data/weights.json")))

    def stars(alpha: float, split: features.FeatureDataset) -> Any:
        ridge = Ridge(alpha=alpha).fit((train_.features - middle) / scale, train_.labels, weights)
        return np.clip(ridge.predict((split.features - middle) / scale), 1, 5)

    best = max(FEATURE_ALPHAS, key=lambda alpha: plcc(stars(alpha, validation), validation.labels))
    assert found.plcc == pytest.approx(plcc(stars(best, test), test.labels), abs=1e-3)


def test_validation_is_scored_as_before_the_refit(small: Params, data: Path, tmp_path: Path) -> None:
    found = {}
    for refit in (False, True):
        run = tmp_path / str(refit)
        params = replace(
            small,
            model={"kernel": 1000, "pooling": "mean", "hashed_ngrams": 1 << 12},
            train={"freeze_encoders": True, "epochs": 2, "refit": refit},
        )
        shutil.copytree(data, run / "data")
        trained = train(params, run / "data/shards", run / "data/weights.json", run / "models", run / "results/train")
        found[refit] = evaluate(params, run / "data", run / "models", run / "results")
        table = pq.read_table(run / "data/predictions/validation.parquet")
        of_best = max(metrics["validation/plcc"] for metrics in trained.epochs)
        assert found[refit].validation.plcc == pytest.approx(of_best, abs=0.01)  # calibrated and clamped
        assert plcc(table["prediction"].to_numpy(), table["average_rating"].to_numpy()) == pytest.approx(
            found[refit].validation.plcc, abs=1e-6
        )
    assert found[True].validation == found[False].validation
    for name in (MODEL, "TF-IDF + ridge", "frozen features + ridge"):
        assert found[True].test[name].rmse != found[False].test[name].rmse
    assert found[True].test["constant"].mae == found[False].test["constant"].mae


def test_a_model_without_stored_stars_or_of_another_split_is_predicted(run_params: Params, run: Path) -> None:
    stored = run / "models/best" / VALIDATION_FILE
    tokenization = TokenizationConfig(str(run / "models/best"), run_params.text.fields, run_params.text.max_tokens)
    splits = {
        name: open_split(run / "data/shards", run_params, name, tokenization, 32) for name in ("validation", "test")
    }
    stars = read_predictions(stored, splits["validation"])
    model = EffiMini.from_pretrained(run / "models/best")
    assert stars is not None
    expected = clamp(predict_split(model, splits["validation"], ONE, run_params))
    np.testing.assert_allclose(stars, expected, atol=1e-5)
    assert read_predictions(stored, splits["test"]) is None
    assert read_predictions(run / "nowhere", splits["test"]) is None


def test_a_damaged_file_of_stars_is_one_sentence(run_params: Params, run: Path, tmp_path: Path) -> None:
    (tmp_path / VALIDATION_FILE).write_bytes(b"PAR1 no more")
    test = open_split(run / "data/shards", run_params, "test", None, 32)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"validation.parquet cannot be read \(.*\); run `dvc checkout`$"):
        read_predictions(tmp_path / VALIDATION_FILE, test)


def test_each_predictor_is_compared_with_the_model(run: Path) -> None:
    found = measured(run)["test"]
    for name, row in found.items():
        if name == MODEL:
            assert "behind" not in row
        else:
            assert row["behind"] == pytest.approx(found[MODEL]["plcc"] - row["plcc"], abs=2e-6)
            assert row["behind_low"] <= row["behind"] <= row["behind_high"]


def test_weights_are_reported_by_bucket(small: Params, data: Path) -> None:
    train = ShardDataset(data / "shards", small.source.categories, "train")
    weights = msgspec.structs.replace(read_weights(data / "weights.json"), clip=1.2)
    table = weights_by_count(train, weights).set_index("ratings")
    assert table["samples"].sum() == len(train)
    assert table["share of weight"].sum() == pytest.approx(1)
    each = np.minimum(np.log1p(train.rating_number) / weights.mean, 1.2)
    chosen = (train.rating_number >= 10) & (train.rating_number < 20)
    row = table.loc["10-19"]
    assert row["samples"] == chosen.sum()
    assert row["mean label"] == pytest.approx(train.labels[chosen].mean())
    assert row["mean weight"] == pytest.approx(each[chosen].mean())
    assert row["share of weight"] == pytest.approx(each[chosen].sum() / each.sum())
    assert row["clipped"] == pytest.approx((each[chosen] >= 1.2).mean())
    assert 0 < row["clipped"] < 1
    alike = weights_by_count(train, msgspec.structs.replace(weights, count="none"))
    assert set(alike["mean weight"]) == {1.0}
    assert set(alike["clipped"]) == {0.0}


def test_examples_are_the_largest_errors_on_both_sides_and_the_smallest(small: Params, data: Path) -> None:
    test = ShardDataset(data / "shards", small.source.categories, "test")
    off = np.zeros(len(test), np.float32)
    off[[3, 5, 8]] = -1.0, -2.0, -0.5
    off[9:20] = 0.1
    off[20:] = np.linspace(1, 2, len(test) - 20)
    found = examples(test, test.labels + off, small.text.fields)
    names = {kind: [e.parent_asin for e in shown] for kind, shown in found.items()}
    asins = [key.split("/")[1] for key in test.keys]
    assert names["Predicted too low"] == [asins[i] for i in (5, 3, 8)]
    assert names["Predicted too high"] == asins[::-1][:6]
    assert names["Nearest"] == [asins[i] for i in (0, 1, 2, 4, 6, 7)]
    weighted = np.abs(off) * np.log1p(test.rating_number)
    assert names["Labels to check"] == [asins[i] for i in np.argsort(-weighted, kind="stable")[:12]]
    assert names["Labels to check"][:6] != names["Predicted too high"]
    first = found["Nearest"][0]
    assert first.text == assemble(test.metadata(0), small.text.fields)
    assert first.image == (data_url(test.image(0)) if test.has_image[0] else "")
    assert first.category == test.categories[0]


def test_calibration_bins_are_of_equal_size_and_ordered() -> None:
    predictions = np.linspace(1, 5, 25, dtype=np.float32)[::-1]
    bins = calibration_table(predictions, predictions)
    assert bins["samples"].sum() == 25
    assert bins["samples"].max() - bins["samples"].min() <= 1
    assert bins["prediction"].is_monotonic_increasing
    assert (bins["prediction"] == bins["average_rating"]).all()


def test_the_page_marks_demo_data_and_needs_no_network(run: Path) -> None:
    page = (run / "results/report.html").read_text()
    assert DEMO_NOTICE in page
    links = re.findall(r'(?:src|href)="((?!#|data:image/jpeg;base64,)[^"]*)"', page)
    assert links == [f"validation/{table}.html" for table in GATES]
    assert "<td>samples</td>" in page  # the funnel of the shard stage
    assert DEMO_NOTICE in str(report.metrics_table(report.read_evaluation(run / "results/evaluation.json")).title)


def test_a_page_of_real_data_has_no_banner_and_escapes_names(run_params: Params, run: Path) -> None:
    found = msgspec.structs.replace(report.read_evaluation(run / "results/evaluation.json"), source="mirror")
    tables = {
        name: pd.read_csv(run / f"results/plots/{name}.csv") for name in ("predictions", "calibration", "weights")
    }
    hostile_slices = tuple(msgspec.structs.replace(each, group="<b>&", note="<b>&") for each in found.slices)
    found = msgspec.structs.replace(found, slices=hostile_slices)
    hostile = Example("<i>", "<i>", "<i>", "", "<i>", 1.0, 2, 3.0)
    about = summarise(ShardLocation(run / "data/shards", 0, 1))
    real = replace(run_params, source={"kind": "mirror", "location": "x"})
    object.__setattr__(real.source, "categories", ("<script>",))  # a name that params.yaml cannot have
    training = provenance.read_training(run / "models/best")
    page = report.report_page(
        real,
        training,
        found,
        read_weights(run / "data/weights.json"),
        tables,
        {"<u>": [hostile]},
        about,
        [report.StageReport("<s>", {"<s>": Funnel(1, 0, {"<s>": 1})})],
        run / "results/train",
    )
    assert "DEMO DATA" not in page
    assert not {"<script>", "<i>", "<u>", "<s>", "<b>"} & set(re.findall(r"<\w+>", page))
    assert "&lt;b&gt;&amp;" in page
    assert "DEMO" not in str(report.metrics_table(found).title)


def test_the_terminal_shows_ceilings_beside_plcc_and_says_why_one_is_absent(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report.read_evaluation(run / "results/evaluation.json")
    whole = Slice(
        by="all", group="all", samples=1234, label=4, mae=0.3, moved_without_image=0, moved_without_text=0,
        plcc=0.5, plcc_low=0.4, plcc_high=0.6, ceiling=0.8, ceiling_low=0.7, ceiling_high=0.9, noise_share=0.4,
    )  # fmt: skip
    few = Slice(
        by="category", group="[red]Toys", samples=7, label=4, mae=0.3, moved_without_image=0, moved_without_text=0,
        note="fewer than 30 samples",
    )  # fmt: skip
    priced = msgspec.structs.replace(whole, by="price", group="no price")
    Console(width=80).print(report.result_tables(msgspec.structs.replace(found, slices=(whole, few, priced))))
    text = capsys.readouterr().out
    assert re.search(r"all +1,234 +0\.500 +0\.800 +0\.700 to 0\.900 +40 %", text)
    assert re.search(r"\[red\]Toys +7 *\n", text)
    assert "Empty: fewer than 30 samples" in text
    assert "no price" not in text
