"""Commands that use, convert and serve a trained model.

Input: a model folder, an exported model or a name on the hub, and items. Output: scores, features, models, answers over
HTTP. Guarantees: what the user got wrong is an error before torch is imported.
"""

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from effimini.cli.common import (
    PARAMS,
    CategoriesArgument,
    Json,
    ParamsIfAny,
    ShardsAt,
    chosen_categories,
    open_location,
    print_json,
)
from effimini.cli.program import app
from prep.core.errors import UserError
from prep.core.params import load_params

PANEL = "Trained models"


@app.command(rich_help_panel=PANEL)
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
        print_json(written)


@app.command(rich_help_panel=PANEL)
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
        location = open_location(shards, params)
        chosen = chosen_categories(location, categories, params) or location.categories()
        precheck.manifests(location, chosen)
        from effimini import embed as stage

        written = stage.embed_shards(model, location, chosen, split, output)
    logging.info("%d items: %s", written.items, output)
    if as_json:
        print_json(written)


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
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
        print_json(exported)


@app.command("import", rich_help_panel=PANEL)
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
        print_json({"model": str(output), "parameters": parameters})
