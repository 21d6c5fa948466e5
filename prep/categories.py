"""List the categories of a source with their sizes, and their row counts where known.

Input: the source, and the reports of earlier download stages.
Output: a list, and a table to print.
Guarantees: no data file is read, except the parquet footers of the metadata if `count` is set.
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

from prep import hub, source, variants
from prep.core import files
from prep.core.errors import UserError, first_sentence
from prep.core.params import DemoParams, SourceParams, TableParams
from prep.core.tables.raw import Kind
from prep.metadata import FOLDER, parquet_files

_PARQUET = re.compile(FOLDER.format(r"(\w+)") + r"/full-.*\.parquet")
_RAW = {
    table: re.compile(re.escape(path.removesuffix(variants.PLAIN)).replace(r"\{\}", r"(\w+)") + r"(\.[\w.]+)")
    for table, path in source.PATHS.items()
}


class Category(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and row counts of a category; None where unknown."""

    category: str
    metadata_bytes: int | None
    review_bytes: int | None
    items: int | None
    reviews: int | None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The categories of a source."""

    kind: str
    revision: str  # ``source.revision`` if the source is the hub, else ""
    newest: str  # latest commit if the source is the hub, else ""
    chosen: list[str]  # ``source.categories``
    categories: list[Category]


def of_hub(count: bool = False) -> Listing:
    """Return the categories in the hub's latest commit, independent of the parameters; see `of_source`."""
    settings = SourceParams(
        kind="hub", categories=("All_Beauty",), location="", revision=hub.newest_commit(), metadata="jsonl",
        reviews=True, keep_raw=False, demo=DemoParams(items=20, seed=0),
        table=TableParams(columns={}, rating_scale=(1, 5), image_folder=""),
    )  # fmt: skip
    return msgspec.structs.replace(of_source(settings, Path("data"), count), chosen=[])


def of_source(settings: SourceParams, data: Path, count: bool = False) -> Listing:
    """Return the categories of a source.

    Args:
        settings: the ``source`` section of the parameters.
        data: the folder of the stages' tables, whose download reports contain row counts.
        count: whether to count items from the parquet footers of the metadata.

    Raises:
        UserError: the source cannot be listed or read.
    """
    sizes = _file_sizes(settings)
    if not sizes:
        raise UserError(
            f"{settings.location or 'the source'} has no raw files of any category; check source.location and "
            "source.metadata"
        )
    rows = []
    for category in sorted({*sizes, *settings.categories}):
        reported = _reported_rows(data / "raw" / category / "report.json")
        has_items = "items" in sizes.get(category, {})
        rows.append(
            Category(
                category=category,
                metadata_bytes=sizes.get(category, {}).get("items"),
                review_bytes=sizes.get(category, {}).get("reviews"),
                items=_count_items(settings, category) if count and has_items else reported.get("items"),
                reviews=reported.get("reviews"),
            )
        )
    is_hub = settings.kind == "hub"
    return Listing(
        kind=settings.kind,
        revision=settings.revision if is_hub else "",
        newest=hub.newest_commit() if is_hub else "",
        chosen=list(settings.categories),
        categories=rows,
    )


def category_table(content: Listing) -> Table:
    """Return the result of `of_source` as a table to print."""
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
        shown.caption = f"latest commit {content.newest}" + (
            " (source.revision)" if same else f"; source.revision is {content.revision}"
        )
    return shown


def _file_sizes(settings: SourceParams) -> dict[str, dict[Kind, int]]:
    """Return the size in bytes of each category's files, by table, where they can be listed."""
    base = source.locate(settings, settings.categories[0])
    if settings.kind != "hub" and base.is_remote:  # an HTTP server cannot list folders
        return {
            category: {
                table: source.remote_file(settings, table, category)[1].size
                for table in source.PATHS
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
    for table, pattern in _RAW.items():
        if table == "reviews" or settings.metadata == "jsonl":
            raw = list_folder(settings, str(Path(source.PATHS[table]).parent))
            add(table, pattern, _preferred(pattern, raw))
    if settings.metadata == "parquet":
        for folder in list_folder(settings, ""):
            if re.fullmatch(FOLDER.format(r"\w+"), folder):
                add("items", _PARQUET, list_folder(settings, folder))
    return found


def _preferred(pattern: re.Pattern[str], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the files of a folder that are read: of several formats of a file, the preferred one."""
    matches = [match for match in map(pattern.fullmatch, sizes) if match and match[2] in variants.SUFFIXES]
    ranked = sorted(matches, key=lambda match: variants.SUFFIXES.index(match[2]), reverse=True)
    return {path: sizes[path] for path in {match[1]: match[0] for match in ranked}.values()}


def _hub_folder(settings: SourceParams, folder: str) -> dict[str, int]:
    return hub.listing(settings.revision, folder)


def _local_folder(settings: SourceParams, folder: str) -> dict[str, int]:
    bases = {Path(source.locate(settings, category).base): None for category in settings.categories}
    for base in bases:
        if not base.is_dir():
            raise UserError(f"source.location {base} is not a folder; check source.location")
    return {
        str(path.relative_to(base)): path.stat().st_size for base in bases for path in sorted((base / folder).glob("*"))
    }


def _reported_rows(report: Path) -> dict[str, int]:
    """Return the lines that the download stage counted, by table; empty if there is no report."""
    tables = files.read_json(report)["tables"] if report.exists() else {}
    return {name: funnel["rows_in"] for name, funnel in tables.items()}


def _count_items(settings: SourceParams, category: str) -> int:
    """Return the number of items of a category, from the footers of its parquet files."""
    total = 0
    for path in parquet_files(settings, category):
        system, name = fsspec.core.url_to_fs(path)
        try:
            with system.open(name, block_size=1 << 16) as file:  # small blocks, because only the footer is read
                total += pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError, httpx2.RequestError) as error:
            raise UserError(f"{path}: rows cannot be counted ({first_sentence(error)}); run without --count") from error
    return total
