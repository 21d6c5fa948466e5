"""Sample stage: select the items to train and evaluate on, and assign splits and bands.

Input: ``data/items/<category>/`` and ``data/groups/<category>/``, and the list of removed items.
Output: ``data/sample/<category>/`` with one file per part (``train-00.parquet``, ... for the bands of the training
split, ``validation.parquet``, ``test.parquet``), ``strata.csv`` and ``report.json``.
Guarantees: the bytes of a part do not depend on the fraction; a larger fraction adds parts, a smaller one removes some.
A removed item keeps its place, so that no other one moves; ``removed.json`` has the rows of a part where one was.

Two passes: items are ranked by a few numbers, then the texts of the selected items are read again.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prep import removed as removals
from prep import strata
from prep.core import buckets, files, writers
from prep.core.buckets import all_buckets
from prep.core.cluster import dask_pool
from prep.core.errors import UserError
from prep.core.params import Params, SampleParams, narrow
from prep.core.parts import NOT_TAKEN, SLOTS_FILE, TEST, TRAIN, VALIDATION
from prep.core.reports import Funnel, earlier_reports
from prep.core.tables.sample import SAMPLE, TEXTS
from prep.core.tabular import RAW, tabular
from prep.core.text import clean, clean_details, clean_list
from prep.removed import Removed

READS = ("download.buckets", "sample", "images.prefer", "dask")
_ROWS_PER_CHUNK = 2000  # rows whose texts are in memory at once
_SPLITS = (TEST, TRAIN, VALIDATION)
_NUMBERS = ("parent_asin", "average_rating", "rating_number", "review_count")
_COUNTED = ("title", "features", "description")  # texts whose total length must reach sample.min_chars
_CLEAN: dict[str, Callable[[Any], str]] = {
    "main_category": clean,
    "title": clean,
    "features": partial(clean_list, separator=" | "),
    "description": partial(clean_list, separator=" "),
    "store": clean,
    "details": clean_details,
}
# The columns that items are ranked by.
_SLIM = pa.schema(
    [
        ("parent_asin", pa.string()),
        ("row", pa.int32()),  # index in its bucket
        ("split", pa.int8()),  # index in _SPLITS
        ("stratum", pa.int16()),
        ("order", pa.uint64()),
    ]
)


class SampleRow(NamedTuple):
    """An item with the values of its row in the sample."""

    number: int  # index in its bucket
    parent_asin: str
    average_rating: float | None
    rating_number: int | None
    review_count: int
    texts: dict[str, str]  # cleaned, by field name
    image_urls: list[str]  # best first
    tabular: dict[str, float | None]  # by column; empty unless asked for


class _Placed(NamedTuple):
    """The bands and parts of a category's usable items."""

    band: npt.NDArray[np.int16]  # -1 for an item outside the training split
    part: npt.NDArray[np.int16]  # index in `parts`, -1 for an item that is not selected
    parts: list[str]
    dropped: Counter[str]  # by reason, one of NOT_TAKEN
    removed_part: npt.NDArray[np.int16]  # as `part`, of the removed items


