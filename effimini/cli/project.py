"""Commands that set up a run, and look at what runs gave.

Input: ``params.yaml``, ``data/`` and ``results/``. Output: parameters, dvc.yaml, tables on stdout, pages. Guarantees:
only `remove` and `gc --force` take anything away.
"""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from effimini.cli.common import (
    DATA,
    PARAMS,
    Data,
    Json,
    ParamsFile,
    ShardsAt,
    complete_preset,
    load_project_params,
    print_json,
    show,
)
from effimini.cli.program import app
from prep.core import files, presets
from prep.core import pipeline as dvc
from prep.core.errors import UserError, printable
from prep.core.params import load_params, read_yaml

PANEL = "The project and its runs"


@app.command(rich_help_panel=PANEL)
def preset(
    name: Annotated[
        str,
        typer.Argument(help="The name of a file in params/, without its extension.", autocompletion=complete_preset),
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


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
def plan(
    cores: Annotated[int, typer.Option(help="Plan for so many cores like those of this machine; 0: for its own.")] = 0,
    params: ParamsFile = PARAMS,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """Estimate what a run will take on this machine: time, memory, disk and network, for each stage.

    Reads a few rows of each category of the source, requests 256 images, and measures this machine for less than a
    minute. Warns if the disk or the memory is too small, with the parameter to change.

    Example: `effimini plan`
    """
    settings = load_params(params)
    from effimini.plan import plan as stage

    found = stage.plan(settings, data, cores)
    show(found, stage.plan_table, as_json)
    for warning in found.warnings:
        logging.warning("warning: %s", warning)


@app.command(rich_help_panel=PANEL)
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
    show(content, stage.category_table, as_json)


@app.command(rich_help_panel=PANEL)
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
    show(found, stage.inspection_table, as_json)
    if write:
        presets.write_yaml(content, params)
        logging.info("%s was written", params)
        if dvc.FILE.exists():
            pipeline(params)


@app.command(rich_help_panel=PANEL)
def accept(data: Data = DATA, as_json: Json = False) -> None:
    """Accept the column profiles of this run as the reference for the drift checks of later runs.

    Reads data/profiles; writes accepted.csv, which should be committed.

    Example: `effimini accept`
    """
    from validation import validate as stage

    accepted = stage.accept(data)
    logging.info("%s was written; commit it", accepted)
    if as_json:
        print_json({"output": str(accepted)})


@app.command(rich_help_panel=PANEL)
def results(as_json: Json = False) -> None:
    """Print the metrics of the last evaluation, how much noise in the labels explains, and the path of its report.

    Reads results/evaluation.json.

    Example: `effimini results`
    """
    path = Path("results/evaluation.json")
    files.read_json(path)  # an error if it is missing, before what takes long to import
    from effimini import report as stage

    show(stage.read_evaluation(path), stage.result_tables, as_json)
    if not as_json:
        typer.echo(f"Report: {Path('results/report.html').resolve()}")


@app.command(rich_help_panel=PANEL)
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
        print_json({"output": str(output), "compared": found.compared})
    else:
        typer.echo(f"Report: {output.resolve()}")


@app.command(rich_help_panel=PANEL)
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
    show(found, stage.compare_table, as_json)


@app.command(rich_help_panel=PANEL)
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

    settings = load_project_params(params)
    location, weights_file = shards or data / "shards", None if shards else data / "weights.json"
    precheck.shards(location, settings)
    from effimini import curve as stage

    found = stage.curve(settings, location, weights_file, output)
    show(found, stage.curve_table, as_json)
    if not as_json:
        typer.echo(f"Plot: {(output / 'curve.svg').resolve()}")


@app.command(rich_help_panel=PANEL)
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
        return print_json(done) if as_json else None
    holders = []
    for path, held in stage.holding(names, settings, data, [file] if file else []):
        holders.append({"file": str(path), "holds": held})
        if not as_json:
            typer.echo(printable(f"{path}: {held}"))
    if as_json:
        print_json({"items": len(names), "files": holders})
    logging.info("%d files hold one of %d items", len(holders), len(names))
    if holders:
        raise typer.Exit(1)
    return None


@app.command(rich_help_panel=PANEL)
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
    show(stage.gc(load_params(params), data, **options), stage.gc_table, as_json)
