"""Read the rows of a table: CSV, TSV, JSON lines, parquet, or a dataset of the Hugging Face hub or of its library.

Input: a file, a glob or an fsspec URL of files in one format (those of text also compressed), a folder that `datasets`
can load, or ``hf://datasets/NAME@REVISION``.
Output: the names of its columns, and its rows as dictionaries.
Guarantees: rows are in the order of the files' names and of their lines; a cell of text that is empty, or a word for an
absent value (`prep.core.text.ABSENT`), is None. A row that cannot be read is yielded as `Unreadable`. Memory is bounded
by a batch of rows.
"""

import csv
import glob
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import OpenFile, url_to_fs

from prep.core.errors import UserError, first_sentence
from prep.core.text import present

Row = dict[str, Any]

FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
_ON_HUB = re.compile(r"hf://datasets/(?P<name>[^/@]+(/[^/@]+)?)@(?P<revision>[^/@]+)")
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz"}
_SEPARATORS = (",", "\t", ";", "|")
_ROWS = 1000  # rows in memory at once
_PEEKED = 100  # rows whose keys are the columns of JSON lines


class Unreadable(NamedTuple):
    """A row that is not valid in its format."""

    text: str


class Table(NamedTuple):
    """A table that can be read any number of times."""

    columns: list[str]
    rows: Callable[[Sequence[str]], Iterator[Row | Unreadable]]  # of these columns
    folder: str  # that paths in its cells are relative to
    version: object  # changes when the content does; JSON


def open_table(location: str) -> Table:
    """Open a table.

    Args:
        location: ``source.location``.

    Raises:
        UserError: it does not exist, cannot be read, or is of another format.
    """
    with _readable(location):
        if (hub := _ON_HUB.fullmatch(location)) or ("://" not in location and Path(location).is_dir()):
            return _dataset(location, hub)
        system, path = url_to_fs(location)
        paths = sorted(system.glob(path)) if glob.has_magic(path) and not system.exists(path) else [path]
        if not paths:
            raise UserError(f"source.location {location} matches no file; check it")
        found = [OpenFile(system, path) for path in paths]
        formats = {_format(file.path, location) for file in found}
        if len(formats) > 1:
            raise UserError(f"source.location {location} has files of several formats; name those of one format")
        opened = {"csv": _csv, "json": _json, "parquet": _parquet}[formats.pop()](found)
        version = [[file.path, _version(system, file.path)] for file in found]
        folder = str(PurePosixPath(found[0].path).parent) if "://" not in location else location.rpartition("/")[0]
        return Table(opened.columns, partial(_named_rows, location, opened.rows), folder, version)


class _Opened(NamedTuple):
    columns: list[str]
    rows: Callable[[Sequence[str]], Iterator[Row | Unreadable]]


def _named_rows(
    location: str, rows: Callable[[Sequence[str]], Iterator[Row | Unreadable]], columns: Sequence[str]
) -> Iterator[Row | Unreadable]:
    with _readable(location):
        for row in rows(columns):
            if isinstance(row, dict):
                yield {name: (present(cell) or None) if isinstance(cell, str) else cell for name, cell in row.items()}
            else:
                yield row


