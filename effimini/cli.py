"""The command line: one command a stage, and what people ask of a run.

In: a command, ``params.yaml``, the folder ``data/``. Out: files, a log on stderr, and on stdout only what a program
would read. Guaranteed (promise 10): a mistake of the user ends with one sentence and exit code 2.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from prep.core import pipeline as dvc
from prep.core import presets
from prep.core.errors import UserError
from prep.core.params import Params, load_params

if TYPE_CHECKING:
    from shards.location import ShardLocation

app = typer.Typer(
    help="Prepare Amazon Reviews 2023 as shards, and train a compact image + text model on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Category = Annotated[str, typer.Argument(help="One of source.categories.")]
ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters of the run.")]
Data = Annotated[Path, typer.Option("--data", help="The folder of the tables and shards.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ShardsAt = Annotated[
    str,
    typer.Option("--shards", help="Shards elsewhere: a folder, an http(s) or s3 URL, or dvc+URL@REVISION#FOLDER."),
]
Categories = Annotated[list[str] | None, typer.Argument(help="Which categories; all by default.", show_default=False)]
PARAMS, DATA = Path("params.yaml"), Path("data")


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("httpx", "httpx2"):  # one line a request is no log, and signed URLs belong in none
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"effimini: {error}\n")
        sys.exit(2)


def _load_project_params(path: Path) -> Params:
    """Read the parameters, and where they are the project's, see that dvc.yaml is of them."""
    settings = load_params(path)
    if path == PARAMS:
        dvc.check_dvc_yaml(settings)
    return settings


def _run(stage: Callable[[str, Params, Path], Any], category: str, params: Path, table: Path, as_json: bool) -> Any:
    """Run a stage on one category of the data that `table` is part of, say what it did, and return its result."""
    settings = _load_project_params(params)
    if category not in settings.source.categories:
        known = ", ".join(settings.source.categories)
        raise UserError(f"{category} is not in source.categories ({known}); name one of them, or add it there")
    result = stage(category, settings, table.parent)
    _report(table / category / "report.json", as_json)
    return result


def _report(path: Path, as_json: bool) -> None:
    """Say what a stage did, from its report: rows in, out and dropped on stderr; the whole report with --json."""
    report = json.loads(path.read_text(encoding="utf-8"))
    for table, funnel in report["tables"].items():
        dropped = ", ".join(f"{reason} {count}" for reason, count in funnel["dropped"].items())
        name = " ".join(filter(None, [report["stage"], report.get("category"), table]))
        logging.info(
            "%s: %d rows in, %d out%s",
            name,
            funnel["rows_in"],
            funnel["rows_out"],
            dropped and f" ({dropped})",
        )
    if as_json:
        typer.echo(json.dumps(report))


