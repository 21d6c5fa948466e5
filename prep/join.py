"""Join: one row an item, with what its reviews say.

In: ``data/raw/<category>/``. Out: ``data/items/<category>/`` with ``items-NNN.parquet``, a bucket each, and
``report.json``. Guaranteed: buckets are joined one by one (items and reviews of a product share a bucket number),
so nothing is shuffled and memory is that of the largest bucket; rows are ordered by parent_asin and each
parent_asin stands once.

The rules: of several rows of one parent_asin the one with the most ratings is kept, of those the first in the file.
Of reviews equal to the letter one counts. Ratings outside 1 to 5 do not count. With ``join.reviews: first_by_user``
the earliest of several reviews of one item by one user counts.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prep import cluster, files
from prep.download import bucket_files
from prep.faults import Funnel
from prep.params import Params
from prep.tables import JOINED


class _Counted(NamedTuple):
    """What one bucket adds to the report."""

    items: int
    reviews: int
    dropped_items: Counter[str]
    dropped_reviews: Counter[str]
    unreviewed: int
    count_gap: int  # sum over items of |rating_number - review_count|
    mean_gap: float  # sum over reviewed items of |average_rating - review_mean|


def join(category: str, params: Params, data: Path = Path("data")) -> None:
    """Write ``data/items/<category>``."""
    raw = data / "raw" / category
    with files.folder(data / "items" / category) as out:
        pairs = zip(bucket_files(raw, "items"), bucket_files(raw, "reviews"), strict=True)
        calls = [(items, reviews, out / items.name, params.join.reviews) for items, reviews in pairs]
        counted = cluster.run(_join_bucket, calls, params.dask)
        items = Funnel.of(sum(c.items for c in counted), sum((c.dropped_items for c in counted), Counter()))
        reviews = Funnel.of(sum(c.reviews for c in counted), sum((c.dropped_reviews for c in counted), Counter()))
        unreviewed = sum(c.unreviewed for c in counted)
        reviewed = items.rows_out - unreviewed
        report = {
            "stage": "join",
            "category": category,
            "tables": {"items": items, "reviews": reviews},
            "items_without_reviews": unreviewed,
            "mean_gap_rating_number_review_count": _mean(sum(c.count_gap for c in counted), items.rows_out),
            "mean_gap_average_rating_review_mean": _mean(sum(c.mean_gap for c in counted), reviewed),
        }
        files.write_json(out / "report.json", report)


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 4) if count else None


def _join_bucket(items_file: Path, reviews_file: Path, out: Path, rule: str) -> _Counted:
    items = pq.read_table(items_file)
    kept = _one_row_an_item(items)
    reviews: pd.DataFrame = pq.read_table(reviews_file).to_pandas()
    counting, dropped = _counting(reviews, kept["parent_asin"], rule)
    joined = _aggregate(counting).reindex(kept["parent_asin"].to_pylist())
    count = joined["review_count"].fillna(0).astype("int64").to_numpy()
    columns = {name: kept[name] for name in kept.column_names if name != "line"}
    columns |= {name: pa.array(joined[name], from_pandas=True) for name in joined.columns}
    columns["review_count"] = pa.array(count)
    table = pa.table({name: columns[name] for name in JOINED.names}).cast(JOINED)
    files.write_table(out, table)
    frame = table.select(["rating_number", "review_count", "average_rating", "review_mean"]).to_pandas()
    return _Counted(
        items=items.num_rows,
        reviews=len(reviews),
        dropped_items=Counter(duplicate_id=items.num_rows - kept.num_rows),
        dropped_reviews=dropped,
        unreviewed=int((count == 0).sum()),
        count_gap=int((frame["rating_number"].fillna(0) - frame["review_count"]).abs().sum()),
        mean_gap=float((frame["average_rating"] - frame["review_mean"]).abs().sum()),
    )


def _one_row_an_item(items: pa.Table) -> pa.Table:
    keys = items.select(["parent_asin", "rating_number", "line"]).to_pandas()
    keys["rating_number"] = keys["rating_number"].fillna(-1)
    order = keys.sort_values(["parent_asin", "rating_number", "line"], ascending=[True, False, True])
    return items.take(order.drop_duplicates("parent_asin").index.to_numpy())


def _counting(reviews: pd.DataFrame, ids: pa.ChunkedArray, rule: str) -> tuple[pd.DataFrame, Counter[str]]:
    """Return the reviews that count, and how many do not, by reason; the first reason that holds is counted."""
    dropped: Counter[str] = Counter()

    def keep(reason: str, mask: "pd.Series[bool]") -> pd.DataFrame:
        dropped[reason] += int((~mask).sum())
        return reviews[mask]

    reviews = keep("duplicate_line", ~reviews["line_hash"].duplicated())
    reviews = keep("rating_out_of_range", reviews["rating"].between(1, 5))
    reviews = keep("no_item", reviews["parent_asin"].isin(ids.to_pandas()))
    if rule == "first_by_user":
        reviews = reviews.sort_values(["timestamp", "line_hash"])
        reviews = keep("later_by_user", ~reviews.duplicated(["parent_asin", "user_hash"]))
    return reviews, dropped


def _aggregate(reviews: pd.DataFrame) -> pd.DataFrame:
    """Return count, mean, spread, verified share, first and last time of the reviews of each item."""
    joined = (
        reviews.assign(square=reviews["rating"] ** 2)
        .groupby("parent_asin")
        .agg(
            review_count=("rating", "size"),
            review_mean=("rating", "mean"),
            review_spread=("square", "mean"),
            verified_share=("verified_purchase", "mean"),
            first_review=("timestamp", "min"),
            last_review=("timestamp", "max"),
        )
    )
    joined["review_spread"] = (joined["review_spread"] - joined["review_mean"] ** 2).clip(lower=0) ** 0.5
    return joined
