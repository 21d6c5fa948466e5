"""What several commands share: options, reading the parameters, opening shards, printing results.

Input: arguments of the command line. Output: parameters and locations; results on stdout. Guarantees: texts that are
printed have no control characters.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from prep.core import pipeline as dvc
from prep.core import presets
from prep.core.errors import UserError, printable
from prep.core.params import Params, load_params

if TYPE_CHECKING:
    from shards.location import ShardLocation

PARAMS, DATA = Path("params.yaml"), Path("data")


def _complete_category(context: typer.Context, incomplete: str) -> list[str]:
    """Return the categories of the parameter file, for the shell; none without a valid file."""
    try:
        known = load_params(context.params.get("params") or PARAMS).source.categories
    except UserError:
        return []
    return [category for category in known if category.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """Return the presets that begin so, for the shell."""
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


def load_project_params(path: Path) -> Params:
    """Read the parameters; for the project's own file, check that dvc.yaml matches it."""
    settings = load_params(path)
    if path == PARAMS:
        dvc.check_dvc_yaml(settings)
    return settings


def load_params_of(category: str, path: Path) -> Params:
    """As `load_project_params`, and check that the parameters have a category."""
    settings = load_project_params(path)
    if category not in settings.source.categories:
        known = ", ".join(settings.source.categories)
        raise UserError(f"{category} is not in source.categories ({known}); name one of them, or add it there")
    return settings


def open_location(url: str, params: Path) -> "ShardLocation":
    """Open shards, with the cache and the connections of the parameter file if there is one."""
    from shards.location import ShardLocation

    if is_absent(params):
        return ShardLocation(url)
    stream = load_params(params).stream
    return ShardLocation(url, stream.cache_bytes, stream.connections)


def is_absent(params: Path) -> bool:
    """Return whether no parameter file is named and there is no params.yaml, as outside of a project."""
    return params == PARAMS and not params.exists()


def chosen_categories(location: "ShardLocation", categories: list[str] | None, params: Path) -> list[str] | None:
    """Return the categories to read: for the project's own shards those of params.yaml by default, else None (all)."""
    if not categories and is_absent(params):
        categories = location.categories()
        logging.info("there is no %s, so all categories are read: %s", params, ", ".join(categories))
    if categories or Path(location.url).absolute() != (DATA / "shards").absolute():
        return categories
    chosen = list(load_params(params).source.categories)
    dvc.warn_of_strays(DATA, ["shards"], chosen)
    return chosen


def show(content: Any, table: Any, as_json: bool) -> None:
    """Print a result: as JSON, or as what the function `table` makes of it for rich."""
    from rich.console import Console

    if as_json:
        print_json(content)
    else:
        Console().print(_Printable(table(content)))


def print_json(content: Any) -> None:
    """Print structs and plain values as JSON in ASCII; NaN, which JSON lacks, is null."""
    typer.echo(json.dumps(msgspec.json.decode(msgspec.json.encode(content))))


class _Printable:
    """What rich prints, without control characters in its texts."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.segment import Segment

        for text, style, control in console.render(self._content, options):
            yield Segment(text if control else printable_lines(text), style, control)


def printable_lines(text: str) -> str:
    """Return a text of several lines without control characters."""
    return "\n".join(map(printable, text.split("\n")))
