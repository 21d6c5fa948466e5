"""Join stage: one row per item, with statistics of its reviews.

Input: ``data/raw/<category>/``.
Output: ``data/items/<category>/`` with ``items-NNN.parquet``, one file per bucket, and ``report.json``.
Guarantees: each bucket is joined separately (items and reviews of a product have the same bucket number), so there is
no shuffle and memory is bounded by the largest bucket. Rows are in item order (`prep.core.buckets`), and each
parent_asin occurs once.

Rules: among rows with the same parent_asin, the one with the most ratings is kept, and of these the first one in the
file. Identical review lines count once. Ratings outside 1 to 5 do not count. With ``join.reviews: first_by_user`` only
the earliest review of an item by a user counts.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep.core import buckets, files, writers
from prep.core.buckets import all_buckets
from prep.core.cluster import dask_pool
from prep.core.params import Params, narrow
from prep.core.reports import Funnel, earlier_reports
from prep.core.tables.items import JOINED

READS = ("download.buckets", "join", "dask")

Gaps = dict[str, float]


class _Counted(NamedTuple):
    """The counts of one bucket for the report."""

    items: int
    reviews: int
    dropped_items: Counter[str]
    dropped_reviews: Counter[str]
    unreviewed: int
    counts: Gaps  # rating_number - review_count, over items with a rating_number
    means: Gaps  # average_rating - review_mean, over items with both


def join(category: str, params: Params, data: Path = Path("data")) -> None:
    """Write ``data/items/<category>``.

    Raises:
        UserError: ``data/raw/<category>`` does not have ``download.buckets`` buckets.
    """
    params = narrow(params, READS)
    data = data.absolute()
    count, stage = params.download.buckets, f"download@{category}"
    raw = [all_buckets(data / "raw" / category, table, count, stage) for table in ("items", "reviews")]
    with files.atomic_folder(data / "items" / category) as out, dask_pool(params.dask, out) as pool:
        calls = [(items, reviews, out / items.name, params.join.reviews) for items, reviews in zip(*raw, strict=True)]
        counted = pool.map(_join_bucket, calls, f"join {category}: buckets")
        items = Funnel.of(sum(c.items for c in counted), sum((c.dropped_items for c in counted), Counter()))
        reviews = Funnel.of(sum(c.reviews for c in counted), sum((c.dropped_reviews for c in counted), Counter()))
        report = {
            "stage": "join",
            "category": category,
            "before": earlier_reports(data / "raw" / category),
            "tables": {"items": items, "reviews": reviews},
            "items_without_reviews": sum(c.unreviewed for c in counted),
            "rating_number_less_review_count": _summary([c.counts for c in counted]),
            "average_rating_less_review_mean": _summary([c.means for c in counted]),
        }
        writers.write_json(out / "report.json", report)


def _join_bucket(items_file: Path, reviews_file: Path, out: Path, rule: str) -> _Counted:
    items = pq.read_table(items_file)
    kept = _drop_duplicate_items(items)
    reviews = _read_reviews(reviews_file, kept["parent_asin"])
    counting, dropped = _counting(reviews, rule)
    statistics = _aggregate(counting, kept.num_rows)
    columns = {name: kept[name] for name in kept.column_names if name in JOINED.names} | statistics
    table = pa.table({name: columns[name] for name in JOINED.names}).cast(JOINED)
    writers.write_table(out, table)
    numbers = {
        name: table[name].to_numpy() for name in ("rating_number", "review_count", "average_rating", "review_mean")
    }
    return _Counted(
        items=items.num_rows,
        reviews=len(reviews),
        dropped_items=Counter(duplicate_id=items.num_rows - kept.num_rows),
        dropped_reviews=dropped,
        unreviewed=int((numbers["review_count"] == 0).sum()),
        counts=_gaps(numbers["rating_number"], numbers["review_count"], 0),
        means=_gaps(numbers["average_rating"], numbers["review_mean"], 0.05),
    )


def _drop_duplicate_items(items: pa.Table) -> pa.Table:
    """Return one row per parent_asin, in item order."""
    keys = items.select(["parent_asin", "rating_number", "line"]).append_column(
        "order", pa.array(buckets.item_order(items["parent_asin"]))
    )
    by = [("order", "ascending"), ("parent_asin", "ascending"), ("rating_number", "descending"), ("line", "ascending")]
    ranked = pc.sort_indices(keys, by)  # a null rating_number is last
    ids = keys["parent_asin"].take(ranked).combine_chunks()
    first = np.ones(len(ids), bool)
    first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return items.take(ranked.filter(pa.array(first)))


def _read_reviews(file: Path, ids: pa.ChunkedArray) -> pd.DataFrame:
    """Return the numeric columns of a bucket's reviews; ``item`` is the row of the item in `ids`, -1 if it has none."""
    columns = {}
    for field in pq.read_schema(file):
        column = pq.read_table(file, columns=[field.name])[field.name]
        if field.name == "parent_asin":
            columns["item"] = pc.fill_null(pc.index_in(column, value_set=ids.combine_chunks()), -1).to_numpy()
        else:
            columns[field.name] = column.to_numpy()
    return pd.DataFrame(columns, copy=False)


