"""What a source contains: the sizes of its files, and rows estimated from a few rows of each category.

Input: the parameters and the source. Output: a `CategorySurvey` for each category. Guarantees: of each JSONL file at
most `PIECES` pieces of `_PIECE` bytes are read, at equal distances; of a compressed one the beginning; of the hub's
parquet files the footers and one batch.
"""

import dataclasses
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import fsspec
import httpx2
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from prep import hub, metadata, ranges, records, source, variants
from prep.categories import Category, of_source
from prep.core import progress
from prep.core.errors import UserError, first_sentence
from prep.core.params import Params, SourceParams
from prep.core.retry import RetryPolicy, TransientError
from prep.core.tables.raw import Kind
from prep.sample import SampleRow, usable_rows

PIECES = 4
_PIECE: dict[Kind, int] = {"items": 1 << 18, "reviews": 1 << 15}  # bytes
_TIMED = 16 << 20  # bytes that are read to measure the rate of a server
_READERS = 8  # categories that are read at the same time
_POLICY = RetryPolicy(max_attempts=6, max_wait=10)


class CategorySurvey(msgspec.Struct, frozen=True, kw_only=True):
    """What a category has."""

    category: str
    metadata_bytes: int
    review_bytes: int
    items: int
    reviews: int
    usable: float  # fraction of the items that the filter of the sample keeps


class Survey(NamedTuple):
    """What the source has, and some of its items."""

    categories: list[CategorySurvey]
    rows: dict[str, list[SampleRow]]  # by category, some items that the filter keeps


def survey(params: Params, data: Path) -> Survey:
    """Return what each category of ``source.categories`` has.

    Args:
        params: the sections source, sample and images are used.
        data: the folder of the tables; where a download stage has counted rows, its counts are used.

    Raises:
        UserError: the source cannot be listed or read, or lacks a category.
    """
    listing = of_source(params.source, data, count=params.source.metadata == "parquet")
    listed = {row.category: row for row in listing.categories}
    with ThreadPoolExecutor(_READERS) as pool:
        surveyed = pool.map(lambda category: _survey(listed[category], params), params.source.categories)
        found = list(progress.bar(surveyed, "plan: rows of each category", len(params.source.categories)))
    return Survey([one for one, _ in found], {one.category: rows for one, rows in found})