@app.command()
def categories(
    hub: Annotated[
        bool, typer.Option("--hub", help="List the hub's newest commit, whatever the parameters say.")
    ] = False,
    count: Annotated[
        bool, typer.Option("--count", help="Count items in the footers of the metadata's parquet.")
    ] = False,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """List the categories that the source has, with sizes, and counts where they are known.

    In: the source of params.yaml; the reports in data/raw. Out: a table. Examples: `effimini categories`,
    `effimini categories --hub --count`
    """
    from prep import categories as stage

    content = stage.of_hub(count) if hub else stage.of_source(load_params(params).source, data, count)
    _show(content, stage.category_table, as_json)


@app.command()
def preset(
    name: Annotated[str, typer.Argument(help="One of the files in params/, without its extension.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite values that are of no preset.")] = False,
) -> None:
    """Write params.yaml from a preset, and what follows from it into dvc.yaml.

    In: params/base.yaml, params/NAME.yaml. Out: params.yaml, dvc.yaml. Example: `effimini preset paper`
    """
    presets.write_preset(name, PARAMS, overwrite=force)
    pipeline()


@app.command()
def pipeline(params: ParamsFile = PARAMS) -> None:
    """Write into dvc.yaml what follows from the parameters, after a change of categories, source or encoders.

    In: params.yaml. Out: dvc.yaml, in which the stages over all categories depend on the folders of just these, and
    others on a local encoder or on the demo catalogue. Example: `effimini pipeline`
    """
    settings = load_params(params)
    changed = dvc.update_dvc_yaml(settings)
    dvc.warn_of_strays(DATA, dvc.TABLE_FOLDERS, settings.source.categories)
    logging.info("dvc.yaml %s; run `dvc repro`", "is written" if changed else "is up to date")


@app.command()
def download(category: Category, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Turn a category's raw files into typed tables.

    In: the source's raw files. Out: data/raw/CATEGORY. Example: `effimini download Demo_Toys`
    """
    from prep import download as stage

    _run(stage.download, category, params, data / "raw", as_json)


@app.command()
def join(category: Category, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Join a category's reviews to its items.

    In: data/raw/CATEGORY. Out: data/items/CATEGORY. Example: `effimini join Demo_Toys`
    """
    from prep import join as stage

    _run(stage.join, category, params, data / "items", as_json)


@app.command()
def groups(params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Find which items are the same product, over all categories.

    In: data/items. Out: data/groups. Example: `effimini groups`
    """
    from prep import groups as stage

    stage.groups(_load_project_params(params), data)
    _report(data / "groups" / "report.json", as_json)


@app.command()
def sample(category: Category, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Filter a category, and draw its splits and the bands of the fraction.

    In: data/items/CATEGORY, data/groups/CATEGORY. Out: data/sample/CATEGORY.
    Example: `effimini sample Demo_Toys`
    """
    from prep import sample as stage

    _run(stage.sample, category, params, data / "sample", as_json)
    found = json.loads((data / "sample" / category / "report.json").read_text(encoding="utf-8"))["largest_deviation"]
    logging.info(
        "largest deviation of a training share from its population: %.2f %% by rating, %.2f %% by rating count",
        100 * found["average_rating"],
        100 * found["rating_number"],
    )


@app.command()
def fetch(
    category: Category,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
    retry: Annotated[
        str, typer.Option(help="Outcomes to ask again, with commas between them: these, and no others.")
    ] = "",
) -> None:
    """Fetch the images of a category's sample that are not in the local store yet.

    In: data/sample/CATEGORY. Out: data/images/CATEGORY. What may pass (a timeout, a refusal) is asked again by each
    run. `dvc repro` runs it only where something changed; to ask again, run it by hand, then `dvc commit --force
    fetch@CATEGORY` and `dvc repro`. Examples: `effimini fetch Demo_Toys`, `effimini fetch Demo_Toys --retry
    gone,timeout`
    """
    from shards import fetch as stage

    again = frozenset(filter(None, retry.split(","))) or stage.TRANSIENT
    if unknown := sorted(again - stage.FAILURES):
        raise UserError(f"--retry {unknown[0]}: no outcome of an image; they are {', '.join(sorted(stage.FAILURES))}")
    _run(partial(stage.fetch, retry=again), category, params, data / "images", as_json)
    if Path(".dvc").is_dir() and "DVC_STAGE" not in os.environ:  # which DVC sets for what it runs
        logging.info("run `dvc commit --force fetch@%s` to keep these images, then `dvc repro`", category)


@app.command()
def shard(category: Category, params: ParamsFile = PARAMS, data: Data = DATA, as_json: Json = False) -> None:
    """Write a category's sample and images as WebDataset tars with indexes and a manifest.

    In: data/sample/CATEGORY, data/images/CATEGORY. Out: data/shards/CATEGORY. Example: `effimini shard Demo_Toys`
    """
    from shards import shard as stage

    made = _run(stage.shard, category, params, data / "shards", as_json)
    logging.info("%d tars made, the others were in the local store", made)


@app.command()
def weights(params: ParamsFile = PARAMS, data: Data = DATA) -> None:
    """Compute the constant that turns a rating count into a sample's weight.

    In: data/sample. Out: data/weights.json. Example: `effimini weights`
    """
    from prep import weights as stage

    stage.weights(_load_project_params(params), data)


@app.command()
def train(params: ParamsFile = PARAMS, data: Data = DATA, shards: ShardsAt = "") -> None:
    """Train the model, going on where an interrupted run stopped.

    In: data/shards, data/weights.json. Out: models, results/train. Examples: `effimini train`,
    `torchrun --nproc-per-node 2 -m effimini.cli train`
    """
    from effimini import train as stage

    stage.train(_load_project_params(params), shards or data / "shards", None if shards else data / "weights.json")


@app.command()
def evaluate(params: ParamsFile = PARAMS, data: Data = DATA, shards: ShardsAt = "") -> None:
    """Measure the best model and the baselines on the test split, and write the report.

    In: models/best, data/shards. Out: data/predictions, results. Example: `effimini evaluate`
    """
    from effimini import evaluate as stage

    stage.evaluate(_load_project_params(params), data, shards=shards or None)


@app.command()
def validate(
    table: Annotated[str, typer.Argument(help="A table, or its folder; without it every table that is here.")] = "",
    params: ParamsFile = PARAMS,
    data: Data = DATA,
) -> None:
    """Check a table of all categories, and write the gate that the next stage waits for.

    In: data/TABLE, and what it was made from where that is there. Out: data/gates/TABLE, and the Data Docs
    results/validation/TABLE.html. Examples: `effimini validate sample`, `effimini validate team/data/shards`
    """
    from validation import validate as stage

    settings, place = _load_project_params(params), Path(table)
    if len(place.parts) > 1:
        table, data = place.stem, place.parent
    for name in [table] if table else stage.present_tables(data):
        stage.validate(name, settings, data)
        pages = data.parent / "results/validation"
        logging.info("%s passed; %s shows every expectation", name, pages / f"{name}.html")


@app.command()
def accept(data: Data = DATA) -> None:
    """Take the columns' profiles of this run as those that later runs are compared with.

    In: data/profiles. Out: accepted.csv, to be committed. Example: `effimini accept`
    """
    from validation import validate as stage

    logging.info("%s is written; commit it", stage.accept(data))


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="A model folder, models/best for example, or an exported one.")],
    input_csv: Annotated[Path, typer.Option("--input", help="The items, in the challenge's format.")],
    output_csv: Annotated[Path, typer.Option("--output", help="Where the scores go.")],
    images: Annotated[Path, typer.Option(help="The folder that image_paths are relative to.")] = Path("images"),
) -> None:
    """Score the items of a CSV file.

    In: parent_asin, main_category, title, features, description, image_paths. Out: item_id, score, params, flops.
    Example: `effimini predict --model models/best --input items.csv --images images --output scores.csv`
    """
    from effimini import predict as stage

    stage.predict(model, input_csv, images, output_csv)


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="A model folder, models/best for example.")],
    output: Annotated[Path, typer.Option(help="The folder to make; an earlier export there is replaced.")],
) -> None:
    """Write a model as ONNX, which `effimini predict` runs without torch's network; needs `effimini[onnx]`.

    In: a model folder. Out: model.onnx with the model's configuration and tokenizer, its scores compared with torch's.
    Example: `effimini export --model models/best --output build/onnx`
    """
    from effimini import export as stage

    stage.export(model, output)


