"""Download stage: parse the raw files of a category into typed tables, partitioned into buckets.

Input: the item and review files of the source.
Output: ``data/raw/<category>/`` with ``items-NNN.parquet`` and ``reviews-NNN.parquet``, one file per bucket (by hash of
parent_asin), ``rejects.parquet`` and ``report.json``.
Guarantees: items and reviews of one product are in buckets of the same number, in the order of their lines. Every line
is either a row or a reject with a reason. Items that were removed (`prep.removed`) are not in the tables. No review
text and no user id is stored. Memory is bounded by the blocks in progress.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from prep import records, removed
from prep.blocks import Block, cut
from prep.core import buckets, files, writers
from prep.core.cluster import DaskPool, dask_pool
from prep.core.errors import UserError, check_budget
from prep.core.keys import KEY_LENGTH, item_key, item_keys
from prep.core.params import Params, narrow
from prep.core.reports import Funnel
from prep.core.tables.raw import ITEMS, REJECTS, REVIEWS, Kind
from prep.core.text import ABSENT
from prep.records import Reject
from prep.source import raw_file

READS = (
    *("source.kind", "source.location", "source.revision", "source.metadata", "source.reviews", "source.demo"),
    *("source.table", "source.keep_raw", "download", "dask"),
)
_EXAMPLES = 3  # rejects in a message
SCHEMAS: dict[Kind, pa.Schema] = {"items": ITEMS, "reviews": REVIEWS}


class _Typed(NamedTuple):
    """The piece of a block: its rows partitioned into buckets; lines are numbered from 1 in each piece."""

    path: Path
    lines: int  # rows and rejects
    rejects: list[Reject]


def download(category: str, params: Params, data: Path = Path("data")) -> dict[Kind, str]:
    """Write ``data/raw/<category>``.

    Returns:
        The first rejected lines of each table with what was found there, as the end of a message; "" for none.

    Raises:
        UserError: a raw file is missing, cannot be read or is empty, or exceeds ``download.max_bad_fraction``.
    """
    params = narrow(params, READS)
    data = data.absolute()  # workers may have another working directory
    with files.atomic_folder(data / "raw" / category) as out, dask_pool(params.dask, out) as pool:
        tables, rejects, pieces, notes = {}, [], {}, {}
        for kind in SCHEMAS:
            work = out / "work" / kind
            work.mkdir(parents=True)
            if kind == "reviews" and not params.source.reviews:
                name, typed = "", []
            elif kind == "items" and params.source.metadata == "parquet":
                name, typed = "the item metadata", list(_typed_batches(category, params, work))
            else:
                name, typed = _type_lines(category, kind, params, work, pool)
            before = accumulate((piece.lines for piece in typed), initial=0)
            placed = list(zip(typed, before, strict=False))
            tables[kind], rejected = _account(category, kind, name, placed, params)
            rejects.append(rejected)
            notes[kind] = _examples(placed)
            pieces[kind] = [(piece.path, lines) for piece, lines in placed]
        calls = [(pieces, number, out) for number in range(params.download.buckets)]
        pool.map(_gather_bucket, calls, f"download {category}: buckets")
        shutil.rmtree(out / "work")
        writers.write_table(out / "rejects.parquet", pa.concat_tables(rejects))
        writers.write_json(out / "report.json", {"stage": "download", "category": category, "tables": tables})
        removed.drop_from(out, category, data)
    return notes


def _type_lines(category: str, kind: Kind, params: Params, work: Path, pool: DaskPool) -> tuple[str, list[_Typed]]:
    """Parse a raw file block by block; return its name and the pieces."""
    raw = raw_file(params.source, kind, category)
    pending: list[Path] = []  # blocks that are not parsed yet

    def calls() -> Iterator[tuple[Block, Kind, int, Path]]:
        for number, block in enumerate(cut(raw, work)):
            pending.append(block.path)
            yield block, kind, params.download.buckets, work / f"{number:06d}.arrow"

    typed = []
    for piece in pool.imap(_type_block, calls()):
        typed.append(piece)
        parsed = pending.pop(0)
        if not raw.path:
            parsed.unlink()
    return Path(raw.name).name, typed


def _type_block(block: Block, kind: Kind, count: int, piece: Path) -> _Typed:
    """Parse one block and write it as a piece."""
    tables: list[pa.Table] = []
    rejects: list[Reject] = []
    lines = 0
    for content in block.portions():
        table, found = records.parse_lines(kind, content, lines + 1)
        tables.append(table)
        rejects += found
        lines += table.num_rows + len(found)
    _write_piece(piece, pa.concat_tables(tables), count)
    return _Typed(piece, lines, rejects)


def _typed_batches(category: str, params: Params, work: Path) -> Iterator[_Typed]:
    """Write batches of the parquet metadata as pieces."""
    from prep.metadata import item_batches  # noqa: PLC0415 -- takes seconds, and is only needed for parquet

    for number, batch in enumerate(item_batches(params.source, category)):
        lines = pa.array(range(1, batch.num_rows + 1), pa.int64())
        asins = item_keys(pc.fill_null(batch["parent_asin"], "").to_pylist())
        absent = pa.array(["", *sorted(map(item_key, ABSENT))])
        named = pc.and_not(pc.less_equal(pc.binary_length(asins), KEY_LENGTH), pc.is_in(asins, value_set=absent))
        count = batch["rating_number"]
        stars = pc.if_else(pc.is_nan(batch["average_rating"]), None, batch["average_rating"])
        typed = pc.and_(
            pc.fill_null(pc.and_(pc.greater_equal(count, 0), pc.less_equal(count, 2**53)), True),
            pc.fill_null(pc.is_finite(stars), True),
        )
        good = pc.and_(named, typed)
        reasons = pc.if_else(typed, "bad_parent_asin", "wrong_type")
        bad = pc.invert(good)
        rejects = list(map(Reject, lines.filter(bad).to_pylist(), reasons.filter(bad).to_pylist()))
        details = pc.if_else(pc.fill_null(pc.starts_with(batch["details"], "{"), False), batch["details"], "{}")
        columns = {name: batch[name] for name in batch.schema.names} | {"line": lines, "average_rating": stars}
        columns["parent_asin"] = asins
        columns["details"] = details
        rows = pa.table([columns[name] for name in ITEMS.names], schema=ITEMS).filter(good)
        piece = work / f"{number:06d}.arrow"
        _write_piece(piece, rows, params.download.buckets)
        yield _Typed(piece, batch.num_rows, rejects)


def _write_piece(piece: Path, table: pa.Table, count: int) -> None:
    order = buckets.item_order(table["parent_asin"])
    buckets.write_piece(piece, table, buckets.bucket_of(order, count), count)


def _gather_bucket(pieces: dict[Kind, list[tuple[Path, int]]], number: int, out: Path) -> None:
    """Write one bucket of each table; each of `pieces` has the number of lines that precede it in the raw file."""
    for kind, schema in SCHEMAS.items():
        rows = buckets.read_bucket([path for path, _ in pieces[kind]], number)
        if "line" in schema.names:
            place = schema.get_field_index("line")
            rows = (
                batch.set_column(place, schema.field(place), pc.add(batch["line"], before))
                for batch, (_, before) in zip(rows, pieces[kind], strict=True)
            )
        writers.write_batches(out / buckets.bucket_name(kind, number), schema, rows)


def _account(
    category: str, kind: Kind, name: str, placed: list[tuple[_Typed, int]], params: Params
) -> tuple[Funnel, pa.Table]:
    """Return the row accounting of one raw file and the table of its rejects.

    Args:
        category: name of the category.
        kind: which of the category's two files.
        name: name of the file.
        placed: the pieces, each with the number of lines that precede it in the file.
        params: the parameters of the stage.

    Raises:
        UserError: too many lines are rejected, or there are no items.
    """
    rejects = [(lines + reject.line, reject.reason) for piece, lines in placed for reject in piece.rejects]
    reasons, rows = Counter(reason for _, reason in rejects), sum(piece.lines for piece, _ in placed)
    columns = [[name] * len(rejects), [line for line, _ in rejects], [reason for _, reason in rejects]]
    table = pa.table([pa.array(v, field.type) for v, field in zip(columns, REJECTS, strict=True)], schema=REJECTS)
    kept = files.store() / "rejects" / category / "rejects.parquet"  # the stage's own file is kept only with the rest
    try:
        check_budget(
            reasons,
            rows,
            params.download.max_bad_fraction,
            f"lines of {name}",
            f"{kept} lists them{_examples(placed)}; inspect the file, or raise download.max_bad_fraction "
            f"({params.download.max_bad_fraction})",
        )
    except UserError:
        writers.write_table(kept, table)
        raise
    if kind == "items" and rows == 0:
        raise UserError(f"{name} of {category} is empty; check source.location and source.categories")
    return Funnel.of(rows, reasons), table


def _examples(placed: list[tuple[_Typed, int]]) -> str:
    """Return the first rejects with what was found, as the end of a message; "" if nothing is known of them."""
    known = ((lines + one.line, one) for piece, lines in placed for one in piece.rejects if one.found)
    listed = [f"line {line}: {one.found} ({one.reason})" for line, one in islice(known, _EXAMPLES)]
    array = any(one.found.startswith("[") for piece, _ in placed[:1] for one in piece.rejects[:1])
    hint = "; the file seems to be a JSON array, write one object per line" if array else ""
    return f"; for example {', '.join(listed)}{hint}" if listed else ""