def _counting(reviews: pd.DataFrame, rule: str) -> tuple[pd.DataFrame, Counter[str]]:
    """Return the reviews that count, and the number of the others by the first reason that applies."""
    dropped: Counter[str] = Counter()

    def keep(reason: str, mask: "pd.Series[bool]") -> pd.DataFrame:
        dropped[reason] += int((~mask).sum())
        return reviews[mask]

    reviews = keep("duplicate_line", ~reviews["line_hash"].duplicated())
    reviews = keep("rating_out_of_range", reviews["rating"].between(1, 5))
    reviews = keep("no_item", reviews["item"] >= 0)
    if rule == "first_by_user":
        reviews = reviews.sort_values(["timestamp", "line_hash"])
        reviews = keep("later_by_user", ~reviews.duplicated(["item", "user_hash"]))
    return reviews, dropped


def _aggregate(reviews: pd.DataFrame, items: int) -> dict[str, pa.Array]:
    """Return the review statistics of each item, columns of `JOINED`: null (count 0) for an item without reviews."""
    statistics = (
        reviews.assign(square=reviews["rating"] ** 2)
        .groupby("item")
        .agg(
            review_count=("rating", "size"),
            review_mean=("rating", "mean"),
            review_spread=("square", "mean"),
            verified_share=("verified_purchase", "mean"),
            first_review=("timestamp", "min"),
            last_review=("timestamp", "max"),
        )
    )
    variance = statistics["review_spread"] - statistics["review_mean"] ** 2
    statistics["review_spread"] = variance.clip(lower=0) ** 0.5
    row = np.full(items, -1)
    row[statistics.index.to_numpy()] = np.arange(len(statistics))
    places = pa.array(row, mask=row < 0)
    columns = {name: pa.array(statistics[name].to_numpy()).take(places) for name in statistics.columns}
    return columns | {"review_count": pc.fill_null(columns["review_count"], 0)}


def _gaps(one: npt.NDArray[Any], other: npt.NDArray[Any], tolerance: float) -> Gaps:
    """Sum the differences where both have a value; differences of at most `tolerance` count as equal."""
    gap = (one.astype(float) - other.astype(float))[~(np.isnan(one.astype(float)) | np.isnan(other.astype(float)))]
    return {
        "items": len(gap),
        "sum": math.fsum(gap),
        "sum_absolute": math.fsum(np.abs(gap)),
        "equal": int((np.abs(gap) <= tolerance + 1e-9).sum()),
    }


def _summary(gaps: list[Gaps]) -> dict[str, float]:
    """Return the number of compared items, the mean difference, the mean absolute difference and the fraction equal."""
    total = {name: math.fsum(gap[name] for gap in gaps) for name in ("items", "sum", "sum_absolute", "equal")}
    items = max(total["items"], 1)
    return {
        "items": int(total["items"]),
        "mean": round(total["sum"] / items, 4),
        "mean_absolute": round(total["sum_absolute"] / items, 4),
        "share_equal": round(total["equal"] / items, 4),
    }
