"""The numbers that describe an item beside its texts and image: columns of data/sample, and of the shards.

`prep.core.tabular` computes them. A column is known at launch, or only later: price and videos are as they were when
the dataset was collected in 2023, and a list price is named where an item still has a price.
"""

from typing import Literal, NamedTuple

Known = Literal["at_launch", "later"]
PRICES = (0.01, 1e9)  # least and largest price
YEARS = (1800, 2100)  # the first and the last year


class Column(NamedTuple):
    """A column: its name, when it is known, what it means, and its range."""

    name: str
    known: Known
    meaning: str
    least: float
    most: float | None  # None if there is no limit


def _length(field: str) -> Column:
    return Column(f"{field}_length", "at_launch", f"characters of `{field}`; missing if it is empty", 1, None)


COLUMNS = (
    Column("price", "later", "the price, in the currency of the source", *PRICES),
    Column("price_missing", "later", "1 if the price is missing, else 0", 0, 1),
    Column("list_price", "later", "the list price that the details name", *PRICES),
    *map(_length, ("title", "features", "description", "details")),
    Column("feature_count", "at_launch", "number of features", 0, None),
    Column("detail_count", "at_launch", "number of details", 0, None),
    Column("image_count", "at_launch", "number of images in the metadata", 0, None),
    Column("video_count", "later", "number of videos in the metadata", 0, None),
    Column("category_count", "at_launch", "number of categories", 0, None),
    Column("title_numbers", "at_launch", "how many numbers the title has; missing if it is empty", 0, None),
    Column("title_year", "at_launch", "the last year in brackets in the title, as films have it", *YEARS),
    Column("available_year", "at_launch", "the year of `Date First Available` in the details", *YEARS),
    Column(
        "title_truncated", "at_launch", "1 if the title ends with an ellipsis, else 0; missing without a title", 0, 1
    ),
)
TABULAR_NAMES = tuple(column.name for column in COLUMNS)