def sample(category: str, params: Params, data: Path = Path("data")) -> None:
    """Write ``data/sample/<category>``.

    Raises:
        UserError: the category has no training items left, or the items or their groups do not exist.
    """
    params = narrow(params, READS)
    data = data.absolute()
    count = params.download.buckets
    items = all_buckets(data / "items" / category, "items", count, f"join@{category}")
    groups = all_buckets(data / "groups" / category, "groups", count, "groups")
    with files.atomic_folder(data / "sample" / category) as out, dask_pool(params.dask, out) as pool:
        work = out / "work"
        slim = [work / path.name for path in items]
        calls = list(zip(items, groups, slim, [params] * len(items), strict=True))
        removed = removals.read_removed(data, category)
        ranked = [(*call, removed) for call in calls]
        dropped = sum(pool.map(_rank, ranked, f"sample {category}, filter: buckets"), Counter[str]())
        usable = pa.concat_tables([pq.read_table(path) for path in slim])
        removed = [one for one in removed if one.stratum >= 0]
        gone = _ranks(removed, params.sample)
        placed = _place(usable, gone, params.sample)
        if not any(part.startswith(TRAIN) for part in placed.parts):
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted((dropped + placed.dropped).items()))
            raise UserError(
                f"{category}: no training items are left ({reasons}); raise sample.fraction or "
                "sample.min_per_category, relax sample.require, or remove the category from source.categories"
            )
        last = np.cumsum([pq.read_metadata(path).num_rows for path in slim])
        slices = [slice(begin, end) for begin, end in zip([0, *last[:-1]], last, strict=True)]
        scattered = [
            (*call, category, placed.band[rows], placed.part[rows], len(placed.parts))
            for call, rows in zip(calls, slices, strict=True)
        ]
        pieces = pool.map(_scatter, scattered, f"sample {category}, texts: buckets")
        gathered = [(pieces, number, out / f"{part}.parquet") for number, part in enumerate(placed.parts)]
        counts = pool.map(_gather_part, gathered, f"sample {category}: parts")
        shutil.rmtree(work)
        _write_slots(removed, placed, out)
        table = _strata(usable, gone, placed)
        table.to_csv(out / "strata.csv", index=False, lineterminator="\n")
        report = {
            "stage": "sample",
            "category": category,
            "before": earlier_reports(data / "items" / category),
            "tables": {"items": Funnel.of(usable.num_rows + dropped.total(), dropped + placed.dropped)},
            "rows": dict(zip(placed.parts, counts, strict=True)),
            "largest_deviation": deviation(table),
        }
        writers.write_json(out / "report.json", report)


def candidate_urls(hi_res: str | None, large: str | None, prefer: str) -> list[str]:
    """Return the image URLs to try, best first: the preferred kind, then the other one.

    Args:
        hi_res: the first hi_res URL, None or "" if there is none.
        large: the first large URL, likewise.
        prefer: ``images.prefer``, hi_res or large.
    """
    urls = (hi_res, large) if prefer == "hi_res" else (large, hi_res)
    return list(dict.fromkeys(filter(None, urls)))


def usable_rows(items: pa.Table, params: Params) -> list[SampleRow]:
    """Return the rows of an items table (columns of `prep.core.tables.raw.ITEMS`) that the filter keeps.

    Their review_count is 0.
    """
    return [row for row, reason in _filtered(items, params) if not reason]


def unusable(items: pa.Table, params: Params) -> Counter[str]:
    """Return the number of rows of an items table that the filter drops, by reason; see `usable_rows`."""
    return Counter(reason for _, reason in _filtered(items, params) if reason)


def _filtered(items: pa.Table, params: Params) -> Iterator[tuple[SampleRow, str]]:
    """Yield each row of an items table with the reason to drop it, "" if it is kept."""
    for number, item in enumerate(items.to_pylist()):
        row = _sample_row(number, item | {"review_count": 0}, params, TEXTS)
        yield row, _unusable(row, params.sample)


def deviation(table: pd.DataFrame) -> dict[str, float]:
    """Return how much the training sample deviates from its population.

    Args:
        table: content of ``strata.csv``.

    Returns:
        The largest absolute difference between the fractions of rows in the sample and in the population, over rating
        values and over count buckets, rounded to six decimals.
    """
    train = table[table["split"] == TRAIN]
    found = {}
    for column, name in (("average_rating", "average_rating"), ("rating_number_from", "rating_number")):
        sums = train.groupby(column)[["population", "taken"]].sum()
        fractions = sums / sums.sum()
        found[name] = round(float((fractions["taken"] - fractions["population"]).abs().max()), 6)
    return found


def _rank(items: Path, groups: Path, out: Path, params: Params, removed: list[Removed]) -> Counter[str]:
    """Write the ranking columns of a bucket's usable items; return the number of the others by reason."""
    grouped = pq.read_table(groups, columns=["group", "appeared"])
    group_of, appeared = grouped["group"], grouped["appeared"].to_numpy()
    rules = params.sample
    dropped: Counter[str] = Counter()
    tables = []
    names = tuple(name for name in TEXTS if name in rules.require or name in _COUNTED)
    for rows in _sample_rows(items, params, names):
        kept = []
        for row in rows:
            if reason := _unusable(row, rules):
                dropped[reason] += 1
            else:
                kept.append(row)
        numbers = pa.array([row.number for row in kept], pa.int32())
        group = group_of.take(numbers).to_pylist()
        if rules.split == "time":
            position = strata.time_positions(appeared[numbers.to_numpy()])
        else:
            position = strata.split_positions(group, rules.salt)
        order = strata.order_of(group, rules.salt)
        removals.keep_places(group, position, order, removed)
        split = strata.split_at(position, rules.validation, rules.test)
        ratings = np.array([row.average_rating for row in kept], float)
        counts = np.array([row.rating_number or 0 for row in kept], np.int64)
        columns = {
            "parent_asin": [row.parent_asin for row in kept],
            "row": numbers,
            "split": np.searchsorted(_SPLITS, split).astype(np.int8),
            "stratum": strata.stratum_of(ratings, counts),
            "order": order,
        }
        tables.append(pa.table(columns, schema=_SLIM))
    writers.write_table(out, pa.concat_tables([_SLIM.empty_table(), *tables]))
    return dropped


