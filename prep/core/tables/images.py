"""data/images: one row per item of a sample part, in the same order: the outcome of its image, the bytes if "ok"."""

import pyarrow as pa

from prep.core.tables.column import required

# The outcomes of fetching an image: "ok", "no_url" (the item has none), and the errors that shards/fetch.py, client.py
# and pixels.py report.
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
        required("status", pa.int16()),  # HTTP status, 0 if there was no response
        required("source_bytes", pa.int32()),
        required("source_width", pa.int32()),
        required("source_height", pa.int32()),
        required("source_sha256", pa.string()),
        required("perceptual_hash", pa.uint64()),
        required("image", pa.binary()),  # JPEG at images.resolution, empty unless "ok"
    ]
)
