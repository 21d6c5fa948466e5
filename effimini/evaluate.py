"""Evaluation of the best model and the baselines on the test split.

Input: ``models/best/``, ``data/shards/``, ``data/weights.json`` and the parameters. Output: ``data/predictions/`` (one
Parquet file per split), ``results/evaluation.json`` with every predictor, ``results/metrics.json`` with only the model,
``results/plots/*.csv`` and ``results/report.html``. Guarantees: the same inputs give the same bytes; each predictor
predicts each sample of a split exactly once; results on demo data are marked as such.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pandas as pd

from effimini import calibration, cost, features, metrics, provenance, report
from effimini.at_launch import at_launch, stars_at_launch
from effimini.baselines import baselines, on_features
from effimini.ceiling import scatter_of_labels
from effimini.distributed import first_rank, init_distributed, set_tf32
from effimini.examples import examples
from effimini.inference import Modality, clamp, open_split, predict_split
from effimini.metrics import Evaluation, LabelStats, ModelSelection, Scatter, Scores, Slice, Stars
from effimini.model import EffiMini
from effimini.predictions import VALIDATION_FILE, predictions_table, read_predictions, write_predictions
from effimini.report import StageReport
from effimini.slices import Predicted, count_bucket_names, slices
from prep.core import files, locks, writers
from prep.core.errors import UserError
from prep.core.params import Params, narrow
from prep.core.reports import Funnel
from prep.strata import count_bucket
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
AT_LAUNCH = "EffiMini, at launch"
BINS = 10  # equally filled bins of the calibration plot


class _Splits(NamedTuple):
    """The datasets of the three splits."""

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
    """Evaluate ``models/best`` on the test split, write all outputs, and return the content of evaluation.json.

    Args:
        params: the parameters; only those in `READS` are read.
        data: the folder that contains weights.json; the predictions are written to it.
        models: the folder that contains best/.
        results: the folder for evaluation.json, metrics.json, the plots and the report.
        shards: a folder or URL of external shards. None is ``data/shards``; then shards, weights and model must match
            `params`.

    Raises:
        UserError: the model, the shards or the weights are missing, or belong to another run.
    """
    params = narrow(params, READS)
    with locks.hold(results / "evaluation.json") if first_rank() else nullcontext():
        return _evaluate(params, data, models, results, shards)


def dvc_metrics(measured: Evaluation) -> dict[str, str | float | None]:
    """Return the content of metrics.json: the few numbers of the model that `dvc metrics show` prints in one row.

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
    """Return the mean prediction and mean label of `BINS` bins of equal size, in order of prediction."""
    order = np.argsort(predictions, kind="stable")
    rows = [
        {"prediction": predictions[members].mean(), "average_rating": labels[members].mean(), "samples": len(members)}
        for members in np.array_split(order, BINS)
        if len(members)
    ]
    return pd.DataFrame(rows).astype({"prediction": "float64", "average_rating": "float64"})


def groups_table(slices: Sequence[Slice]) -> pd.DataFrame:
    """Return the slices of the evaluation as a table, one row each; what could not be measured is empty."""
    rows = [msgspec.structs.asdict(each) for each in slices]
    others = [{f"{name} PLCC": plcc for name, plcc in row.pop("baselines").items()} for row in rows]
    return pd.DataFrame([row | of_baselines for row, of_baselines in zip(rows, others, strict=True)])


def weights_by_count(train: ShardDataset, weights: SampleWeights) -> pd.DataFrame:
    """Return how the loss weights the training samples, by bucket of the count that determines the weight.

    Returns:
        One row per non-empty bucket: ratings (its name), samples, mean label (stars), mean weight, share of weight
        (the bucket's fraction of the total weight), clipped (the fraction of its samples whose weight is clipped).
    """
    counts = counts_of(train, weights)
    weight = sample_weights(counts, weights).astype(np.float64)
    bucket = count_bucket(counts)
    rows = [
        {
            "ratings": name,
            "samples": int(chosen.sum()),
            "mean label": float(train.labels[chosen].mean()),
            "mean weight": weight[chosen].mean(),
            "share of weight": weight[chosen].sum() / max(weight.sum(), 1e-9),
            "clipped": float((weight[chosen] >= weights.clip).mean()) if weights.count != "none" else 0.0,
        }
        for number, name in enumerate(count_bucket_names())
        if (chosen := bucket == number).any()
    ]
    return pd.DataFrame(rows)


