"""Joined items as the join writes them, made by tests that start at the groups or the sample."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from prep.core.buckets import bucket_names, bucket_of, item_order, sorted_items
from prep.core.tables.items import JOINED
from prep.core.writers import write_table

WHOLE = {
    "main_category": "Toys", "average_rating": 4.0, "rating_number": 3, "features": [], "description": [],
    "store": "S", "details": "{}", "review_count": 0,
}  # fmt: skip


def write_items(data: Path, category: str, rows: Iterable[Mapping[str, Any]], buckets: int = 1) -> None:
    """Write ``data/items/<category>/items-NNN.parquet``, each row in its bucket and in the order of items.

    Args:
        data: the data folder; bucket files of the category that stand there are removed.
        category: its name.
        rows: columns of `JOINED`, parent_asin at least; others are those of `WHOLE`, a title of its own, or null.
        buckets: how many there are.
    """
    whole = [WHOLE | {"title": f"product {row['parent_asin']}"} | dict(row) for row in rows]
    table = sorted_items(pa.Table.from_pylist(whole, JOINED))
    numbers = bucket_of(item_order(table["parent_asin"]), buckets)
    folder = data / "items" / category
    for old in folder.glob("*.parquet"):
        old.unlink()
    for number, name in enumerate(bucket_names("items", buckets)):
        write_table(folder / name, table.filter(pa.array(numbers == number)))
