"""data/items: one row per item, with statistics of its reviews."""

import pyarrow as pa

from prep.core.tables.column import required
from prep.core.tables.raw import ITEMS

JOINED = pa.schema(
    [
        *(field for field in ITEMS if field.name != "line"),
        required("review_count", pa.int64()),
        pa.field("review_mean", pa.float64()),
        pa.field("review_spread", pa.float64()),  # population standard deviation, stars
        pa.field("verified_share", pa.float64()),
        pa.field("first_review", pa.int64()),
        pa.field("last_review", pa.int64()),
    ]
)