@app.command()
def lint(
    shards: Annotated[str, typer.Argument(help="A folder of shards, or a URL of one.")] = "data/shards",
    categories: Categories = None,
    params: ParamsFile = PARAMS,
    as_json: Json = False,
) -> None:
    """Read everything of shards, and say what is wrong and where.

    In: data/shards, or where they are. Out: a line a fault on stdout, and exit code 1 if there is one.
    Example: `effimini lint data/shards`
    """
    from shards import lint as stage

    violations: list[stage.Violation] = []
    tars = samples = 0
    for found in stage.lint(_open_location(shards, params), _chosen(shards, categories, params)):
        violations += found.violations
        tars, samples = tars + found.shards, samples + found.samples
        for fault in found.violations if not as_json else ():
            typer.echo(f"{fault.where}: {fault.what}")
    if as_json:
        typer.echo(json.dumps({"violations": [f._asdict() for f in violations], "shards": tars, "samples": samples}))
    logging.info("%d faults in %d shards, %d samples read", len(violations), tars, samples)
    if violations:
        raise typer.Exit(1)


@app.command()
def info(
    shards: Annotated[str, typer.Argument(help="A folder of shards, or a URL of one.", show_default=False)] = "",
    categories: Categories = None,
    params: ParamsFile = PARAMS,
    as_json: Json = False,
) -> None:
    """Say what shards hold; without an argument, what the model costs: parameters and FLOPs by part, C and E.

    In: a folder of shards, or params.yaml. Out: a table. Examples: `effimini info data/shards`,
    `effimini info --params params/paper.yaml`
    """
    if shards:
        from shards import summary

        chosen = _chosen(shards, categories, params)
        _show(summary.summarise(_open_location(shards, params), chosen), summary.summary_table, as_json)
        return
    from effimini import info as stage

    _show(stage.info(load_params(params)), stage.info_table, as_json)