def _sample_rows(
    items: Path, params: Params, texts: tuple[str, ...], chosen: npt.NDArray[np.int32] | None = None
) -> Iterator[list[SampleRow]]:
    """Yield the rows of a bucket with the named texts, in batches; if `chosen` is given, these rows, with `tabular`."""
    columns = [*_NUMBERS, "hi_res", "large", *texts, *(() if chosen is None else RAW)]
    numbers: npt.NDArray[np.int64]
    last = 0
    with pq.ParquetFile(items) as file:
        for batch in file.iter_batches(_ROWS_PER_CHUNK, columns=columns):
            first, last = last, last + batch.num_rows
            numbers = np.arange(first, last)
            if chosen is not None:
                numbers = numbers[np.isin(numbers, chosen)]
            rows = batch.take(pa.array(numbers - first)).to_pylist()
            yield [_sample_row(number, row, params, texts) for number, row in zip(numbers.tolist(), rows, strict=True)]


def _sample_row(number: int, item: Mapping[str, Any], params: Params, texts: tuple[str, ...]) -> SampleRow:
    """Return the row of an item, given its columns by name."""
    cleaned = {name: _CLEAN[name](item[name]) for name in texts}
    return SampleRow(
        number=number,
        parent_asin=item["parent_asin"],
        average_rating=item["average_rating"],
        rating_number=item["rating_number"],
        review_count=item["review_count"],
        texts=cleaned,
        image_urls=candidate_urls(item["hi_res"], item["large"], params.images.prefer),
        tabular=tabular(item, cleaned) if RAW[0] in item else {},
    )


def _unusable(row: SampleRow, rules: SampleParams) -> str:
    """Return the reason to drop a row, or "" for a row that is kept."""
    if row.average_rating is None:  # an item without the label cannot be used
        return "no_average_rating"
    present = {name: bool(text) for name, text in row.texts.items()} | {
        "average_rating": True,
        "rating_number": row.rating_number is not None,
        "image": bool(row.image_urls),
    }
    for name in rules.require:
        if not present[name]:
            return f"no_{name}"
    if not 1 <= row.average_rating <= 5:
        return "rating_out_of_range"
    if sum(len(row.texts[name]) for name in _COUNTED) < rules.min_chars:
        return "short_text"
    return ""


def _ranks(removed: list[Removed], rules: SampleParams) -> pa.Table:
    """Return the ranking columns of removed items, which come before another item with the same order."""
    split = strata.split_at(np.array([one.split for one in removed]), rules.validation, rules.test)
    columns = {
        "parent_asin": [""] * len(removed),
        "row": [-1] * len(removed),
        "split": np.searchsorted(_SPLITS, split).astype(np.int8),
        "stratum": np.array([one.stratum for one in removed], np.int16),
        "order": np.array([one.order for one in removed], np.uint64),
    }
    return pa.table(columns, schema=_SLIM)


