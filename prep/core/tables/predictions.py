"""data/predictions, and the CSV file of items that `effimini predict` reads."""

import pyarrow as pa

from prep.core.tables.column import required

PREDICTIONS = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("category", pa.string()),
        required("split", pa.string()),
        required("average_rating", pa.float32()),
        required("rating_number", pa.int64()),
        required("has_image", pa.bool_()),
        required("prediction", pa.float32()),
    ]
)

# The columns that are checked before a CSV file of items is predicted; the last two say what is wrong with a row.
PREDICT_INPUT = pa.schema(
    [
        required("line", pa.string()),  # "line 7"
        pa.field("parent_asin", pa.string()),
        pa.field("not_text", pa.string()),  # a cell with a list whose elements are not all strings
        pa.field("not_count", pa.string()),  # a rating_number that is no whole number
    ]
)