@app.command()
def card(
    shards: Annotated[str, typer.Argument(help="A folder of shards, or a URL of one.")] = "data/shards",
    categories: Categories = None,
    params: ParamsFile = PARAMS,
) -> None:
    """Print one dataset card for several categories, to be the README.md at the root of a hub repository.

    In: a folder of shards. Out: Markdown on stdout. Example: `effimini card > data/shards/README.md`
    """
    from shards import card as stage

    typer.echo(stage.of_location(_open_location(shards, params), _chosen(shards, categories, params)), nl=False)


@app.command()
def preview(
    shards: Annotated[str, typer.Argument(help="A folder of shards, or a URL of one.")] = "data/shards",
    categories: Categories = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Of which split.")] = "train",
    samples: Annotated[int, typer.Option(min=1, max=1000, help="How many, as many of each category.")] = 48,
    seed: Annotated[int, typer.Option(help="Another seed, other samples.")] = 0,
    weights: Annotated[str, typer.Option(help="By default the weights.json beside the shards, if there is one.")] = "",
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("preview.html"),
    params: ParamsFile = PARAMS,
) -> None:
    """Show samples of shards on one page: image, text, label, counts, weight, and how the image came.

    In: a folder of shards; the images' tables beside it, if they are there. Out: an HTML file that needs no network.
    Example: `effimini preview data/shards Demo_Toys --samples 20`
    """
    from prep.core import files
    from shards import preview as stage

    location, of = _open_location(shards, params), _chosen(shards, None, params)
    html = stage.preview_page(location, categories or of, split, samples, seed, Path(weights) if weights else None, of)
    with files.atomic_write(output) as partial:
        partial.write_text(html, encoding="utf-8")
    typer.echo(f"Preview: {output.resolve()}")


@app.command()
def diff(
    old: Annotated[
        str, typer.Argument(metavar="REV1", help="A git tag, branch or commit; or a folder or URL of shards.")
    ],
    new: Annotated[str, typer.Argument(metavar="REV2", help="The version to compare with it.")],
    categories: Categories = None,
    repo: Annotated[str, typer.Option(help="The project that the revisions are of: a path or a git URL.")] = ".",
    folder: Annotated[str, typer.Option(help="Where the shards are in it.")] = "data/shards",
    params: ParamsFile = PARAMS,
    as_json: Json = False,
) -> None:
    """Say what changed between two versions of shards: parameters, items, shards, labels.

    In: two revisions, whose files are in the DVC cache or the remote. Out: tables. Examples: `effimini diff v1 v2`,
    `effimini diff v1 data/shards`
    """
    from shards import diff as stage
    from shards import diff_table

    root = Path(repo).resolve() if Path(repo).exists() else repo
    given = [(name, Path(name).is_dir() or "://" in name or name.startswith("dvc+")) for name in (old, new)]
    before, after = (_open_location(name if whole else f"dvc+{root}@{name}#{folder}", params) for name, whole in given)
    result = msgspec.structs.replace(stage.compare(before, after, categories), old=old, new=new)
    _show(result, diff_table.comparison_table, as_json)


@app.command()
def results(as_json: Json = False) -> None:
    """Print the metrics of the last evaluation and the path of its report.

    In: results/evaluation.json. Out: a table. Example: `effimini results`
    """
    from effimini import report as stage

    _show(stage.read_evaluation(Path("results/evaluation.json")), stage.metrics_table, as_json)
    if not as_json:
        typer.echo(f"Report: {Path('results/report.html').resolve()}")


def _open_location(url: str, params: Path) -> "ShardLocation":
    from shards.location import ShardLocation

    stream = load_params(params).stream
    return ShardLocation(url, stream.cache_bytes, stream.connections)


def _chosen(url: str, categories: list[str] | None, params: Path) -> list[str] | None:
    """Return which categories of shards are meant: of the project's own, those of its parameters; else None is all."""
    if categories or Path(url).absolute() != (DATA / "shards").absolute():
        return categories
    chosen = list(load_params(params).source.categories)
    dvc.warn_of_strays(DATA, ["shards"], chosen)
    return chosen


def _show(content: Any, table: Any, as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(content)))
    else:
        Console().print(table(content))


if __name__ == "__main__":
    main()
