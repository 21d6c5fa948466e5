"""data/raw: the columns that are used of the dataset's item and review lines, with unchanged values.

parent_asin is the key of the id (`prep.core.keys`). Ratings are stars; times are milliseconds since 1970, as in the
dataset.
"""

from typing import Literal

import pyarrow as pa

from prep.core.tables.column import required

Kind = Literal["items", "reviews"]  # the two raw files of a category


ITEMS = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("line", pa.int64()),
        pa.field("main_category", pa.string()),
        pa.field("title", pa.string()),
        pa.field("average_rating", pa.float64()),
        pa.field("rating_number", pa.int64()),
        required("features", pa.list_(pa.string())),
        required("description", pa.list_(pa.string())),
        pa.field("store", pa.string()),
        required("details", pa.string()),  # the object as JSON
        pa.field("hi_res", pa.string()),  # the first hi_res URL among the item's images
        pa.field("large", pa.string()),  # the first large URL
        pa.field("price", pa.float64()),  # null without a plain meaning (prep/core/tabular.py), as the next three
        pa.field("video_count", pa.int64()),
        pa.field("image_count", pa.int64()),
        pa.field("categories", pa.list_(pa.string())),
    ]
)

LISTED = "Date First Available"  # the detail that says since when a product is sold

REVIEWS = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("line_hash", pa.uint64()),
        required("user_hash", pa.uint64()),
        required("rating", pa.float64()),
        required("timestamp", pa.int64()),
        required("verified_purchase", pa.bool_()),
    ]
)

REJECTS = pa.schema([required("file", pa.string()), required("line", pa.int64()), required("reason", pa.string())])
