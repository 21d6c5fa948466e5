"""data/sample: the items to train and evaluate on, one file per part (a band of train, validation, test).

From this table on no text is null; a missing text is empty. A number that is missing
(`prep.core.tables.tabular.COLUMNS`) is null.
"""

import pyarrow as pa

from prep.core.tables.column import required
from prep.core.tables.tabular import TABULAR_NAMES

TEXTS = ("main_category", "title", "features", "description", "store", "details")

SAMPLE = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("category", pa.string()),
        required("group", pa.string()),
        required("split", pa.string()),
        required("band", pa.int16()),
        *(required(name, pa.string()) for name in TEXTS),
        required("average_rating", pa.float64()),
        required("rating_number", pa.int64()),
        required("review_count", pa.int64()),
        required("image_urls", pa.list_(pa.string())),  # candidates, best first, as in the metadata
        *(pa.field(name, pa.float64()) for name in TABULAR_NAMES),
    ]
)