def download_rate(params: Params, categories: Sequence[CategorySurvey]) -> float | None:
    """Return the rate at which the source sends its largest file, bytes per second; None if it is on this machine."""
    largest = max(categories, key=lambda one: one.metadata_bytes)
    name, url = _file(params.source, "items", largest.category)
    if "://" not in url:
        return None
    if not name.endswith(variants.PLAIN):
        return _stream_rate(params.source, largest.category)
    rates, begin = [], time.monotonic()
    for piece in _pieces(url, largest.metadata_bytes, PIECES, _TIMED // PIECES):
        rates.append(len(piece) / (time.monotonic() - begin))
        begin = time.monotonic()
    return max(rates)  # others may have had to be repeated


def _stream_rate(settings: SourceParams, category: str) -> float:
    """Return the rate at which a compressed file arrives; some servers label it so that pieces cannot be requested."""
    _, remote = source.remote_file(settings, "items", category, _POLICY)
    begin, received = time.monotonic(), 0
    for chunk in ranges.read_ranges(remote, policy=_POLICY):
        received += len(chunk)
        if received >= _TIMED:
            break
    return received / (time.monotonic() - begin)


def _survey(listed: Category, params: Params) -> tuple[CategorySurvey, list[SampleRow]]:
    if listed.metadata_bytes is None or (params.source.reviews and listed.review_bytes is None):
        raise UserError(
            f"{params.source.location or 'the source'} has no files of {listed.category}; check source.location and "
            "compare source.categories with `effimini categories`"
        )
    items, reviews = listed.items, listed.reviews if params.source.reviews else 0
    if params.source.metadata == "parquet":
        table = pa.Table.from_batches([next(metadata.item_batches(params.source, listed.category))])
    else:
        lines, count = _lines(params.source, "items", listed.category, listed.metadata_bytes)
        table, _ = records.parse_lines("items", b"".join(lines), 1)
        items = items if items is not None else count
    if reviews is None:
        _, reviews = _lines(params.source, "reviews", listed.category, listed.review_bytes or 0)
    rows = usable_rows(table, params)
    found = CategorySurvey(
        category=listed.category,
        metadata_bytes=listed.metadata_bytes,
        review_bytes=(listed.review_bytes or 0) if params.source.reviews else 0,
        items=items or 0,
        reviews=reviews,
        usable=len(rows) / max(1, table.num_rows),
    )
    return found, rows


def _lines(settings: SourceParams, kind: Kind, category: str, size: int) -> tuple[list[bytes], int]:
    """Return whole lines from several places of a raw file of `size` bytes, and about how many lines it has.

    Of a small file all lines are returned, and of a file that is compressed or parquet the first ones.
    """
    name, url = _file(settings, kind, category)
    if not name.endswith(variants.PLAIN):
        lines, count = _first_lines(settings, kind, category, size)
        return lines, _rows_of_parquet(url, count) if name.endswith(variants.PARQUET) else count
    found: list[bytes] = []
    whole = size <= PIECES * _PIECE[kind]
    number, length = (1, size) if whole else (PIECES, _PIECE[kind])
    for n, piece in enumerate(_pieces(url, size, number, length)):
        lines = piece.splitlines(keepends=True)
        found += lines if whole else lines[1 if n else 0 : -1]  # the others begin and end in the middle of a line
    return found, round(size * len(found) / max(1, sum(map(len, found))))


def _first_lines(settings: SourceParams, kind: Kind, category: str, size: int) -> tuple[list[bytes], int]:
    """Return the first lines of a compressed file, and about how many it has if zlib compresses them as well."""
    raw = source.raw_file(dataclasses.replace(settings, keep_raw=False), kind, category)
    assert raw.arriving
    content = bytearray()
    for portion in raw.arriving():
        content += portion
        if len(content) > PIECES * _PIECE[kind]:
            lines = bytes(content).splitlines(keepends=True)[:-1]
            return lines, round(size * len(lines) / max(1, len(zlib.compress(b"".join(lines)))))
    lines = bytes(content).splitlines(keepends=True)
    return lines, len(lines)


def _rows_of_parquet(url: str, otherwise: int) -> int:
    """Return the number of rows in the footer of a parquet file, or another number if the server sends whole files."""
    try:
        system, path = fsspec.core.url_to_fs(url)
        with system.open(path, block_size=1 << 16) as file:
            return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return otherwise


def _pieces(url: str, size: int, number: int, length: int) -> Iterator[bytes]:
    """Yield `number` pieces of `length` bytes of a file of `size` bytes, at equal distances."""
    try:
        system, path = fsspec.core.url_to_fs(url)
        for n in range(number):
            begin = n * size // number
            yield _POLICY.call(partial(_piece, system, path, begin, min(length, size - begin)), url)
    except (TransientError, OSError, ValueError) as error:
        raise UserError(
            f"{url} cannot be read ({first_sentence(error)}); check the network and source.location"
        ) from error


def _piece(system: fsspec.AbstractFileSystem, path: str, begin: int, length: int) -> bytes:
    """Return bytes of a file; no others are requested."""
    try:
        with system.open(path, "rb", block_size=length, cache_type="none") as file:
            file.seek(begin)
            content: bytes = file.read(length)
    except FileNotFoundError:
        raise
    except (OSError, httpx2.HTTPError) as error:
        raise TransientError(f"{type(error).__name__}: {error}") from error
    if len(content) < length:
        raise TransientError(f"the response ended {length - len(content)} bytes early")
    return content


def _file(settings: SourceParams, kind: Kind, category: str) -> tuple[str, str]:
    """Return the name of a raw file, and its path or URL."""
    if settings.kind == "hub":
        name = source.PATHS[kind].format(category)
        return name, hub.address(settings.revision, name)
    if (location := source.locate(settings, category)).is_remote:
        name, remote = source.remote_file(settings, kind, category, _POLICY)
        return name, remote.url
    name, path = source.local_file(location, kind, category)
    return name, str(path)
