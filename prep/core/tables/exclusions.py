"""data/exclusions: the items of a sample part that are near duplicates of a validation or test item, in its order."""

import pyarrow as pa

from prep.core.tables.column import required

# why an item is excluded; if both hold, the first one
SAME_PICTURE, SAME_PRODUCT_TITLE = "same_picture", "same_product_title"

EXCLUSIONS = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("reason", pa.string()),
        # one of the items that it repeats
        required("other_split", pa.string()),
        required("other_category", pa.string()),
        required("other_asin", pa.string()),
        pa.field("difference", pa.float32()),  # of the pictures (shards/images/similarity.py); null for titles
    ]
)
