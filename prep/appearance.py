"""When products appeared: the fraction of all products that appeared on an earlier day, for a split by time.

Input: buckets of items, and which items are the same product (schema `GROUPS`).
Output: for each group that has a time, the fraction of such groups that appeared on earlier days.
Guarantees: a pure function of the items, whatever their order, buckets and categories. Memory is bounded by one bucket
of all categories plus the items that are in groups of several.

A product appears with its first review (``first_review`` of data/items), or without reviews on the day that its detail
"Date First Available" names. A group of several items appears with its first one. Days are those of UTC.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dateutil import parser

from prep.core.tables.raw import LISTED

_MS_PER_DAY = 86_400_000
_DAY_ZERO, _DAYS = 36_525, 80_000  # days before 1970 that are counted, and days in all: 1870 to 2089
_DEFAULT = datetime(1970, 1, 1, tzinfo=UTC)  # for the parts that a date does not name
_DAYS_OF_GROUPS = pa.schema([("group", pa.string()), ("day", pa.int32())])


class Days(NamedTuple):
    """The days on which the products of a bucket appeared."""

    alone: npt.NDArray[np.int64]  # number of products of one item by day
    linked: pa.Table  # group and day of the items in groups of several


class Appearance(NamedTuple):
    """The days on which all products appeared."""

    earlier: npt.NDArray[np.float64]  # fraction of the products that appeared before each day
    groups: pa.Table  # group and day of the groups of several

    def of(self, ids: pa.Array, groups: pa.Array, days: Path) -> pa.Array:
        """Return the fraction of products that appeared before each item's, null for one without a time.

        Args:
            ids: parent_asin of items of a bucket.
            groups: the group of each.
            days: what `count_days` wrote of the bucket.
        """
        alone = pq.read_table(days)
        places = (
            pc.index_in(names, value_set=table[column].combine_chunks())
            for names, table, column in ((groups, self.groups, "group"), (ids, alone, "id"))
        )
        of_group, of_item = (
            table["day"].combine_chunks().take(place) for table, place in zip((self.groups, alone), places, strict=True)
        )
        return pa.array(self.earlier).take(pc.add(pc.coalesce(of_group, of_item), _DAY_ZERO))


def listed_day(details: str) -> int | None:
    """Return the day of "Date First Available" in the JSON text of an item's details, in days since 1970.

    It is None if there is none, or if it is no date of 1870 to 2089. An ambiguous date is read month first, and one
    without a day or a month as the first.
    """
    if LISTED not in details:
        return None
    try:
        return _day(str(json.loads(details)[LISTED]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


@lru_cache(100_000)  # dates repeat, and to parse one takes 0.1 ms
def _day(text: str) -> int | None:
    try:
        milliseconds = int(text)
    except ValueError:
        try:
            date = parser.parse(text.replace("\u200e", ""), default=_DEFAULT)
        except (ValueError, OverflowError):
            return None
        milliseconds = int(date.timestamp() * 1000)
    else:
        if 1870 <= milliseconds < 2090:  # a year
            milliseconds = int(datetime(milliseconds, 1, 1, tzinfo=UTC).timestamp() * 1000)
    day = milliseconds // _MS_PER_DAY
    return day if 0 <= day + _DAY_ZERO < _DAYS else None


def days_of(items: Path) -> pa.Array:
    """Return the day on which each item of a bucket appeared, int32, null without a time."""
    table = pq.read_table(items, columns=["first_review", "details"])
    first = table["first_review"].to_numpy(zero_copy_only=False)
    unreviewed = np.flatnonzero(np.isnan(first.astype(float)))
    listed = np.full(len(first), None)
    listed[unreviewed] = [listed_day(text) for text in table["details"].take(unreviewed).to_pylist()]
    reviewed = pa.array(np.floor_divide(first, _MS_PER_DAY), pa.float64(), from_pandas=True)
    reviewed = pc.if_else(pc.less(pc.abs(reviewed), _DAY_ZERO), reviewed, None).cast(pa.int64())
    return pc.coalesce(reviewed, pa.array(listed, pa.int64())).cast(pa.int32())


def count_days(bucket: Sequence[Path], grouped: pa.Table, out: Path) -> Days:
    """Count the days of one bucket of all categories, and write that of each product of one item.

    Args:
        bucket: the files of the bucket, one per category.
        grouped: the items in groups of several, schema `GROUPS`.
        out: the file to write; an id that is in several categories is one product, and has its first day.
    """
    ids = pa.concat_tables([pq.read_table(path, columns=["parent_asin"]) for path in bucket])["parent_asin"]
    days = pa.chunked_array([days_of(path) for path in bucket], pa.int32())
    groups = grouped["group"].take(pc.index_in(ids, value_set=grouped["parent_asin"].combine_chunks()))
    both = pa.table({"id": ids, "group": groups, "day": days}).filter(pc.is_valid(days))
    alone = both.filter(pc.is_null(both["group"])).group_by("id").aggregate([("day", "min")])
    alone = alone.rename_columns(["id", "day"])
    pq.write_table(alone, out)
    linked = both.filter(pc.is_valid(both["group"])).select(_DAYS_OF_GROUPS.names).cast(_DAYS_OF_GROUPS)
    return Days(np.bincount(alone["day"].to_numpy() + _DAY_ZERO, minlength=_DAYS), linked)


def appearance(counted: Iterable[Days]) -> Appearance | None:
    """Return the days on which all products appeared, None if no product has a time."""
    found = list(counted)
    groups = pa.concat_tables([_DAYS_OF_GROUPS.empty_table(), *(one.linked for one in found)])
    first = groups.group_by("group").aggregate([("day", "min")]).rename_columns(_DAYS_OF_GROUPS.names)
    products = sum((one.alone for one in found), np.zeros(_DAYS, np.int64))
    products = products + np.bincount(first["day"].to_numpy() + _DAY_ZERO, minlength=_DAYS)
    if not (total := products.sum()):
        return None
    return Appearance((np.cumsum(products) - products) / total, first)
