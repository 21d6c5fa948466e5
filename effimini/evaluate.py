"""Evaluation: the best model beside the baselines, on the same test split.

In: ``models/best/``, ``data/shards/``, ``data/weights.json`` and the parameters. Out: ``data/predictions/``
(a parquet a split), ``results/evaluation.json`` with every predictor, ``results/metrics.json`` with the model alone,
``results/plots/*.csv`` and ``results/report.html``.
Guaranteed: the same inputs give the same bytes; each sample of a split is predicted once by each predictor; whatever
comes from demo data says so.
"""

import logging
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from effimini import cost, features, metrics, provenance, report
from effimini.baselines import baselines, on_features
from effimini.distributed import init_distributed
from effimini.examples import examples
from effimini.inference import Modality, clamp, open_split, predict_split
from effimini.metrics import Evaluation, LabelStats, ModelSelection, Scores, Stars
from effimini.model import EffiMini
from effimini.report import StageReport
from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.params import Params, narrow
from prep.core.reports import Funnel
from prep.core.tables.predictions import PREDICTIONS
from prep.strata import COUNT_BUCKETS, count_bucket
from prep.weights import SampleWeights, counts_of, sample_weights
from shards.manifest import STATED
from shards.stream import ShardDataset
from shards.summary import summarise
from shards.tokens import TokenizationConfig

log = logging.getLogger(__name__)

READS = (
    *("source.kind", "source.revision", "source.categories", *STATED),
    *("text", "model", "train", "weights", "evaluate", "stream"),
)

MODEL, IMAGE_ALONE, TEXT_ALONE = "EffiMini", "EffiMini, image alone", "EffiMini, text alone"
BINS = 10  # of the calibration plot, of equal numbers of samples


class _Splits(NamedTuple):
    """The samples of each split."""

    train: ShardDataset
    validation: ShardDataset
    test: ShardDataset


def evaluate(
    params: Params,
    data: Path = Path("data"),
    models: Path = Path("models"),
    results: Path = Path("results"),
    shards: str | Path | None = None,
) -> Evaluation:
    """Measure ``models/best`` on the test split, write everything, and return the content of evaluation.json.

    Args:
        params: those of `READS` are read.
        data: holds weights.json and takes the predictions.
        models: holds best/.
        results: takes evaluation.json, metrics.json, plots and the report.
        shards: a folder or URL of shards from elsewhere; None is ``data/shards``, where shards, weights and model
            have to be those of `params`.

    Raises:
        UserError: the model, the shards or the weights are absent, or belong to another run.

    Source: reference section 2 (metrics).
    """
    params = narrow(params, READS)
    model, training = EffiMini.from_pretrained(models / "best"), provenance.read_training(models / "best")
    tokenization = TokenizationConfig(str(models / "best"), model.config.fields, model.config.max_tokens)
    train, validation, test = splits = _Splits(
        *(
            open_split(shards or data / "shards", params, name, tokenization, model.config.size)
            for name in _Splits._fields
        )
    )
    if shards is None:
        provenance.check_shards(test.shards.manifests, params, data / "shards")
        weights = provenance.weights_for(train, params, data / "weights.json")
        provenance.check_model(training, train, params, models / "best")
    else:
        weights = provenance.weights_for(train, params, None)
        provenance.warn_of_other_splits(training, train)
    of_validation, predictions = _predict(params, model, splits, weights)
    ours = predictions[MODEL]
    _write_predictions(data / "predictions", {"test": (test, ours), "validation": (validation, of_validation)})

    chosen = ModelSelection(round(metrics.plcc(of_validation, validation.labels), 6), len(validation))
    measured = _measure(params, model, predictions, test, chosen)
    writers.write_json(results / "evaluation.json", measured)
    writers.write_json(results / "metrics.json", dvc_metrics(measured))
    tables = _write_tables(results / "plots", splits, predictions, measured, weights)
    shown = examples(test, ours, params.text.fields)
    about = summarise(test.shards.location, params.source.categories)
    with files.atomic_write(results / "report.html") as partial:
        page = report.report_page(
            params, training, measured, tables, shown, about, _stage_reports(test), results / "train"
        )
        partial.write_text(page, encoding="utf-8")
    return measured