def _evaluate(params: Params, data: Path, models: Path, results: Path, shards: str | Path | None) -> Evaluation:
    """Do the work of `evaluate`, while no other run does."""
    model, training = EffiMini.from_pretrained(models / "best"), provenance.read_training(models / "best")
    tokenization = TokenizationConfig(str(models / "best"), model.config.fields, model.config.max_tokens)
    train, validation, test = splits = _Splits(
        *(
            open_split(shards or data / "shards", params, name, tokenization, model.config.size, model.config.tabular)
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
    chosen_by = read_predictions(models / "best" / VALIDATION_FILE, validation)
    validation_stars, predictions = _predict(params, model, splits, weights, chosen_by)
    ours = predictions[MODEL]
    _write_predictions(data / "predictions", {"test": (test, ours), "validation": (validation, validation_stars)})

    selection = ModelSelection(round(metrics.plcc(validation_stars, validation.labels), 6), len(validation))
    measured = _measure(params, model, predictions, splits, selection)
    writers.write_json(results / "evaluation.json", measured)
    writers.write_json(results / "metrics.json", dvc_metrics(measured))
    tables = _write_tables(results / "plots", splits, predictions, measured, weights)
    shown = examples(test, ours, params.text.fields)
    about = summarise(test.shards.location, params.source.categories)
    with files.atomic_write(results / "report.html") as partial:
        page = report.report_page(
            params, training, measured, weights, tables, shown, about, _stage_reports(test), results / "train"
        )
        partial.write_text(page, encoding="utf-8")
    return measured


def _predict(
    params: Params, model: EffiMini, splits: _Splits, weights: SampleWeights, chosen_by: Stars | None
) -> tuple[Stars, dict[str, Stars]]:
    """Return the model's stars on validation, and the stars of each predictor on test, the model first; all clamped.

    Those on validation are `chosen_by`, unless it is None.
    """
    set_tf32(params.train.tf32)
    feature_baseline = {}
    with init_distributed() as dist:
        model.to(dist.device)

        def stars(split: ShardDataset, seen: Modality = "both") -> Stars:
            return clamp(predict_split(model, split, dist, params, seen))

        validation_stars = stars(splits.validation) if chosen_by is None else chosen_by
        ours = {
            MODEL: stars(splits.test),
            IMAGE_ALONE: stars(splits.test, "image"),
            TEXT_ALONE: stars(splits.test, "text"),
        }
        if params.train.freeze_encoders and dist.world_size == 1:  # most features are in the local store already
            train, validation, test = (features.of_split(model, split, dist, params) for split in splits)
            if at_launch(model.config.tabular) != model.config.tabular:
                ours[AT_LAUNCH] = stars_at_launch(model, (train, validation, test), weights, dist, params)
            feature_baseline["frozen features + ridge"] = on_features(
                train, validation, test, weights, refit=params.train.refit
            )
        model.cpu()
    others = baselines(*splits, weights, params.text.fields, refit=params.train.refit)
    return validation_stars, ours | others | feature_baseline


def _measure(
    params: Params, model: EffiMini, predictions: Mapping[str, Stars], splits: _Splits, selection: ModelSelection
) -> Evaluation:
    """Return the content of evaluation.json, rounded to 6 decimals."""
    test = splits.test
    labels, costs = test.labels, cost.costs(model)
    resampling = (params.evaluate.bootstrap, params.evaluate.seed)
    scores = {}
    for name, stars in predictions.items():
        low, high = metrics.plcc_interval(stars, labels, *resampling)
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
            if (interval := model.config.interval) is not None:
                found["coverage_90"] = calibration.covered(interval, stars, labels, test.rating_number, 0.9)
        else:
            found["behind"], found["behind_low"], found["behind_high"] = metrics.lead(
                predictions[MODEL], stars, labels, *resampling
            )
        scores[name] = Scores(**{key: round(value, 6) for key, value in found.items()})
    return Evaluation(
        source=params.source.kind,
        samples=len(test),
        label=LabelStats(round(float(labels.mean()), 6), round(float(labels.std(dtype=np.float64)), 6)),
        test=scores,
        cost=msgspec.structs.replace(costs, C=round(costs.C, 6), E=round(costs.E, 6)),
        validation=selection,
        scatter=(scatter := _scatter(splits)),
        slices=slices(test, _predicted(predictions), scatter, *resampling),
    )


def _scatter(splits: _Splits) -> Scatter:
    """Estimate the scatter of ratings from the samples of all splits: no model is involved."""
    labels = np.concatenate([split.labels for split in splits])
    counts = np.concatenate([split.rating_number for split in splits])
    numbers = {name: i for i, name in enumerate(sorted({name for split in splits for name in split.shards.categories}))}
    of_shards = [np.array([numbers[name] for name in split.shards.categories], np.int64) for split in splits]
    categories = [np.repeat(each, split.shards.sizes) for each, split in zip(of_shards, splits, strict=True)]
    return scatter_of_labels(labels, counts, np.concatenate(categories))


def _predicted(predictions: Mapping[str, Stars]) -> Predicted:
    """Return the predictions for the slices; "text alone" is the model without the image."""
    own = {MODEL, IMAGE_ALONE, TEXT_ALONE, AT_LAUNCH}
    others = {name: stars for name, stars in predictions.items() if name not in own and np.ptp(stars) > 0}
    return Predicted(predictions[MODEL], predictions[TEXT_ALONE], predictions[IMAGE_ALONE], others)


def _write_tables(
    folder: Path, splits: _Splits, predictions: Mapping[str, Stars], measured: Evaluation, weights: SampleWeights
) -> dict[str, pd.DataFrame]:
    """Write the tables to results/plots, and return them by name."""
    test, ours = splits.test, predictions[MODEL]
    tables = {
        "predictions": predictions_table(test, ours)[["average_rating", "prediction", "category", "rating_number"]],
        "calibration": calibration_table(ours, test.labels),
        "baselines": pd.DataFrame([{"predictor": name, "plcc": scores.plcc} for name, scores in measured.test.items()]),
        "groups": groups_table(measured.slices),
        "weights": weights_by_count(splits.train, weights),
    }
    for name, table in tables.items():
        writers.write_csv(folder / f"{name}.csv", table)
    return tables


def _stage_reports(test: ShardDataset) -> list[StageReport]:
    """Return the reports of all data stages for each category, which are stored with its shards.

    Raises:
        UserError: the report in the shards is not valid.
    """
    location, reports = test.shards.location, []
    for manifest in test.shards.manifests:
        name = f"{manifest.category}/report.json"
        try:
            stage_report = msgspec.json.decode(location.read(name), type=StageReport)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{location.full(name)} is not a valid stage report ({error}); run `dvc checkout`"
            ) from None
        reports += [*stage_report.before, stage_report]
    return reports


def _write_predictions(folder: Path, splits: Mapping[str, tuple[ShardDataset, Stars]]) -> None:
    """Write the predictions of each split (schema `PREDICTIONS`) and the row accounting."""
    with files.atomic_folder(folder) as partial:
        for name, (split, stars) in splits.items():
            write_predictions(partial / f"{name}.parquet", split, stars)
        funnel = Funnel.of(sum(len(split) for split, _ in splits.values()), {})
        writers.write_json(partial / "report.json", {"stage": "evaluate", "tables": {"predictions": funnel}})
