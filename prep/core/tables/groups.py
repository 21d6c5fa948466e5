"""data/groups: which items are the same product; the rows are aligned with those of the same bucket of data/items."""

import pyarrow as pa

from prep.core.tables.column import required

GROUPS = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("group", pa.string()),
        required("group_size", pa.int32()),
        # fraction of all groups that appeared on an earlier day; null without a time, or if the split is not by time
        pa.field("appeared", pa.float64()),
    ]
)
