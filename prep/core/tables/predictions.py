"""data/predictions, and the CSV file of items that prediction reads."""

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

# What prediction checks of the CSV file of items before it reads them; the last three say what is wrong with a row.
PREDICT_INPUT = pa.schema(
    [
        required("line", pa.string()),  # "line 7"
        pa.field("parent_asin", pa.string()),
        pa.field("not_text", pa.string()),  # a cell that is a list, but not of texts
        pa.field("outside", pa.string()),  # an image path that leaves the folder of images
        pa.field("missing", pa.string()),  # an image that is not there
    ]
)
