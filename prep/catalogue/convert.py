"""Convert a table to the raw layout of the dataset, in the local store.

Input: ``source`` with kind table.
Output: a folder for each category of the table with ``raw/meta_categories/meta_<category>.jsonl``, and ``images/`` if
the table contains images.
Guarantees: every row of the table is a line, in order; one that cannot be read is a line that `prep.records` rejects.
The same table and parameters give the same bytes. A table is converted once, and again when it has changed.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from prep.catalogue import mapping
from prep.catalogue.rows import Row, Table, Unreadable, check_columns, open_table
from prep.core import files, locks, progress
from prep.core.errors import UserError
from prep.core.params import SourceParams, TableParams
from prep.source import PATHS

FORMAT = 1  # increase it when the bytes of a converted table change
_REPORT = "report.json"
_MOST = 1000  # categories
_NAMED = 20  # categories in a message

log = logging.getLogger(__name__)


class Converted(NamedTuple):
    """A category of a converted table."""

    folder: Path
    images: str  # where its images are: a folder, or "" if they are URLs


class _Report(msgspec.Struct):
    rows: dict[str, int]  # by category
    images: dict[str, int]  # by kind: url, path, bytes
    folder: str  # that paths are relative to


def convert(source: SourceParams, category: str) -> Converted:
    """Return a category of the table, after converting the table if that has not been done.

    Raises:
        UserError: the table cannot be read, or has no rows of the category.
    """
    root, table = place_of(source, category)
    if not files.intact(root / category):
        with locks.hold(root.with_suffix(".made")):
            report = _report(root)
            known = report is not None and category not in report.rows
            if not known and not files.intact(root / category):  # else another run made it, and reads it
                with files.atomic_folder(root) as out:
                    _write(table, source, _only(source, category), out)
    report = _report(root)
    assert report is not None
    if category not in report.rows:
        known_rows = ", ".join(f"{name} ({rows})" for name, rows in list(report.rows.items())[:_NAMED])
        raise UserError(
            f"{source.location} has no rows of the category {category}; it has {known_rows}; correct source.categories"
        )
    images = images_of(root, category)
    if "://" in images:
        raise UserError(
            f"the images of {source.location} are paths beside a table elsewhere; set source.table.image_folder to a "
            "folder of this machine"
        )
    return Converted(root / category, images)


def place_of(source: SourceParams, category: str) -> tuple[Path, Table]:
    """Return the folder that a table is converted to, which may not exist yet, and the table.

    Raises:
        UserError: the table cannot be read.
    """
    table = open_table(source.location)
    depends_on = [FORMAT, source.location, source.table, table.version, _only(source, category)]
    return files.store() / "table" / files.fingerprint(depends_on)[:16], table


def _only(source: SourceParams, category: str) -> str:
    """Return the category of all rows, "" if a column says which each row has."""
    return "" if "category" in mapping.columns_of(source.table) else category


def images_of(root: Path, category: str) -> str:
    """Return where the images of a converted table are, "" if they are URLs, or if it is not converted yet."""
    report = _report(root)
    if report is None:
        return ""
    kind = max(report.images, key=lambda name: report.images[name], default="url")
    return {"url": "", "path": report.folder, "bytes": str(root / category / "images")}[kind]


def _report(root: Path) -> _Report | None:
    path = root / _REPORT
    return msgspec.json.decode(path.read_bytes(), type=_Report) if path.exists() else None


def _write(table: Table, source: SourceParams, only: str, out: Path) -> None:
    """Write all categories of a table; all rows are of the category `only`, unless it is ""."""
    rows: Counter[str] = Counter()
    images: Counter[str] = Counter()
    base = source.table.image_folder or table.folder
    with ExitStack() as opened:
        lines: dict[str, BinaryIO] = {}
        name = only
        (column,) = mapping.columns_of(source.table)["category"][:1] if not only else ("",)
        for row in progress.bar(table_rows(table, source), source.location, total=0):
            if not only and isinstance(row, dict):  # one that cannot be read is beside the row before it
                name = mapping.category_name(row.get(column))
            if (name := name or "unreadable") not in lines:
                if len(lines) == _MOST:
                    raise UserError(f"the column {column} has more than {_MOST} values; map category to another column")
                path = out / name / PATHS["items"].format(name)
                path.parent.mkdir(parents=True)
                lines[name] = opened.enter_context(path.open("wb"))
            lines[name].write(line(row, source.table, partial(_keep, out / name / "images", base, images)))
            rows[name] += 1
    for name in rows:
        files.seal(out / name, files.digest(out / name))
    report = _Report(dict(sorted(rows.items())), dict(sorted(images.items())), base)
    (out / _REPORT).write_bytes(msgspec.json.encode(report))
    log.info("%s: %d rows", source.location, rows.total())


def table_rows(table: Table, source: SourceParams) -> Iterator[Row | Unreadable]:
    """Yield the rows of a table, with the columns that are mapped.

    Raises:
        UserError: it lacks one, or cannot be read.
    """
    wanted = dict.fromkeys(column for columns in mapping.columns_of(source.table).values() for column in columns)
    check_columns(source.location, table.columns, list(wanted))
    return table.rows(list(wanted))


def line(row: Row | Unreadable, params: TableParams, image: Callable[[Sequence[object]], str | None]) -> bytes:
    """Return a row as a line of the raw layout; one that cannot be read as a JSON text, which is no item."""
    try:
        content = row.text if isinstance(row, Unreadable) else mapping.record(row, params, image)
        return msgspec.json.encode(content) + b"\n"
    except UnicodeEncodeError:  # lone surrogates
        return msgspec.json.encode(ascii(row)) + b"\n"


def _keep(folder: Path, base: str, kinds: Counter[str], found: Sequence[object]) -> str | None:
    """Keep the content of an item's image, count its kind, and return its URL."""
    chosen = mapping.chosen_image(found, base)
    if chosen is None:
        return None
    if isinstance(chosen, bytes):
        kinds["bytes"] += 1
        name = hashlib.sha256(chosen).hexdigest()
        if not (folder / name).exists():
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(chosen)
        return mapping.HOST + name
    url = mapping.image_name(chosen, base)
    kinds["path" if url.startswith(mapping.HOST) else "url"] += 1
    return url
