"""data/shards: the JSON metadata of a sample, and the index of a tar."""

from typing import Annotated, NotRequired, TypedDict

import pyarrow as pa
from msgspec import Meta

from prep.core.tables.column import required
from prep.core.tables.tabular import TABULAR_NAMES

STARS = (1, 5)  # least and largest average rating
COUNTS = (0, 2**53)  # least and largest number of ratings or reviews, those that a float64 counts exactly
_Count = Annotated[int, Meta(ge=COUNTS[0], le=COUNTS[1])]


class SampleMetadata(TypedDict):
    """The metadata of a sample: the keys of its JSON, in this order."""

    parent_asin: str
    category: str
    main_category: str
    title: str
    features: str
    description: str
    store: str
    details: str
    average_rating: Annotated[float, Meta(ge=STARS[0], le=STARS[1])]
    rating_number: _Count
    review_count: _Count
    has_image: bool
    tabular: NotRequired[list[float | None]]  # in the order of the manifest; missing in shards of a format before 5


METADATA_FIELDS = tuple(SampleMetadata.__annotations__)
TABULAR = METADATA_FIELDS[-1]


class IndexRow(TypedDict):
    """A row of an index without the token ids: where a sample's members are in the tar, and values from its JSON."""

    key: str
    jpg_offset: int
    jpg_length: int
    json_offset: int
    json_length: int
    average_rating: NotRequired[float]  # this and the following are missing if the JSON cannot be read
    rating_number: NotRequired[int]
    review_count: NotRequired[int]
    has_image: NotRequired[bool]
    tabular: NotRequired[list[float]]  # NaN where it is missing


def index_schema(columns: int) -> pa.Schema:
    """Return the schema of an index with `columns` tabular columns."""
    tabular = [required(TABULAR, pa.list_(required("item", pa.float32()), columns))] if columns else []
    return pa.schema([*_INDEX, *tabular])


_INDEX = (
    required("key", pa.string()),
    required("jpg_offset", pa.int64()),
    required("jpg_length", pa.int32()),
    required("json_offset", pa.int64()),
    required("json_length", pa.int32()),
    required("average_rating", pa.float32()),
    required("rating_number", pa.int64()),
    required("review_count", pa.int64()),
    required("has_image", pa.bool_()),
    required("tokens", pa.list_(pa.int32())),
)
INDEX = index_schema(len(TABULAR_NAMES))
