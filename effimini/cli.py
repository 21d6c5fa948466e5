"""The command line: one command per pipeline stage, and commands that inspect, share and use the results.

Input: a command, the folder ``data/``, and ``params.yaml``, without which shards can still be looked at. Output: files,
a log on stderr, and on stdout only results that a program may parse. Guarantees: a user error ends with a one-line
message and exit code 2.
"""

import atexit
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from prep.core import files, open_files, presets
from prep.core import pipeline as dvc
from prep.core.errors import UserError, of_system, printable
from prep.core.params import Params, load_params, read_yaml

if TYPE_CHECKING:
    from shards.location import ShardLocation

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _complete_category(context: typer.Context, incomplete: str) -> list[str]:
    """Return the categories of the parameter file, for the shell; none without a valid file."""
    try:
        known = load_params(context.params.get("params") or PARAMS).source.categories
    except UserError:
        return []
    return [category for category in known if category.startswith(incomplete)]


def _complete_preset(incomplete: str) -> list[str]:
    return [name for name in presets.names(presets.own_folder()) if name.startswith(incomplete)]


CategoryArgument = Annotated[str, typer.Argument(help="One of source.categories.", autocompletion=_complete_category)]
ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.")]
ParamsIfAny = Annotated[
    Path, typer.Option("--params", help="The parameter file; without one, all that is needed is read from the shards.")
]
Data = Annotated[Path, typer.Option("--data", help="The folder that contains the tables and shards.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ShardsAt = Annotated[
    str,
    typer.Option("--shards", help="Read shards from a folder, an http(s) or s3 URL, or dvc+URL@REVISION#FOLDER."),
]
CategoriesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="The categories to read; all by default.", show_default=False, autocompletion=_complete_category
    ),
]
PARAMS, DATA = Path("params.yaml"), Path("data")
INTERRUPTED = 128 + signal.SIGINT  # exit code
KEPT = {  # by a stage that is stopped; the others begin again, and keep their earlier output
    "download": "the bytes of raw files in the local store (source.keep_raw) and earlier tables",
    "fetch": "all fetched images",
    "shard": "the tars in the local store and earlier shards",
}