def dvc_metrics(measured: Evaluation) -> dict[str, str | float | None]:
    """Return the content of metrics.json, which `dvc metrics show` prints in a row: few numbers, all of the model.

    Args:
        measured: the content of evaluation.json.
    """
    ours = measured.test[MODEL]
    return {
        "source": measured.source,
        "samples": measured.samples,
        **{name: getattr(ours, name) for name in ("plcc", "plcc_low", "plcc_high", "srcc", "mae", "rmse", "ces")},
        "validation_plcc": measured.validation.plcc,
    }


def calibration_table(predictions: Stars, labels: Stars) -> pd.DataFrame:
    """Return mean prediction and mean label of `BINS` bins of equal size, ordered by prediction."""
    order = np.argsort(predictions, kind="stable")
    rows = [
        {"prediction": predictions[part].mean(), "average_rating": labels[part].mean(), "samples": len(part)}
        for part in np.array_split(order, BINS)
        if len(part)
    ]
    return pd.DataFrame(rows).astype({"prediction": "float64", "average_rating": "float64"})


def metrics_by_group(predictions: Mapping[str, Stars], test: ShardDataset) -> pd.DataFrame:
    """Return samples and each predictor's PLCC and MAE by category and by bucket of rating_number."""
    bucket = count_bucket(test.rating_number)
    category = np.array(test.categories)
    picked = [("category", name, category == name) for name in dict.fromkeys(test.categories)]
    picked += [("rating_number", name, bucket == number) for number, name in enumerate(count_bucket_names())]
    rows = []
    for by, name, chosen in picked:
        if chosen.any():
            row: dict[str, str | float] = {"by": by, "group": name, "samples": int(chosen.sum())}
            for predictor, stars in predictions.items():
                row[f"{predictor} PLCC"] = metrics.plcc(stars[chosen], test.labels[chosen])
                row[f"{predictor} MAE"] = metrics.mae(stars[chosen], test.labels[chosen])
            rows.append(row)
    return pd.DataFrame(rows)


def weights_by_count(train: ShardDataset, weights: SampleWeights) -> pd.DataFrame:
    """Return what the loss makes of the training samples, by bucket of the count that weighs.

    Returns:
        A row a bucket that has samples: ratings (its name), samples, mean label (stars), mean weight, share of weight
        (of all samples'), clipped (share of the bucket's samples whose weight is at the clip).

    Source: reference section 1 (weight).
    """
    counts = counts_of(train, weights)
    each = sample_weights(counts, weights).astype(np.float64)
    bucket = count_bucket(counts)
    rows = [
        {
            "ratings": name,
            "samples": int(chosen.sum()),
            "mean label": float(train.labels[chosen].mean()),
            "mean weight": each[chosen].mean(),
            "share of weight": each[chosen].sum() / max(each.sum(), 1e-9),
            "clipped": float((each[chosen] >= weights.clip).mean()) if weights.count != "none" else 0.0,
        }
        for number, name in enumerate(count_bucket_names())
        if (chosen := bucket == number).any()
    ]
    return pd.DataFrame(rows)


def count_bucket_names() -> list[str]:
    """Return the name of each bucket of rating_number: 0-1, 2-4, ... 1000+."""
    last = [f"{low}-{high - 1}" for low, high in pairwise(COUNT_BUCKETS)]
    return [*last, f"{COUNT_BUCKETS[-1]}+"]


def _predict(
    params: Params, model: EffiMini, splits: _Splits, weights: SampleWeights
) -> tuple[Stars, dict[str, Stars]]:
    """Return the model's stars of validation, and those of test by predictor, the model first; all clamped."""
    of_features = {}
    with init_distributed() as dist:
        model.to(dist.device)

        def stars(split: ShardDataset, seen: Modality = "both") -> Stars:
            return clamp(predict_split(model, split, dist, params, seen))

        of_validation = stars(splits.validation)
        ours = {
            MODEL: stars(splits.test),
            IMAGE_ALONE: stars(splits.test, "image"),
            TEXT_ALONE: stars(splits.test, "text"),
        }
        if (
            params.train.freeze_encoders and dist.world_size == 1
        ):  # the encoders are as they came, their features mostly stored
            train, validation, test = (features.of_split(model, split, dist, params) for split in splits)
            of_features["frozen features + ridge"] = on_features(train, validation, test, weights)
        model.cpu()
    return of_validation, ours | baselines(*splits, weights, params.text.fields) | of_features