def _place(usable: pa.Table, gone: pa.Table, rules: SampleParams) -> _Placed:
    """Assign each usable item its band and its part, and count the items without a part by reason.

    Args:
        usable: the ranking columns of the items.
        gone: those of removed items, which keep their places.
        rules: the ``sample`` section of the parameters.
    """
    ranked = pa.concat_tables([usable, gone])
    split, stratum, order = (ranked[name].to_numpy() for name in ("split", "stratum", "order"))
    band = np.full(ranked.num_rows, -1, np.int16)
    part = np.full(ranked.num_rows, -1, np.int16)
    parts: list[str] = []
    dropped: Counter[str] = Counter()
    for number, name in enumerate(_SPLITS):
        rows = np.flatnonzero(split == number)
        here = rows < usable.num_rows
        u = strata.positions(stratum[rows], order[rows], ranked["parent_asin"].take(rows), f"{rules.salt}/{name}")
        if name == TRAIN:
            band[rows] = np.floor(u * rules.bands)
            taken = band[rows] < strata.limit(band[rows], rules.fraction, rules.bands, rules.min_per_category)
            present = np.unique(band[rows][taken & here])
            chosen = taken & np.isin(band[rows], present)
            part[rows] = np.where(chosen, len(parts) + np.searchsorted(present, band[rows]), -1)
            parts += [f"{name}-{present_band:02d}" for present_band in present]
            dropped[NOT_TAKEN[0]] = int((~taken & here).sum())
        else:
            taken = u < strata.least(u, rules.eval_fraction, rules.eval_min_per_category)
            if (taken & here).any():
                part[rows] = np.where(taken, len(parts), -1)
                parts.append(name)
            dropped[NOT_TAKEN[1]] += int((~taken & here).sum())
    items = slice(usable.num_rows)
    return _Placed(band[items], part[items], parts, +dropped, part[usable.num_rows :])


def _write_slots(removed: list[Removed], placed: _Placed, out: Path) -> None:
    """Write the rows of each part before which a removed item had its place in a tar; no file if there are none."""
    slots = {}
    for number, part in enumerate(placed.parts):
        items = [one.item for one, at in zip(removed, placed.removed_part, strict=True) if at == number and one.slot]
        if items:
            order = buckets.item_order(pq.read_table(out / f"{part}.parquet", columns=["parent_asin"])["parent_asin"])
            slots[part] = np.searchsorted(order, np.sort(np.array(items, np.uint64))).tolist()
    if slots:
        writers.write_json(out / SLOTS_FILE, slots)


def _scatter(
    items: Path,
    groups: Path,
    slim: Path,
    params: Params,
    category: str,
    band: npt.NDArray[np.int16],
    part: npt.NDArray[np.int16],
    parts: int,
) -> Path:
    """Write the selected rows of one bucket as a piece, partitioned by part; return its path."""
    taken = part >= 0
    ranked = pq.read_table(slim, columns=["row", "split"])
    chosen, split = (ranked[name].to_numpy()[taken] for name in ("row", "split"))
    group = pq.read_table(groups, columns=["group"])["group"].take(chosen).to_pylist()
    places = zip(np.array(_SPLITS)[split].tolist(), group, band[taken].tolist(), strict=True)
    tables = [SAMPLE.empty_table()]
    for rows in _sample_rows(items, params, TEXTS, chosen):
        records = []
        for row in rows:
            row_split, row_group, row_band = next(places)
            placed = {"category": category, "split": row_split, "group": row_group, "band": row_band}
            records.append(row._asdict() | row.texts | row.tabular | placed | {"rating_number": row.rating_number or 0})
        tables.append(pa.Table.from_pylist(records, SAMPLE))
    piece = slim.with_suffix(".arrow")
    buckets.write_piece(piece, pa.concat_tables(tables), part[taken], parts)
    return piece


def _gather_part(pieces: list[Path], number: int, out: Path) -> int:
    return writers.write_batches(out, SAMPLE, buckets.read_bucket(pieces, number))


def _strata(usable: pa.Table, gone: pa.Table, placed: _Placed) -> pd.DataFrame:
    """Return the number of usable and of selected items in each stratum of each split, and of removed ones if any."""
    frame = pd.DataFrame(
        {"split": usable["split"].to_numpy(), "stratum": usable["stratum"].to_numpy(), "taken": placed.part >= 0}
    )
    counted = frame.groupby(["split", "stratum"])["taken"].agg(["size", "sum"]).reset_index()
    stars, count_from = strata.names_of(counted["stratum"].to_numpy())
    table = pd.DataFrame(
        {
            "split": np.array(_SPLITS)[counted["split"]],
            "average_rating": stars,
            "rating_number_from": count_from,
            "population": counted["size"],
            "taken": counted["sum"],
        }
    )
    if gone.num_rows:
        missing = gone.group_by(["split", "stratum"]).aggregate([([], "count_all")]).to_pandas()
        both = counted.merge(missing, how="left", on=["split", "stratum"])
        table["removed"] = both["count_all"].fillna(0).astype(np.int64)
    return table
