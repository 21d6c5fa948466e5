"""data/groups: which items are the same product; row by row the items of the bucket of the same number."""

import pyarrow as pa

from prep.core.tables.column import required

GROUPS = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("group", pa.string()),
        required("group_size", pa.int32()),
    ]
)