def _measure(
    params: Params, model: EffiMini, predictions: Mapping[str, Stars], test: ShardDataset, chosen: ModelSelection
) -> Evaluation:
    """Return the numbers of evaluation.json, with 6 decimals."""
    labels, costs = test.labels, cost.costs(model)
    again = (params.evaluate.bootstrap, params.evaluate.seed)
    scores = {}
    for name, stars in predictions.items():
        low, high = metrics.plcc_interval(stars, labels, *again)
        found = {
            "plcc": metrics.plcc(stars, labels),
            "plcc_low": low,
            "plcc_high": high,
            "srcc": metrics.srcc(stars, labels),
            "mae": metrics.mae(stars, labels),
            "rmse": metrics.rmse(stars, labels),
            "spread": float(stars.std(dtype=np.float64)),
        }
        if name == MODEL:
            found["ces"] = metrics.ces(found["plcc"], costs.E)
        else:
            found["behind"], found["behind_low"], found["behind_high"] = metrics.lead(
                predictions[MODEL], stars, labels, *again
            )
        scores[name] = Scores(**{key: round(value, 6) for key, value in found.items()})
    return Evaluation(
        source=params.source.kind,
        samples=len(test),
        label=LabelStats(round(float(labels.mean()), 6), round(float(labels.std(dtype=np.float64)), 6)),
        test=scores,
        cost=msgspec.structs.replace(costs, C=round(costs.C, 6), E=round(costs.E, 6)),
        validation=chosen,
    )


def _write_tables(
    folder: Path, splits: _Splits, predictions: Mapping[str, Stars], measured: Evaluation, weights: SampleWeights
) -> dict[str, pd.DataFrame]:
    """Write the tables of results/plots, and return them by name."""
    test, ours = splits.test, predictions[MODEL]
    whole = {name: stars for name, stars in predictions.items() if name not in {IMAGE_ALONE, TEXT_ALONE}}
    tables = {
        "predictions": _frame(test, ours)[["average_rating", "prediction", "category", "rating_number"]],
        "calibration": calibration_table(ours, test.labels),
        "baselines": pd.DataFrame([{"predictor": name, "plcc": of.plcc} for name, of in measured.test.items()]),
        "groups": metrics_by_group(whole, test),
        "weights": weights_by_count(splits.train, weights),
    }
    for name, table in tables.items():
        with files.atomic_write(folder / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")
    return tables


def _frame(split: ShardDataset, stars: Stars) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "parent_asin": [key.split("/", 1)[1] for key in split.keys],
            "category": split.categories,
            "split": split.split,
            "average_rating": split.labels,
            "rating_number": split.rating_number,
            "has_image": split.has_image,
            "prediction": stars,
        }
    )


def _stage_reports(test: ShardDataset) -> list[StageReport]:
    """Return the reports of the stages that the samples came through, of each category, as its shards hold them.

    Raises:
        UserError: shards hold no such report.
    """
    location, found = test.shards.location, []
    for manifest in test.shards.manifests:
        name = f"{manifest.category}/report.json"
        try:
            made = msgspec.json.decode(location.read(name), type=StageReport)
        except msgspec.DecodeError as error:
            raise UserError(f"{location.full(name)} is no report of a stage ({error}); run `dvc checkout`") from None
        found += [*made.before, made]
    return found


def _write_predictions(folder: Path, splits: Mapping[str, tuple[ShardDataset, Stars]]) -> None:
    """Write `PREDICTIONS` of each split and the funnel: every sample is predicted."""
    with files.atomic_folder(folder) as partial:
        for name, (split, stars) in splits.items():
            table = pa.Table.from_pandas(_frame(split, stars), PREDICTIONS, preserve_index=False)
            writers.write_table(partial / f"{name}.parquet", table.replace_schema_metadata(None))
        funnel = Funnel.of(sum(len(split) for split, _ in splits.values()), {})
        writers.write_json(partial / "report.json", {"stage": "evaluate", "tables": {"predictions": funnel}})
