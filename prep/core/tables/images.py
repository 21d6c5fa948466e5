"""data/images: the outcome of each item of a sample part, in the same order, with the bytes where it is "ok"."""

import pyarrow as pa

from prep.core.tables.column import required

# What can come of asking for an image: it, no URL to ask, or the word of shards/fetch.py, client.py or pixels.py.
OK, NO_URL = "ok", "no_url"
OUTCOMES = (
    *(OK, NO_URL, "bad_url", "gone", "refused", "server_error", "timeout", "unreachable", "too_large"),
    *("not_an_image", "corrupt", "too_many_pixels", "too_small"),
)

IMAGES = pa.schema(
    [
        required("parent_asin", pa.string()),
        required("outcome", pa.string()),
        required("url", pa.string()),
        required("status", pa.int16()),  # HTTP, 0 without an answer
        required("tries", pa.int16()),
        required("source_bytes", pa.int32()),
        required("source_width", pa.int32()),
        required("source_height", pa.int32()),
        required("source_sha256", pa.string()),
        required("perceptual_hash", pa.uint64()),
        required("image", pa.binary()),  # JPEG at training size, empty unless "ok"
    ]
)
