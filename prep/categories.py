"""What a source has: its categories, with sizes, and counts where they are known.

In: the source, and the reports of the downloads made here. Out: a list, and its table. No data file is read,
except that with `count` the footers of the metadata's parquet are.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import fsspec
import httpx2
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from prep import hub, source
from prep.core import files
from prep.core.errors import UserError, first_sentence
from prep.core.params import DemoParams, SourceParams
from prep.core.tables.raw import Kind
from prep.metadata import FOLDER, parquet_files

_PARQUET = re.compile(FOLDER.format(r"(\w+)") + r"/full-.*\.parquet")
_JSONL = {table: re.compile(path.replace(".", r"\.").replace("{}", r"(\w+)")) for table, path in source.PATHS.items()}


class Category(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a category; None of what is not."""

    category: str
    metadata_bytes: int | None
    review_bytes: int | None
    items: int | None
    reviews: int | None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What a source has."""

    kind: str
    revision: str  # of the hub, else ""
    newest: str  # commit of the hub, else ""
    chosen: list[str]  # ``source.categories``
    categories: list[Category]


def of_hub(count: bool = False) -> Listing:
    """List the hub's newest commit, whatever the parameters say; arguments and result as `of_source`."""
    settings = SourceParams(
        kind="hub", categories=("All_Beauty",), location="", revision=hub.newest_commit(), metadata="jsonl",
        reviews=True, keep_raw=False, demo=DemoParams(items=20, seed=0),
    )  # fmt: skip
    return msgspec.structs.replace(of_source(settings, Path("data"), count), chosen=[])


def of_source(settings: SourceParams, data: Path, count: bool = False) -> Listing:
    """Return what a source has.

    Args:
        settings: the parameters' source.
        data: the folder of the stages' tables; what a download there counted is known.
        count: whether items are counted in the footers of the metadata's parquet.

    Raises:
        UserError: the source cannot be listed or read.
    """
    sizes = _file_sizes(settings)
    rows = []
    for category in sorted({*sizes, *settings.categories}):
        known = _counted(data / "raw" / category / "report.json")
        has_items = "items" in sizes.get(category, {})
        rows.append(
            Category(
                category=category,
                metadata_bytes=sizes.get(category, {}).get("items"),
                review_bytes=sizes.get(category, {}).get("reviews"),
                items=_known_rows(settings, category) if count and has_items else known.get("items"),
                reviews=known.get("reviews"),
            )
        )
    of_the_hub = settings.kind == "hub"
    return Listing(
        kind=settings.kind,
        revision=settings.revision if of_the_hub else "",
        newest=hub.newest_commit() if of_the_hub else "",
        chosen=list(settings.categories),
        categories=rows,
    )


def category_table(content: Listing) -> Table:
    """Return what `of_source` gave as a table to print."""
    shown = Table(title=f"source: {content.kind}")
    shown.add_column("category")
    for heading in ("metadata, MB", "reviews, MB", "items", "reviews"):
        shown.add_column(heading, justify="right")
    shown.add_column("chosen")
    for row in content.categories:
        shown.add_row(
            escape(row.category),
            *("" if size is None else f"{size / 1e6:,.1f}" for size in (row.metadata_bytes, row.review_bytes)),
            *("" if number is None else f"{number:,}" for number in (row.items, row.reviews)),
            "yes" if row.category in content.chosen else "",
        )
    if content.newest:
        same = content.revision == content.newest
        shown.caption = f"newest commit {content.newest}" + (
            ", the one read" if same else f"; source.revision is {content.revision}"
        )
    return shown


def _file_sizes(settings: SourceParams) -> dict[str, dict[Kind, int]]:
    """Return the bytes of each category's files by table, for what can be listed."""
    base = source.locate(settings, settings.categories[0])
    if settings.kind != "hub" and base.is_remote:  # a server has no listing
        return {
            category: {
                table: source.remote_file(settings, path.format(category)).size
                for table, path in source.PATHS.items()
                if table == "items" or settings.reviews
            }
            for category in settings.categories
        }
    found: dict[str, dict[Kind, int]] = {}

    def add(table: Kind, pattern: re.Pattern[str], sizes: Mapping[str, int]) -> None:
        for path, size in sizes.items():
            if match := pattern.fullmatch(path):
                of_category = found.setdefault(match[1], {})
                of_category[table] = of_category.get(table, 0) + size

    list_folder = _hub_folder if settings.kind == "hub" else _local_folder
    for table, pattern in _JSONL.items():
        if table == "reviews" or settings.metadata == "jsonl":
            add(table, pattern, list_folder(settings, str(Path(source.PATHS[table]).parent)))
    if settings.metadata == "parquet":
        for folder in list_folder(settings, ""):
            if re.fullmatch(FOLDER.format(r"\w+"), folder):
                add("items", _PARQUET, list_folder(settings, folder))
    return found


def _hub_folder(settings: SourceParams, folder: str) -> dict[str, int]:
    return hub.listing(settings.revision, folder)


def _local_folder(settings: SourceParams, folder: str) -> dict[str, int]:
    bases = {Path(source.locate(settings, category).base): None for category in settings.categories}
    return {
        str(path.relative_to(base)): path.stat().st_size for base in bases for path in sorted((base / folder).glob("*"))
    }


def _counted(report: Path) -> dict[str, int]:
    """Return the lines that a download counted, by table; nothing without one."""
    tables = files.read_json(report)["tables"] if report.exists() else {}
    return {name: funnel["rows_in"] for name, funnel in tables.items()}


def _known_rows(settings: SourceParams, category: str) -> int:
    """Count the items of a category in the footers of its parquet files."""
    total = 0
    for path in parquet_files(settings, category):
        system, name = fsspec.core.url_to_fs(path)
        try:
            with system.open(name, block_size=1 << 16) as file:  # a small one, since the footer alone is read
                total += pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError, httpx2.RequestError) as error:
            raise UserError(f"{path} cannot be counted ({first_sentence(error)}); run without --count") from error
    return total