def main() -> None:
    """Run the command line."""
    open_files.raise_limit()
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    sys.excepthook = _print_traceback
    # they log every request, with signed URLs, and where they find credentials
    for library in ("httpx", "httpx2", "aiobotocore", "botocore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has its own handler
    logging.getLogger("torch").setLevel(logging.WARNING)  # it counts its caches when it ends
    files.ensure_home()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, so that nothing is left half-written
    try:
        app()
    except SystemExit as ended:
        if type(ended) is SystemExit and ended.code == INTERRUPTED:  # a training says more
            kept = next((KEPT[word] for word in sys.argv[1:] if word in KEPT), "finished outputs and the local store")
            sys.stderr.write(f"effimini: stopped; {kept} are kept, run the same command to go on\n")
            if dask := sys.modules.get("distributed.deploy.spec"):
                atexit.unregister(dask.close_clusters)  # it prints a traceback if the workers were just starting
        raise
    except (UserError, OSError, ExceptionGroup) as error:
        message = error if isinstance(error, UserError) else of_system(error)
        if message is None:
            raise
        sys.stderr.write(f"effimini: {printable(str(message))}\n")
        sys.exit(2)


class _PrintableFormatter(logging.Formatter):
    """Formats messages, which may quote servers and files, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return _printable_lines(super().format(record))


def _print_traceback(*error: Any) -> None:
    sys.stderr.write(_printable_lines("".join(traceback.format_exception(*error))))


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _load_project_params(path: Path) -> Params:
    """Read the parameters; for the project's own file, check that dvc.yaml matches it."""
    settings = load_params(path)
    if path == PARAMS:
        dvc.check_dvc_yaml(settings)
    return settings


def _load_params_of(category: str, path: Path) -> Params:
    """As `_load_project_params`, and check that the parameters have a category."""
    settings = _load_project_params(path)
    if category not in settings.source.categories:
        known = ", ".join(settings.source.categories)
        raise UserError(f"{category} is not in source.categories ({known}); name one of them, or add it there")
    return settings


def _run(stage: Callable[[str, Params, Path], Any], category: str, params: Params, table: Path, as_json: bool) -> Any:
    """Run a stage on one category, log or print its report, and return its result; `table` is its output folder.

    A mapping that the stage returns has a note for each of its tables.
    """
    result = stage(category, params, table.parent)
    report = _report(table / category, result if isinstance(result, Mapping) else None)
    if as_json:
        _print_json(report)
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


def _print_version(wanted: bool) -> None:
    if wanted:
        from effimini import __version__

        typer.echo(f"effimini {__version__}")
        raise typer.Exit


@app.callback()
def of_all_commands(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Prepare Amazon Reviews 2023 as shards, and train a compact image + text model on them."""


@app.command()
def categories(
    hub: Annotated[
        bool, typer.Option("--hub", help="List the newest commit on the hub instead of the configured source.")
    ] = False,
    count: Annotated[
        bool, typer.Option("--count", help="Count the items from the Parquet footers of the metadata.")
    ] = False,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """List the categories of the source with their file sizes, and item counts where known.

    Reads the source configured in params.yaml and the reports in data/raw.

    Examples: `effimini categories`, `effimini categories --hub --count`
    """
    from prep import categories as stage

    content = stage.of_hub(count) if hub else stage.of_source(load_params(params).source, data, count)
    _show(content, stage.category_table, as_json)


@app.command()
def preset(
    name: Annotated[
        str,
        typer.Argument(help="The name of a file in params/, without its extension.", autocompletion=_complete_preset),
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite values that no preset contains.")] = False,
) -> None:
    """Write params.yaml from a preset and update dvc.yaml to match.

    Reads params/base.yaml and params/NAME.yaml, or outside of a project those of the package; writes params.yaml, and
    dvc.yaml if there is one.

    Example: `effimini preset paper`
    """
    presets.write_preset(name, PARAMS, presets.own_folder(), overwrite=force)
    if dvc.FILE.exists():
        pipeline()
    else:
        logging.info("%s was written; there is no %s to update", PARAMS, dvc.FILE)


@app.command()
def inspect(
    location: Annotated[
        str, typer.Argument(metavar="TABLE", help="A file, a glob, a URL, a folder, or hf://datasets/NAME@COMMIT.")
    ],
    mapped: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN,...", help="The columns of a field; none: leave it out."),
    ] = None,
    scale: Annotated[
        tuple[float, float] | None, typer.Option(help="The lowest and the highest rating.", show_default=False)
    ] = None,
    image_folder: Annotated[
        str, typer.Option(help="What paths of images are relative to; by default the folder of the table.")
    ] = "",
    write: Annotated[bool, typer.Option("--write", help="Write the parameters, and update dvc.yaml.")] = False,
    params: ParamsFile = PARAMS,
    as_json: Json = False,
) -> None:
    """Show what a table of products has, how its columns would be read, and which rows would be dropped.

    Reads the whole table: CSV, TSV, JSON lines or parquet, or a dataset that `datasets` can load. With --write, changes
    the source and the filter in params.yaml to read it.

    Examples: `effimini inspect catalogue.csv`,
    `effimini inspect catalogue.csv --map title=brand,name --scale 0 100 --write`
    """
    from prep.catalogue import inspect as stage

    chosen = {}
    for given in mapped or ():
        field, equals, columns = given.partition("=")
        if not equals:
            raise UserError(f"--map {given} has no =; write --map FIELD=COLUMN, for example --map title=name")
        chosen[field.strip()] = [column.strip() for column in columns.split(",") if column.strip()]
    content = read_yaml(params)
    found = stage.inspect(location, content, params, chosen, scale, image_folder)
    _show(found, stage.inspection_table, as_json)
    if write:
        presets.write_yaml(content, params)
        logging.info("%s was written", params)
        if dvc.FILE.exists():
            pipeline(params)


@app.command()
def pipeline(params: ParamsFile = PARAMS) -> None:
    """Update the dependencies in dvc.yaml after the categories, the source or an encoder changed.

    Reads params.yaml; writes dvc.yaml, so that its stages depend on the folders of the configured categories, on local
    encoder files, and on the demo catalogue if it is the source.

    Example: `effimini pipeline`
    """
    from prep import removed

    settings = load_params(params)
    if any(removed.FOLDER.glob("*.csv")):
        for category in settings.source.categories:  # DVC wants the file of a new category too
            removed.write_removed(DATA, category, removed.read_removed(DATA, category))
    changed = dvc.update_dvc_yaml(settings)
    dvc.warn_of_strays(DATA, dvc.TABLE_FOLDERS, settings.source.categories)
    logging.info("dvc.yaml %s; run `dvc repro`", "was updated" if changed else "is up to date")


@app.command()
def plan(
    cores: Annotated[int, typer.Option(help="Plan for so many cores like those of this machine; 0: for its own.")] = 0,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Estimate what a run will take on this machine: time, memory, disk and network, for each stage.

    Reads a few rows of each category of the source, requests 64 images, and measures this machine for less than a
    minute. Warns if the disk or the memory is too small, with the parameter to change.

    Example: `effimini plan`
    """
    settings = load_params(params)
    from effimini.plan import plan as stage

    found = stage.plan(settings, data, cores)
    _show(found, stage.plan_table, as_json)
    for warning in found.warnings:
        logging.warning("warning: %s", warning)


@app.command()
def download(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Download the raw files of a category and convert them to typed tables.

    Reads the files of the source; writes data/raw/CATEGORY, without the items of removed/CATEGORY.csv.

    Example: `effimini download Demo_Toys`
    """
    settings = _load_params_of(category, params)
    from prep import download as stage

    _run(stage.download, category, settings, data / "raw", as_json)


@app.command()
def join(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Join the reviews of a category to its items.

    Reads data/raw/CATEGORY; writes data/items/CATEGORY.

    Example: `effimini join Demo_Toys`
    """
    settings = _load_params_of(category, params)
    from prep import join as stage

    _run(stage.join, category, settings, data / "items", as_json)


@app.command()
def groups(params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Group the items that are the same product, across all categories.

    Reads data/items; writes data/groups.

    Example: `effimini groups`
    """
    settings = _load_project_params(params)
    from prep import groups as stage

    stage.groups(settings, data)
    report = _report(data / "groups")
    if as_json:
        _print_json(report)


@app.command()
def sample(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Filter the items of a category, assign them to splits, and select the configured fraction.

    Reads data/items/CATEGORY and data/groups/CATEGORY; writes data/sample/CATEGORY.

    Example: `effimini sample Demo_Toys`
    """
    settings = _load_params_of(category, params)
    from prep import sample as stage

    _run(stage.sample, category, settings, data / "sample", as_json)
    found = json.loads((data / "sample" / category / "report.json").read_text(encoding="utf-8"))["largest_deviation"]
    logging.info(
        "largest difference between the training sample and its population: %.2f %% by rating, %.2f %% by rating count",
        100 * found["average_rating"],
        100 * found["rating_number"],
    )


@app.command()
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
    settings = _load_params_of(category, params)
    from shards import fetch as stage

    outcomes = frozenset(filter(None, retry.split(","))) or stage.TRANSIENT
    if unknown := sorted(outcomes - stage.FAILURES):
        raise UserError(f"--retry {unknown[0]} is not an outcome; choose from {', '.join(sorted(stage.FAILURES))}")
    _run(partial(stage.fetch, retry=outcomes), category, settings, data / "images", as_json)
    if Path(".dvc").is_dir() and "DVC_STAGE" not in os.environ:  # DVC sets it for the stages that it runs
        logging.info("run `dvc commit --force fetch@%s` to keep these images, then `dvc repro`", category)


@app.command()
def decontaminate(params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Exclude training items that repeat a validation or test item, and validation items that repeat a test item.

    Reads data/sample and data/images; writes data/exclusions.

    Example: `effimini decontaminate`
    """
    settings = _load_project_params(params)
    from shards import decontaminate as stage

    stage.decontaminate(settings, data)
    reports = [_report(data / "exclusions" / category) for category in settings.source.categories]
    if as_json:
        _print_json(reports)


@app.command()
def shard(category: CategoryArgument, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Write the sample and images of a category as WebDataset tars with indexes and a manifest.

    Reads the CATEGORY of data/sample, data/images and data/exclusions; writes data/shards/CATEGORY.

    Example: `effimini shard Demo_Toys`
    """
    settings = _load_params_of(category, params)
    from shards import shard as stage

    written = _run(stage.shard, category, settings, data / "shards", as_json)
    logging.info("%d tars written, the others were in the local store", written)


@app.command()
def weights(params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Compute the normalization constant of the sample weights from the rating counts.

    Reads data/sample and data/exclusions; writes data/weights.json.

    Example: `effimini weights`
    """
    settings = _load_project_params(params)
    from prep import weights as stage

    stage.weights(settings, data)
    found = stage.read_weights(data / "weights.json")
    logging.info("weights of %d training samples: %s", found.samples, found.formula)
    if as_json:
        _print_json(found)


@app.command()
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

    settings, location = _load_project_params(params), shards or data / "shards"
    precheck.shards(location, settings)
    from effimini import train as stage
    from effimini.distributed import first_rank

    weights_file = None if shards else data / "weights.json"
    trained = stage.train(settings, location, weights_file, tracker=tracker)
    if as_json and first_rank():
        _print_json(trained)


@app.command()
def batch(
    step: Annotated[int, typer.Option(help="The step, from 1: of the run, or of --epoch.")],
    epoch: Annotated[int | None, typer.Option(help="The epoch, from 1.", show_default=False)] = None,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    shards: ShardsAt = "",
    as_json: Json = False,
) -> None:
    """List the ids of the samples that a step of the training reads, over all ranks.

    Reads data/shards, and no tar.

    Examples: `effimini batch --step 120`, `effimini batch --step 7 --epoch 2 --json`
    """
    from shards import steps as stage

    found = stage.steps(load_params(params), shards or data / "shards").batch(step, epoch)
    if as_json:
        _print_json(found)
    else:
        typer.echo("\n".join(map(printable, found.ids)))
    logging.info(
        "epoch %d, step %d (step %d of the run): %d samples%s",
        *(found.epoch, found.step, found.step_of_run, len(found.ids)),
        ", left out by train.skip" if found.skipped else "",
    )


@app.command()
def where(
    item: Annotated[str, typer.Argument(metavar="ID", help="A parent_asin, or CATEGORY/PARENT_ASIN.")],
    epoch: Annotated[
        list[int] | None, typer.Option(help="An epoch, from 1; may be repeated. All by default.", show_default=False)
    ] = None,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    shards: ShardsAt = "",
    as_json: Json = False,
) -> None:
    """List the steps of the training that have an item, in each epoch.

    Reads data/shards, and no tar.

    Example: `effimini where B000000000 --epoch 1`
    """
    from shards import steps as stage

    found = stage.steps(load_params(params), shards or data / "shards").where(item, epoch or ())
    _show(found, stage.place_table, as_json)
    if not found:
        logging.info("no step of these epochs reads %s: its category weighs less than 1 in train.mixture", item)


@app.command()
def evaluate(params: ParamsFile = PARAMS, data: Data = DATA, shards: ShardsAt = "", as_json: Json = False) -> None:
    """Evaluate the best model and the baselines on the test split, and write the report.

    Reads models/best, data/shards and data/weights.json; writes data/predictions and results. With --shards, the
    weights are computed from the indexes.

    Example: `effimini evaluate`
    """
    from effimini import precheck

    settings = _load_project_params(params)
    precheck.saved_model(Path("models/best"))
    precheck.shards(shards or data / "shards", settings)
    from effimini import evaluate as stage
    from effimini.distributed import first_rank

    found = stage.evaluate(settings, data, shards=shards or None)
    if first_rank():
        logging.info("results/report.html was written; `effimini results` prints the metrics")
        if as_json:
            _print_json(found)


@app.command()
def curve(
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    shards: ShardsAt = "",
    output: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("results/curve"),
    as_json: Json = False,
) -> None:
    """Measure how good the cheap part of the model is with fewer items, and forecast what more items would bring.

    Reads data/shards and data/weights.json; fits the closed form on nested fractions of the training items, measures
    the PLCC on the test split, and writes curve.csv and curve.svg. Forecasts have an interval of 90 %.

    Example: `effimini curve`
    """
    from effimini import precheck

    settings = _load_project_params(params)
    location, weights_file = shards or data / "shards", None if shards else data / "weights.json"
    precheck.shards(location, settings)
    from effimini import curve as stage

    found = stage.curve(settings, location, weights_file, output)
    _show(found, stage.curve_table, as_json)
    if not as_json:
        typer.echo(f"Plot: {(output / 'curve.svg').resolve()}")


@app.command()
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
    settings, place = _load_project_params(params), Path(table)
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
        _print_json(found)
    if failure:
        raise failure


@app.command()
def accept(data: Data = DATA, as_json: Json = False) -> None:
    """Accept the column profiles of this run as the reference for the drift checks of later runs.

    Reads data/profiles; writes accepted.csv, which should be committed.

    Example: `effimini accept`
    """
    from validation import validate as stage

    accepted = stage.accept(data)
    logging.info("%s was written; commit it", accepted)
    if as_json:
        _print_json({"output": str(accepted)})


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="A model folder, for example models/best, or an exported model.")],
    input_csv: Annotated[Path, typer.Option("--input", help="The CSV file of items to score.")],
    output_csv: Annotated[Path, typer.Option("--output", help="The CSV file to write the scores to.")],
    images: Annotated[Path, typer.Option(help="The folder that image_paths is relative to.")] = Path("images"),
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse items whose images cannot be read, and write nothing.")
    ] = False,
    image_faults: Annotated[
        bool, typer.Option("--image-faults", help="Add a column that says why an item is scored without its image.")
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(help="Add columns low and high that contain this fraction of average ratings, for example 0.9."),
    ] = None,
    ratings: Annotated[
        int | None,
        typer.Option(help="Ratings that the interval's average is of, instead of the column rating_number."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict the average rating of each item of a CSV file.

    Reads the columns parent_asin, main_category, title, features, description and image_paths, and of store, details,
    price, images, videos and categories those that are there; writes item_id, score, params and flops.
    An item whose images cannot be read is named and scored without one.

    Example: `effimini predict --model models/best --input items.csv --images images --output scores.csv`
    """
    from effimini import precheck
    from effimini.input_csv import check_begin

    precheck.interval_options(interval, ratings)
    precheck.any_model(model)
    check_begin(input_csv)
    from effimini import predict as stage

    written = stage.predict(model, input_csv, images, output_csv, strict, image_faults, interval, ratings)
    logging.info("%d items: %s", written.items, output_csv)
    if as_json:
        _print_json(written)


@app.command()
def embed(
    model: Annotated[Path, typer.Option(help="A model folder, for example models/best.")],
    output: Annotated[Path, typer.Option(help="The parquet file to write.")],
    categories: CategoriesArgument = None,
    input_csv: Annotated[
        Path | None,
        typer.Option("--input", help="The CSV file of items, as of `effimini predict`.", show_default=False),
    ] = None,
    images: Annotated[Path, typer.Option(help="The folder that image_paths is relative to.")] = Path("images"),
    strict: Annotated[bool, typer.Option("--strict", help="Refuse items whose images cannot be read.")] = False,
    shards: ShardsAt = "",
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="The split of the shards.")] = "test",
    params: ParamsIfAny = PARAMS,
    as_json: Json = False,
) -> None:
    """Write the features of both encoders, and the score, of each item of a CSV file or of a split of shards.

    Reads a model folder, and the input of `effimini predict` or shards; writes a parquet file with the lists
    image_features and text_features.

    Examples: `effimini embed --model models/best --input items.csv --output features.parquet`,
    `effimini embed --model models/best --shards data/shards --split test --output features.parquet`
    """
    if (input_csv is None) == (not shards):
        raise UserError("embed needs either --input, a CSV file, or --shards, a folder or URL; name one of them")
    from effimini import precheck
    from effimini.input_csv import check_begin

    precheck.any_model(model)
    if input_csv is not None:
        check_begin(input_csv)
        from effimini import embed as stage

        written = stage.embed_items(model, input_csv, images, output, strict)
    else:
        location = _open_location(shards, params)
        chosen = _chosen(location, categories, params) or location.categories()
        precheck.manifests(location, chosen)
        from effimini import embed as stage

        written = stage.embed_shards(model, location, chosen, split, output)
    logging.info("%d items: %s", written.items, output)
    if as_json:
        _print_json(written)


@app.command()
def serve(
    model: Annotated[Path, typer.Option(help="A model folder, for example models/best, or an exported model.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8000,
    max_items: Annotated[int, typer.Option(min=1, help="Items of a request.")] = 256,
    max_mb: Annotated[int, typer.Option(min=1, max=1024, help="Size of a request, MB.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Items that may wait; more are asked to come back later.")] = 1024,
    wait_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that an item waits for others to fill its batch.")
    ] = 5,
) -> None:
    """Serve predictions over HTTP, with a page for one item; needs `effimini[serve]`.

    Reads a model folder and requests; SIGTERM and Ctrl-C end it. docs/serving.md describes the requests.

    Example: `effimini serve --model models/best --port 8000`
    """
    if max_items > queue:
        raise UserError(f"--max-items {max_items} is more than --queue {queue}, which has to hold them; change either")
    from effimini import precheck

    precheck.any_model(model)
    try:
        from effimini import serve as stage
    except ModuleNotFoundError as error:
        if error.name not in {"python_multipart", "starlette", "uvicorn"}:
            raise
        raise UserError(
            f"{error.name} is not installed and is needed to serve; run `pip install effimini[serve]`"
        ) from None
    stage.serve(model, host, port, stage.Limits(max_items, max_mb << 20, queue, wait_ms / 1000))


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="A model folder, for example models/best.")],
    output: Annotated[Path, typer.Option(help="The folder to create; an earlier export is replaced.")],
    as_json: Json = False,
) -> None:
    """Export a model to ONNX, which `effimini predict` runs with onnxruntime; needs `effimini[onnx]`.

    Reads a model folder; writes model.onnx, the configuration and the tokenizer, after comparing the scores with
    torch's.

    Example: `effimini export --model models/best --output build/onnx`
    """
    from effimini import precheck

    precheck.saved_model(model)
    precheck.to_export(model, output)
    from effimini import export as stage

    exported = stage.export(model, output)
    if as_json:
        _print_json(exported)


@app.command("import")
def import_weights(
    weights: Annotated[Path, typer.Argument(help="The state dict, for example best_model.pt.")],
    output: Annotated[Path, typer.Option(help="The model folder to create.")],
    params: Annotated[Path, typer.Option(help="The parameters that describe the model.")] = Path("params/paper.yaml"),
    as_json: Json = False,
) -> None:
    """Import trained weights of the paper's code as a model folder.

    Reads a state dict, without running any code in it, and checks every tensor; writes a folder for `effimini predict`
    and `effimini export`. The text encoder's configuration and tokenizer come from `model.text.name`.

    Example: `effimini import best_model.pt --output build/paper`
    """
    from effimini import precheck

    settings = load_params(params)
    precheck.to_import(weights, output)
    from effimini import import_weights as stage

    parameters = stage.import_weights(weights, settings, output)
    if as_json:
        _print_json({"model": str(output), "parameters": parameters})


@app.command()
def lint(
    shards: Annotated[str, typer.Argument(help="The folder or URL of the shards.")] = "data/shards",
    categories: CategoriesArgument = None,
    params: ParamsIfAny = PARAMS,
    as_json: Json = False,
) -> None:
    """Read every byte of the shards and report violations with their location.

    Prints one line per violation, and exits with code 1 if there are any.

    Example: `effimini lint data/shards`
    """
    location = _open_location(shards, params)
    chosen = _chosen(location, categories, params)
    if not chosen:
        location.categories()  # an error if there is none, before what takes long to import
    from shards import lint as stage

    violations: list[stage.Violation] = []
    tars = samples = 0
    for found in stage.lint(location, chosen):
        violations += found.violations
        if found.read:
            tars, samples = tars + 1, samples + len(found.read.keys)
        for violation in found.violations if not as_json else ():
            typer.echo(printable(f"{violation.where}: {violation.what}"))
    if as_json:
        _print_json({"violations": [f._asdict() for f in violations], "shards": tars, "samples": samples})
    logging.info("%d violations in %d shards, %d samples read", len(violations), tars, samples)
    if violations:
        raise typer.Exit(1)


@app.command()
def info(
    shards: Annotated[str, typer.Argument(help="The folder or URL of the shards.", show_default=False)] = "",
    categories: CategoriesArgument = None,
    model: Annotated[
        Path | None, typer.Option(help="A model folder, for example models/best.", show_default=False)
    ] = None,
    params: ParamsIfAny = PARAMS,
    as_json: Json = False,
) -> None:
    """Summarize shards; without an argument, print the model's parameters and FLOPs by part, and its C and E.

    Reads the shards, or a model folder, or the model configured in params.yaml.

    Examples: `effimini info data/shards`, `effimini info --model models/best`,
    `effimini info --params params/paper.yaml`
    """
    if shards and model:
        raise UserError(f"both the shards {shards} and the model {model} are named; name one of them")
    if shards:
        from shards import summary

        location = _open_location(shards, params)
        _show(summary.summarise(location, _chosen(location, categories, params)), summary.summary_table, as_json)
        return
    if model is None and _is_absent(params):
        raise UserError(
            f"{params} does not exist, so no model is configured here; name shards (`effimini info URL`), a model "
            "folder with --model, or a parameter file with --params"
        )
    from effimini import precheck

    if model:
        precheck.saved_model(model)
        from effimini import info as stage

        found = stage.of_folder(model)
    else:
        settings = load_params(params)
        from effimini import info as stage

        found = stage.info(settings)
    _show(found, stage.info_table, as_json)


@app.command()
def card(
    shards: Annotated[str, typer.Argument(help="The folder or URL of the shards.")] = "data/shards",
    categories: CategoriesArgument = None,
    params: ParamsIfAny = PARAMS,
) -> None:
    """Print a dataset card for several categories: the README.md at the root of a hub repository.

    Reads the shards; prints Markdown.

    Example: `effimini card > data/shards/README.md`
    """
    from shards import card as stage

    location = _open_location(shards, params)
    typer.echo(stage.of_location(location, _chosen(location, categories, params)), nl=False)


@app.command()
def publish(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is created if there is none.")],
    shards: Annotated[str, typer.Argument(help="The folder of the shards; data/shards by default.")] = "",
    categories: CategoriesArgument = None,
    licence: Annotated[
        str, typer.Option("--license", help="The licence of what is published, by the hub's name of it.")
    ] = "",
    without_content: Annotated[
        bool, typer.Option("--without-content", help="Publish ids, labels, counts and numbers: no image, no text.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="Publish this model folder instead of shards.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Publish on this branch; main by default.")] = "",
    params: ParamsIfAny = PARAMS,
    as_json: Json = False,
) -> None:
    """Publish shards as a dataset, or a model, on the Hugging Face hub.

    Reads data/shards or a model folder; uploads the files with a card, and prints where they are. Images and texts
    are published only with a licence that you state.

    Examples: `effimini publish team/products --license cc-by-4.0`, `effimini publish team/labels --without-content`,
    `effimini publish --model models/best team/rating`
    """
    if model and (shards or without_content):
        raise UserError(f"both the model {model} and shards are to be published in {name}; publish one of them")
    if model:
        from effimini import precheck

        precheck.saved_model(model.absolute())  # not one of the hub
        from effimini import publish_model

        commit = publish_model.publish(model, name, licence, private=private, branch=revision or None)
    else:
        from shards import publish as stage

        location = _open_location(shards or str(DATA / "shards"), params)
        commit = stage.publish(
            location,
            _chosen(location, categories, params) or location.categories(),
            name,
            licence,
            content=not without_content,
            private=private,
            branch=revision or None,
        )
    from shards import hub

    url = hub.page(name, "model" if model else "dataset", revision or "main")
    if as_json:
        _print_json({"repository": name, "url": url, "commit": commit})
    else:
        typer.echo(f"Published: {url} (commit {commit})")


@app.command()
def preview(
    shards: Annotated[str, typer.Argument(help="The folder or URL of the shards.")] = "data/shards",
    categories: CategoriesArgument = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="The split to show.")] = "train",
    samples: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of samples, spread evenly over the categories.")
    ] = 48,
    seed: Annotated[int, typer.Option(help="Seed of the random choice of samples.")] = 0,
    weights: Annotated[
        str, typer.Option(help="The weights.json to use; by default the one next to the shards, if any.")
    ] = "",
    predictions: Annotated[
        Path | None,
        typer.Option(help="A table of predictions; by default predictions/SPLIT.parquet next to the shards, if any."),
    ] = None,
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("preview.html"),
    params: ParamsIfAny = PARAMS,
    as_json: Json = False,
) -> None:
    """Write a page that shows samples: image, text, label, prediction, weight, and the outcome of the image fetch.

    Reads the shards, and the image tables and predictions next to them if they exist; writes a self-contained HTML file
    with search, filters and a histogram of the labels.

    Example: `effimini preview data/shards Demo_Toys --samples 20`
    """
    from shards import preview as stage

    location = _open_location(shards, params)
    configured = None if categories and _is_absent(params) else _chosen(location, None, params)
    weights_file = Path(weights) if weights else None
    html = stage.preview_page(
        location, categories or configured, split, samples, seed, weights_file, configured, predictions
    )
    with files.atomic_write(output) as partial:
        partial.write_text(html, encoding="utf-8")
    if as_json:
        _print_json({"output": str(output)})
    else:
        typer.echo(f"Preview: {output.resolve()}")


@app.command()
def diff(
    old: Annotated[
        str, typer.Argument(metavar="REV1", help="A git tag, branch or commit; or a folder or URL of shards.")
    ],
    new: Annotated[str, typer.Argument(metavar="REV2", help="The version to compare with it.")],
    categories: CategoriesArgument = None,
    repo: Annotated[str, typer.Option(help="The project that the revisions belong to: a path or a git URL.")] = ".",
    folder: Annotated[str, typer.Option(help="The folder of the shards within the project.")] = "data/shards",
    params: ParamsIfAny = PARAMS,
    as_json: Json = False,
) -> None:
    """Compare two versions of shards: parameters, items, shards and labels.

    Reads the files of both versions from folders, URLs, the DVC cache or the DVC remote.

    Examples: `effimini diff v1 v2`, `effimini diff v1 data/shards`
    """
    from shards import diff as stage
    from shards import diff_table

    root = Path(repo).resolve() if Path(repo).exists() else repo
    versions = [(name, Path(name).is_dir() or "://" in name or name.startswith("dvc+")) for name in (old, new)]
    urls = (name if is_location else f"dvc+{root}@{name}#{folder}" for name, is_location in versions)
    before, after = (_open_location(url, params) for url in urls)
    result = msgspec.structs.replace(stage.compare(before, after, categories), old=old, new=new)
    _show(result, diff_table.comparison_table, as_json)


@app.command()
def remove(
    ids: Annotated[list[str] | None, typer.Argument(help="The ids of the items.", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("--file", help="A text file with an id per line.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Change nothing; name every file that holds one.")] = False,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Take items out of the project, for example because someone asks for their deletion.

    Writes removed/CATEGORY.csv, which has hashes and no ids; takes the items out of data/raw and of the local store.
    `dvc repro` then makes the other tables, the affected tars, the model and the predictions without them. With
    --verify, every file of the project, its local store and DVC's cache is searched; exit code 1 if one holds an id.

    Examples: `effimini remove B000000001`, `effimini remove --verify --file ids.txt`
    """
    from effimini import remove as stage

    if file and not file.is_file():
        raise UserError(f"{file} does not exist; name a text file with an id per line")
    lines = file.read_text(encoding="utf-8").split("\n") if file else []
    names = list(dict.fromkeys([*(ids or ()), *filter(None, map(str.strip, lines))]))
    if not names:
        raise UserError("no item is named; give ids, or a text file with an id per line (--file)")
    settings = load_params(params)
    if not verify:
        done = stage.remove(names, settings, data)
        logging.info("next:\n%s", "\n".join(f"    {step}" for step in done.next))
        return _print_json(done) if as_json else None
    holders = []
    for path, held in stage.holding(names, settings, data, [file] if file else []):
        holders.append({"file": str(path), "holds": held})
        if not as_json:
            typer.echo(printable(f"{path}: {held}"))
    if as_json:
        _print_json({"items": len(names), "files": holders})
    logging.info("%d files hold one of %d items", len(holders), len(names))
    if holders:
        raise typer.Exit(1)
    return None


@app.command()
def gc(
    force: Annotated[bool, typer.Option("--force", help="Free what is not needed; without it, only list.")] = False,
    all_tags: Annotated[bool, typer.Option("--all-tags", help="Keep the versions of all git tags too.")] = False,
    all_branches: Annotated[bool, typer.Option("--all-branches", help="Keep those of all git branches too.")] = False,
    max_gb: Annotated[
        float | None, typer.Option(min=0, help="Free no more than needed for the store to have this many GB.")
    ] = None,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """List the local store: what each folder takes, and why it is kept; with --force, free what no version needs.

    Reads params.yaml, the manifests in data/shards, and those of tags and branches if asked to; removes files below
    .effimini only.

    Examples: `effimini gc`, `effimini gc --all-tags --force`
    """
    from effimini import gc as stage

    options: dict[str, Any] = {"force": force, "tags": all_tags, "branches": all_branches, "max_gb": max_gb}
    _show(stage.gc(load_params(params), data, **options), stage.gc_table, as_json)


@app.command()
def results(as_json: Json = False) -> None:
    """Print the metrics of the last evaluation, how much noise in the labels explains, and the path of its report.

    Reads results/evaluation.json.

    Example: `effimini results`
    """
    path = Path("results/evaluation.json")
    files.read_json(path)  # an error if it is missing, before what takes long to import
    from effimini import report as stage

    _show(stage.read_evaluation(path), stage.result_tables, as_json)
    if not as_json:
        typer.echo(f"Report: {Path('results/report.html').resolve()}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A git tag, branch, commit or experiment, or a folder.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The run to compare with it; . is this folder.")] = ".",
    repo: Annotated[str, typer.Option(help="The project that the revisions belong to: a path or a git URL.")] = ".",
    as_json: Json = False,
) -> None:
    """Compare two runs on their test splits: scores, paired difference, and the parameters that differ.

    Reads data/predictions and params.yaml of both, from folders, the DVC cache or the DVC remote.

    Examples: `effimini compare HEAD`, `effimini compare films-v1 films-v2`
    """
    from effimini import compare as stage

    found = stage.compare(stage.read_run(first, repo), stage.read_run(second, repo))
    _show(found, stage.compare_table, as_json)


@app.command()
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Runs beside this one: git tags, branches, commits, experiments, folders."),
    ] = None,
    repo: Annotated[str, typer.Option(help="The project that the revisions belong to: a path or a git URL.")] = ".",
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("results/runs.html"),
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Write the report with this run's commit and date, beside the previous run and others, and with near duplicates.

    Reads results/report.html, data/predictions and data/exclusions, and the predictions of the other runs.

    Examples: `effimini report`, `effimini report films-v1 by-time`
    """
    from effimini import run_report as stage

    found = stage.run_report(runs or (), load_params(params), data, Path("results"), repo)
    with files.atomic_write(output) as partial:
        partial.write_text(found.page, encoding="utf-8")
    if as_json:
        _print_json({"output": str(output), "compared": found.compared})
    else:
        typer.echo(f"Report: {output.resolve()}")


def _open_location(url: str, params: Path) -> "ShardLocation":
    from shards.location import ShardLocation

    if _is_absent(params):
        return ShardLocation(url)
    stream = load_params(params).stream
    return ShardLocation(url, stream.cache_bytes, stream.connections)


def _is_absent(params: Path) -> bool:
    """Return whether no parameter file is named and there is no params.yaml, as outside of a project."""
    return params == PARAMS and not params.exists()


def _chosen(location: "ShardLocation", categories: list[str] | None, params: Path) -> list[str] | None:
    """Return the categories to read: for the project's own shards those of params.yaml by default, else None (all)."""
    if not categories and _is_absent(params):
        categories = location.categories()
        logging.info("there is no %s, so all categories are read: %s", params, ", ".join(categories))
    if categories or Path(location.url).absolute() != (DATA / "shards").absolute():
        return categories
    chosen = list(load_params(params).source.categories)
    dvc.warn_of_strays(DATA, ["shards"], chosen)
    return chosen


class _Printable:
    """What rich prints, without control characters in its texts."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        for text, style, control in console.render(self._content, options):
            yield Segment(text if control else _printable_lines(text), style, control)


def _show(content: Any, table: Any, as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        _print_json(content)
    else:
        Console().print(_Printable(table(content)))


def _print_json(content: Any) -> None:
    """Print structs and plain values as JSON in ASCII; NaN, which JSON lacks, is null."""
    typer.echo(json.dumps(msgspec.json.decode(msgspec.json.encode(content))))


if __name__ == "__main__":
    main()