@contextmanager
def _readable(location: str) -> Iterator[None]:
    """Turn what storages and formats raise into an error message."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"source.location {location} does not exist; check it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{location} is not UTF-8 at byte {error.start} of a block; save it as UTF-8") from None
    except Exception as error:  # each storage has errors of its own, for example for missing credentials
        what = f"{type(error).__name__}: {first_sentence(error)}"
        raise UserError(f"source.location {location} cannot be read ({what}); check it, and your access") from error


def _format(path: str, location: str) -> str:
    name = PurePosixPath(path)
    suffix = PurePosixPath(name.stem).suffix if name.suffix in _COMPRESSED else name.suffix
    if (found := FORMATS.get(suffix.lower())) is None or (found == "parquet" and name.suffix in _COMPRESSED):
        raise UserError(
            f"source.location {location} names {name.name}, whose format is unknown; name a file that ends in "
            f"{', '.join(FORMATS)}, text also with {', '.join(sorted(_COMPRESSED))}"
        )
    return found


def _version(system: fsspec.AbstractFileSystem, path: str) -> object:
    about = system.info(path)
    known = [about.get(name) for name in ("size", "mtime", "ETag", "etag", "LastModified", "last_modified")]
    return [str(value) for value in known if value is not None]


def _text(file: OpenFile) -> OpenFile:
    return OpenFile(file.fs, file.path, "rt", compression="infer", encoding="utf-8-sig", newline="")


def _csv(found: Sequence[OpenFile]) -> _Opened:
    csv.field_size_limit(sys.maxsize)  # descriptions may be longer than the default limit

    def lines(file: OpenFile) -> Iterator[list[str]]:
        with _text(file) as opened:
            header = opened.readline()
            separator = max(_SEPARATORS, key=lambda one: len(next(csv.reader([header], delimiter=one), [])))
            yield from csv.reader(chain([header], opened), delimiter=separator)

    def rows(columns: Sequence[str]) -> Iterator[Row | Unreadable]:
        for file in found:
            records = lines(file)
            names = next(records, [])
            check_columns(file.path, names, columns)
            for cells in records:
                if len(cells) == len(names):
                    yield dict(zip(names, cells, strict=True))
                elif cells:  # else an empty line
                    yield Unreadable(json.dumps(cells, ensure_ascii=False))

    names = next(lines(found[0]), [])
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{found[0].path} has several columns {twice[0]!r}; give each column its own name")
    return _Opened(names, rows)


def _json(found: Sequence[OpenFile]) -> _Opened:
    def rows(_: Sequence[str]) -> Iterator[Row | Unreadable]:
        for file in found:
            with _text(file) as opened:
                for line in opened:
                    if line.strip():
                        yield _json_row(line, file.path)

    keys = dict.fromkeys(chain.from_iterable(row for row in islice(rows(()), _PEEKED) if isinstance(row, dict)))
    return _Opened(list(keys), rows)


def _json_row(line: str, path: str) -> Row | Unreadable:
    try:
        row = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        if re.match(r"\s*\[\s*\{?\s*$", line):
            raise UserError(f"{path} is a JSON array; write one object per line") from None
        return Unreadable(line)
    if isinstance(row, list) and row and isinstance(row[0], dict):
        raise UserError(f"{path} is a JSON array; write one object per line")
    if not isinstance(row, dict):
        return Unreadable(line)
    return row


def _parquet(found: Sequence[OpenFile]) -> _Opened:
    def rows(columns: Sequence[str]) -> Iterator[Row | Unreadable]:
        for file in found:
            with file as opened, pq.ParquetFile(opened) as table:
                check_columns(file.path, table.schema_arrow.names, columns)
                for batch in table.iter_batches(_ROWS, columns=list(columns)):
                    yield from batch.to_pylist()

    with found[0] as opened, pq.ParquetFile(opened) as table:
        return _Opened(table.schema_arrow.names, rows)


def check_columns(path: str, names: Sequence[str], columns: Sequence[str]) -> None:
    """Check that a file or a table has the columns that are mapped.

    Raises:
        UserError: it lacks one.
    """
    if missing := [name for name in columns if name not in names]:
        raise UserError(
            f"{path} has no column {missing[0]!r}, which source.table.columns names; its columns are {', '.join(names)}"
        )


def _dataset(location: str, hub: re.Match[str] | None) -> Table:
    """Open a dataset: of the hub, or in a folder, written by `datasets` or of files that it can load."""
    import datasets  # noqa: PLC0415 -- takes seconds, which files need not spend

    folder = Path(location)
    if hub:
        from prep.hub import is_reachable  # noqa: PLC0415 -- takes half a second

        if not is_reachable():
            raise UserError(f"source.location {location} is on the hub, which does not respond; check the network")
        loaded = datasets.load_dataset(hub["name"], revision=hub["revision"], streaming=True)
        version: object = hub["revision"]
    elif any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        loaded = datasets.load_from_disk(location)
        version = [sorted((str(p.relative_to(folder)), str(p.stat().st_mtime)) for p in folder.rglob("*.arrow"))]
    else:
        loaded = datasets.load_dataset(location, streaming=True)
        version = [sorted((str(p.relative_to(folder)), str(p.stat().st_mtime)) for p in folder.rglob("*"))]
    splits = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    names = list(splits[0].column_names)

    def rows(columns: Sequence[str]) -> Iterator[Row | Unreadable]:
        for split in splits:
            check_columns(location, split.column_names, columns)
            chosen = split.select_columns(list(columns))
            for name, feature in chosen.features.items():
                if isinstance(feature, datasets.Image):
                    chosen = chosen.cast_column(name, datasets.Image(decode=False))
            for batch in chosen.with_format("arrow").iter(_ROWS):
                table = batch if isinstance(batch, pa.Table) else pa.table(batch)
                yield from table.to_pylist()

    return Table(names, partial(_named_rows, location, rows), location, version)
