"""Write joined items as the join stage does, for tests that start at the groups or the sample stage."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from prep.core.buckets import bucket_names, bucket_of, item_order, sorted_items
from prep.core.tables.items import JOINED
from prep.core.writers import write_table

DEFAULTS = {
    "main_category": "Toys", "average_rating": 4.0, "rating_number": 3, "features": [], "description": [],
    "store": "S", "details": "{}", "review_count": 0,
}  # fmt: skip


def write_items(data: Path, category: str, rows: Iterable[Mapping[str, Any]], buckets: int = 1) -> None:
    """Write ``data/items/<category>/items-NNN.parquet``, each row in its bucket and in item order.

    Args:
        data: the data folder; existing bucket files of the category are removed.
        category: name of the category.
        rows: columns of `JOINED`, at least parent_asin; others default to `DEFAULTS`, a unique title, or null.
        buckets: number of buckets.
    """
    complete = [DEFAULTS | {"title": f"product {row['parent_asin']}"} | dict(row) for row in rows]
    table = sorted_items(pa.Table.from_pylist(complete, JOINED))
    numbers = bucket_of(item_order(table["parent_asin"]), buckets)
    folder = data / "items" / category
    for old in folder.glob("*.parquet"):
        old.unlink()
    for number, name in enumerate(bucket_names("items", buckets)):
        write_table(folder / name, table.filter(pa.array(numbers == number)))
