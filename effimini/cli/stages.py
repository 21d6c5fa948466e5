"""The stages of the pipeline, each a command that DVC runs.

Input: tables in ``data/`` and ``params.yaml``. Output: the table or folder of the stage, its row accounting on stderr.
Guarantees: a stage is given its parameters only after dvc.yaml was found to match them.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from effimini.cli.common import (
    DATA,
    PARAMS,
    CategoryArgument,
    Data,
    Json,
    ParamsFile,
    ShardsAt,
    load_params_of,
    load_project_params,
    print_json,
)
from effimini.cli.program import app
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params

PANEL = "Stages of the pipeline"


@app.command(rich_help_panel=PANEL)
def download(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Download the raw files of a category and convert them to typed tables.

    Reads the files of the source; writes data/raw/CATEGORY, without the items of removed/CATEGORY.csv.

    Example: `effimini download Demo_Toys`
    """
    settings = load_params_of(category, params)
    from prep import download as stage

    _run(stage.download, category, settings, data / "raw", as_json)


@app.command(rich_help_panel=PANEL)
def join(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Join the reviews of a category to its items.

    Reads data/raw/CATEGORY; writes data/items/CATEGORY.

    Example: `effimini join Demo_Toys`
    """
    settings = load_params_of(category, params)
    from prep import join as stage

    _run(stage.join, category, settings, data / "items", as_json)


@app.command(rich_help_panel=PANEL)
def groups(params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Group the items that are the same product, across all categories.

    Reads data/items; writes data/groups.

    Example: `effimini groups`
    """
    settings = load_project_params(params)
    from prep import groups as stage

    stage.groups(settings, data)
    report = _report(data / "groups")
    if as_json:
        print_json(report)


@app.command(rich_help_panel=PANEL)
def sample(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Filter the items of a category, assign them to splits, and select the configured fraction.

    Reads data/items/CATEGORY and data/groups/CATEGORY; writes data/sample/CATEGORY.

    Example: `effimini sample Demo_Toys`
    """
    settings = load_params_of(category, params)
    from prep import sample as stage

    _run(stage.sample, category, settings, data / "sample", as_json)
    found = json.loads((data / "sample" / category / "report.json").read_text(encoding="utf-8"))["largest_deviation"]
    logging.info(
        "largest difference between the training sample and its population: %.2f %% by rating, %.2f %% by rating count",
        100 * found["average_rating"],
        100 * found["rating_number"],
    )


@app.command(rich_help_panel=PANEL)
def fetch(
    category: CategoryArgument,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
    retry: Annotated[str, typer.Option(help="Retry only images with these outcomes, separated by commas.")] = "",
) -> None:
    """Fetch the images of a category's sample that are not in the local store yet.

    Reads data/sample/CATEGORY; writes data/images/CATEGORY. Each run retries transient errors (timeouts, refusals,
    server errors). `dvc repro` skips this stage if nothing changed; to retry, run this command, then
    `dvc commit --force fetch@CATEGORY` and `dvc repro`.

    Examples: `effimini fetch Demo_Toys`, `effimini fetch Demo_Toys --retry gone,timeout`
    """
    settings = load_params_of(category, params)
    from shards import fetch as stage

    outcomes = frozenset(filter(None, retry.split(","))) or stage.TRANSIENT
    if unknown := sorted(outcomes - stage.FAILURES):
        raise UserError(f"--retry {unknown[0]} is not an outcome; choose from {', '.join(sorted(stage.FAILURES))}")
    _run(partial(stage.fetch, retry=outcomes), category, settings, data / "images", as_json)
    if Path(".dvc").is_dir() and "DVC_STAGE" not in os.environ:  # DVC sets it for the stages that it runs
        logging.info("run `dvc commit --force fetch@%s` to keep these images, then `dvc repro`", category)


@app.command(rich_help_panel=PANEL)
def decontaminate(params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Exclude training items that repeat a validation or test item, and validation items that repeat a test item.

    Reads data/sample and data/images; writes data/exclusions.

    Example: `effimini decontaminate`
    """
    settings = load_project_params(params)
    from shards import decontaminate as stage

    stage.decontaminate(settings, data)
    reports = [_report(data / "exclusions" / category) for category in settings.source.categories]
    if as_json:
        print_json(reports)


@app.command(rich_help_panel=PANEL)
def shard(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Write the sample and images of a category as WebDataset tars with indexes and a manifest.

    Reads the CATEGORY of data/sample, data/images and data/exclusions; writes data/shards/CATEGORY.

    Example: `effimini shard Demo_Toys`
    """
    settings = load_params_of(category, params)
    from shards import shard as stage

    written = _run(stage.shard, category, settings, data / "shards", as_json)
    logging.info("%d tars written, the others were in the local store", written)


@app.command(rich_help_panel=PANEL)
def weights(params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Compute the normalization constant of the sample weights from the rating counts.

    Reads data/sample and data/exclusions; writes data/weights.json.

    Example: `effimini weights`
    """
    settings = load_project_params(params)
    from prep import weights as stage

    stage.weights(settings, data)
    found = stage.read_weights(data / "weights.json")
    logging.info("weights of %d training samples: %s", found.samples, found.formula)
    if as_json:
        print_json(found)


@app.command(rich_help_panel=PANEL)
def train(
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    shards: ShardsAt = "",
    tracker: Annotated[
        Literal["none", "tensorboard", "mlflow", "wandb"],
        typer.Option(envvar="EFFIMINI_TRACKER", help="Send the metrics to a tracker while the model trains."),
    ] = "none",
    as_json: Json = False,
) -> None:
    """Train the model; an interrupted run is resumed.

    Reads data/shards and data/weights.json; writes models and results/train. With --shards it needs a parameter file
    and nothing else of a project: the weights are computed from the indexes.

    Examples: `effimini train`, `torchrun --nproc-per-node 2 -m effimini.cli train`,
    `effimini train --shards s3://bucket/shards`
    """
    from effimini import precheck

    settings, location = load_project_params(params), shards or data / "shards"
    precheck.shards(location, settings)
    from effimini import train as stage
    from effimini.distributed import first_rank

    weights_file = None if shards else data / "weights.json"
    trained = stage.train(settings, location, weights_file, tracker=tracker)
    if as_json and first_rank():
        print_json(trained)


@app.command(rich_help_panel=PANEL)
def evaluate(params: ParamsFile = PARAMS, data: Data = DATA, shards: ShardsAt = "", as_json: Json = False) -> None:
    """Evaluate the best model and the baselines on the test split, and write the report.

    Reads models/best, data/shards and data/weights.json; writes data/predictions and results. With --shards, the
    weights are computed from the indexes.

    Example: `effimini evaluate`
    """
    from effimini import precheck

    settings = load_project_params(params)
    precheck.saved_model(Path("models/best"))
    precheck.shards(shards or data / "shards", settings)
    from effimini import evaluate as stage
    from effimini.distributed import first_rank

    found = stage.evaluate(settings, data, shards=shards or None)
    if first_rank():
        logging.info("results/report.html was written; `effimini results` prints the metrics")
        if as_json:
            print_json(found)


@app.command(rich_help_panel=PANEL)
def validate(
    table: Annotated[
        str, typer.Argument(help="A table, or its folder; by default every table in the data folder.")
    ] = "",
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Validate a table over all categories, and write the gate that the next stage depends on.

    Reads data/TABLE, and the tables that it was made from if they exist; writes data/gates/TABLE and the Data Docs page
    results/validation/TABLE.html.

    Examples: `effimini validate sample`, `effimini validate team/data/shards`
    """
    settings, place = load_project_params(params), Path(table)
    from validation import validate as stage
    from validation.verdicts import FailedError

    if len(place.parts) > 1:
        table, data = place.stem, place.parent
    found, failure = [], None
    for name in [table] if table else stage.present_tables(data):
        try:
            stage.validate(name, settings, data)
        except FailedError as error:
            failure = error
        page = data.parent / "results/validation" / f"{name}.html"
        verdicts = files.read_json(page.with_suffix(".json"))
        found.append({"table": name, "passed": failure is None, "page": str(page), "verdicts": verdicts})
        if failure:
            break
        logging.info("%s passed; every expectation is listed in %s", name, page)
    if as_json:
        print_json(found)
    if failure:
        raise failure


def _run(stage: Callable[[str, Params, Path], Any], category: str, params: Params, table: Path, as_json: bool) -> Any:
    """Run a stage on one category, log or print its report, and return its result; `table` is its output folder.

    A mapping that the stage returns has a note for each of its tables.
    """
    result = stage(category, params, table.parent)
    report = _report(table / category, result if isinstance(result, Mapping) else None)
    if as_json:
        print_json(report)
    return result


def _report(folder: Path, notes: Mapping[Any, str] | None = None) -> Any:
    """Log the rows in, out and dropped of the report of a stage's output folder, and the notes; return the report."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for table, funnel in report["tables"].items():
        dropped = ", ".join(f"{reason} {count}" for reason, count in funnel["dropped"].items())
        name = " ".join(filter(None, [report["stage"], report.get("category"), table]))
        logging.info(
            "%s: %d rows in, %d out%s%s",
            name,
            funnel["rows_in"],
            funnel["rows_out"],
            dropped and f" ({dropped})",
            notes.get(table, "") if notes else "",
        )
    return report
