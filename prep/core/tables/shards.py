"""data/shards: what stands of a sample in its JSON, and the index of a tar."""

import pyarrow as pa

from prep.core.tables.column import required
from prep.core.tables.sample import TEXTS

# What stands of a sample in its JSON, in this order.
FACTS = ("parent_asin", "category", *TEXTS, "average_rating", "rating_number", "review_count", "has_image")

INDEX = pa.schema(
    [
        required("key", pa.string()),
        required("jpg_offset", pa.int64()),
        required("jpg_length", pa.int32()),
        required("json_offset", pa.int64()),
        required("json_length", pa.int32()),
        required("average_rating", pa.float32()),
        required("rating_number", pa.int64()),
        required("review_count", pa.int64()),
        required("has_image", pa.bool_()),
        required("tokens", pa.list_(pa.int32())),
    ]
)
