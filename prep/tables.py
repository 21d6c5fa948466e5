"""The columns of every table of the data: what one stage writes and the next one reads.

From the sample on, no text is null: an absent one is empty. Ratings are stars from 1 to 5, times are milliseconds
since 1970 as in the dataset.
"""

import pyarrow as pa


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


# data/raw: the columns used of the dataset's item and review lines, as they came.
ITEMS = pa.schema(
    [
        _required("parent_asin", pa.string()),
        _required("line", pa.int64()),
        pa.field("main_category", pa.string()),
        pa.field("title", pa.string()),
        pa.field("average_rating", pa.float64()),
        pa.field("rating_number", pa.int64()),
        _required("features", pa.list_(pa.string())),
        _required("description", pa.list_(pa.string())),
        pa.field("store", pa.string()),
        _required("details", pa.string()),  # the object as JSON
        pa.field("hi_res", pa.string()),  # the first URL of this kind among the item's images
        pa.field("large", pa.string()),  # likewise
    ]
)
REVIEWS = pa.schema(
    [
        _required("parent_asin", pa.string()),
        _required("line_hash", pa.uint64()),
        _required("user_hash", pa.uint64()),
        _required("rating", pa.float64()),
        _required("timestamp", pa.int64()),
        _required("verified_purchase", pa.bool_()),
    ]
)
REJECTS = pa.schema([_required("file", pa.string()), _required("line", pa.int64()), _required("reason", pa.string())])

# The order of items from the join on: by this hash of parent_asin, ties by parent_asin. A bucket is a range of it, so
# buckets one after another are in order whatever their number.
ORDER_SALT = "effimini/item"

# data/items: one row an item, with what its reviews say.
JOINED = pa.schema(
    [
        *(field for field in ITEMS if field.name != "line"),
        _required("review_count", pa.int64()),
        pa.field("review_mean", pa.float64()),
        pa.field("review_spread", pa.float64()),  # population standard deviation, stars
        pa.field("verified_share", pa.float64()),
        pa.field("first_review", pa.int64()),
        pa.field("last_review", pa.int64()),
    ]
)

# data/groups: which items are the same product; row by row the items of the bucket of the same number.
GROUPS = pa.schema(
    [
        _required("parent_asin", pa.string()),
        _required("group", pa.string()),
        _required("group_size", pa.int32()),
    ]
)

# data/sample: what is trained and measured on, one file a part (a band of train, validation, test).
TEXTS = ("main_category", "title", "features", "description", "store", "details")
SAMPLE = pa.schema(
    [
        _required("parent_asin", pa.string()),
        _required("category", pa.string()),
        _required("group", pa.string()),
        _required("split", pa.string()),
        _required("band", pa.int16()),
        *(_required(name, pa.string()) for name in TEXTS),
        _required("average_rating", pa.float64()),
        _required("rating_number", pa.int64()),
        _required("review_count", pa.int64()),
        _required("image_urls", pa.list_(pa.string())),  # candidates, best first, as in the metadata
    ]
)

# What stands of a sample in its JSON, in this order.
FACTS = ("parent_asin", "category", *TEXTS, "average_rating", "rating_number", "review_count", "has_image")

# What can come of asking for an image: it, no URL to ask, or the word of shards/fetch.py, client.py or pixels.py.
OK, NO_URL = "ok", "no_url"
OUTCOMES = (
    *(OK, NO_URL, "bad_url", "gone", "refused", "server_error", "timeout", "unreachable", "too_large"),
    *("not_an_image", "corrupt", "too_many_pixels", "too_small"),
)

# data/images: the outcome of each item of a sample part, in the same order, with the bytes where it is "ok".
IMAGES = pa.schema(
    [
        _required("parent_asin", pa.string()),
        _required("outcome", pa.string()),
        _required("url", pa.string()),
        _required("status", pa.int16()),  # HTTP, 0 without an answer
        _required("tries", pa.int16()),
        _required("source_bytes", pa.int32()),
        _required("source_width", pa.int32()),
        _required("source_height", pa.int32()),
        _required("source_sha256", pa.string()),
        _required("perceptual_hash", pa.uint64()),
        _required("image", pa.binary()),  # JPEG at training size, empty unless "ok"
    ]
)

# data/shards: one index file a tar; offsets and lengths are of the members' content within the tar.
INDEX = pa.schema(
    [
        _required("key", pa.string()),
        _required("jpg_offset", pa.int64()),
        _required("jpg_length", pa.int32()),
        _required("json_offset", pa.int64()),
        _required("json_length", pa.int32()),
        _required("average_rating", pa.float32()),
        _required("rating_number", pa.int64()),
        _required("review_count", pa.int64()),
        _required("has_image", pa.bool_()),
        _required("tokens", pa.list_(pa.int32())),
    ]
)

# data/predictions: one row a sample of an evaluated split.
PREDICTIONS = pa.schema(
    [
        _required("parent_asin", pa.string()),
        _required("category", pa.string()),
        _required("split", pa.string()),
        _required("average_rating", pa.float32()),
        _required("rating_number", pa.int64()),
        _required("has_image", pa.bool_()),
        _required("prediction", pa.float32()),
    ]
)

# What prediction checks of the CSV file of items before it reads them; the last three say what is wrong with a row.
INPUT = pa.schema(
    [
        _required("line", pa.string()),  # "line 7"
        pa.field("parent_asin", pa.string()),
        pa.field("not_text", pa.string()),  # a cell that is a list, but not of texts
        pa.field("outside", pa.string()),  # an image path that leaves the folder of images
        pa.field("missing", pa.string()),  # an image that is not there
    ]
)
