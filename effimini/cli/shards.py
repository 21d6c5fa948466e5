"""Commands that look into shards, compare them and publish them.

Input: a folder or URL of shards; ``params.yaml`` only if there is one. Output: tables on stdout, pages, uploads.
Guarantees: shards are never changed.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from effimini.cli.common import (
    DATA,
    PARAMS,
    CategoriesArgument,
    Data,
    Json,
    ParamsFile,
    ParamsIfAny,
    ShardsAt,
    chosen_categories,
    is_absent,
    open_location,
    print_json,
    show,
)
from effimini.cli.program import app
from prep.core import files
from prep.core.errors import UserError, printable
from prep.core.params import load_params

PANEL = "Shards"


@app.command(rich_help_panel=PANEL)
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

        location = open_location(shards, params)
        show(
            summary.summarise(location, chosen_categories(location, categories, params)), summary.summary_table, as_json
        )
        return
    if model is None and is_absent(params):
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
    show(found, stage.info_table, as_json)


@app.command(rich_help_panel=PANEL)
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

    location = open_location(shards, params)
    configured = None if categories and is_absent(params) else chosen_categories(location, None, params)
    weights_file = Path(weights) if weights else None
    html = stage.preview_page(
        location, categories or configured, split, samples, seed, weights_file, configured, predictions
    )
    with files.atomic_write(output) as partial:
        partial.write_text(html, encoding="utf-8")
    if as_json:
        print_json({"output": str(output)})
    else:
        typer.echo(f"Preview: {output.resolve()}")


@app.command(rich_help_panel=PANEL)
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
    location = open_location(shards, params)
    chosen = chosen_categories(location, categories, params)
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
        print_json({"violations": [f._asdict() for f in violations], "shards": tars, "samples": samples})
    logging.info("%d violations in %d shards, %d samples read", len(violations), tars, samples)
    if violations:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
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

    location = open_location(shards, params)
    typer.echo(stage.of_location(location, chosen_categories(location, categories, params)), nl=False)


@app.command(rich_help_panel=PANEL)
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
    before, after = (open_location(url, params) for url in urls)
    result = msgspec.structs.replace(stage.compare(before, after, categories), old=old, new=new)
    show(result, diff_table.comparison_table, as_json)


@app.command(rich_help_panel=PANEL)
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

        location = open_location(shards or str(DATA / "shards"), params)
        commit = stage.publish(
            location,
            chosen_categories(location, categories, params) or location.categories(),
            name,
            licence,
            content=not without_content,
            private=private,
            branch=revision or None,
        )
    from shards import hub

    url = hub.page(name, "model" if model else "dataset", revision or "main")
    if as_json:
        print_json({"repository": name, "url": url, "commit": commit})
    else:
        typer.echo(f"Published: {url} (commit {commit})")


@app.command(rich_help_panel=PANEL)
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
        print_json(found)
    else:
        typer.echo("\n".join(map(printable, found.ids)))
    logging.info(
        "epoch %d, step %d (step %d of the run): %d samples%s",
        *(found.epoch, found.step, found.step_of_run, len(found.ids)),
        ", left out by train.skip" if found.skipped else "",
    )


@app.command(rich_help_panel=PANEL)
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
    show(found, stage.place_table, as_json)
    if not found:
        logging.info("no step of these epochs reads %s: its category weighs less than 1 in train.mixture", item)
