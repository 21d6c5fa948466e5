"""Assign splits and bands: pure functions of an item's group and stratum.

Input: groups, rating values and rating counts of a category's items.
Output: split names, positions and bands.
Guarantees: the split of an item depends only on its group, or on when the group appeared. Bands are nested and
stratified to within one item per stratum. They depend only on the set of items, not on the row order, the partitioning
or the fraction.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.core.hashes import hashes, units
from prep.core.parts import TEST, TRAIN, VALIDATION

# The lowest rating_number of each count bucket, for strata and for the report's table by count.
COUNT_BUCKETS = (0, 2, 5, 10, 20, 50, 100, 1000)


def split_of(groups: Sequence[str], salt: str, validation: float, test: float) -> npt.NDArray[np.str_]:
    """Return the split of each group: test, validation or train, by hash of the group.

    Args:
        groups: group ids.
        salt: ``sample.salt``.
        validation: fraction of the groups in the validation split.
        test: fraction of the groups in the test split.
    """
    return split_at(split_positions(groups, salt), validation, test)


def split_positions(groups: Sequence[str], salt: str) -> npt.NDArray[np.float64]:
    """Return the number in [0, 1) that decides the split of each group."""
    return units(f"{salt}/split", groups)


def split_at(position: npt.NDArray[np.float64], validation: float, test: float) -> npt.NDArray[np.str_]:
    """Return the split of each of `position`, from `split_positions` or `time_positions`."""
    return np.where(position < test, TEST, np.where(position < test + validation, VALIDATION, TRAIN))


def time_positions(appeared: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1] for `split_at`, smallest for the groups that appeared last.

    Args:
        appeared: fraction of all groups that appeared on an earlier day; NaN, without a time, becomes 1.
    """
    return np.nan_to_num(1 - appeared - 1e-12, nan=1.0)  # so that 1 - 0.9 is below 0.1


def order_of(groups: Sequence[str], salt: str) -> npt.NDArray[np.uint64]:
    """Return the sort key of items in a stratum: the hash of each item's group."""
    return hashes(f"{salt}/order", groups)


def count_bucket(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the index in `COUNT_BUCKETS` of each count."""
    return np.searchsorted(COUNT_BUCKETS, counts, side="right") - 1


def stratum_of(ratings: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """Return the stratum of each item: its rating rounded to one decimal and its count bucket, encoded as one number.

    Args:
        ratings: average_rating, stars.
        counts: rating_number.
    """
    return (np.rint(ratings * 10) * len(COUNT_BUCKETS) + count_bucket(counts)).astype(np.int16)


def names_of(strata: npt.NDArray[np.int16]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the rating in stars and the lowest rating_number of each stratum, as ``strata.csv`` names it."""
    stars, bucket = np.divmod(strata, len(COUNT_BUCKETS))
    return stars / 10, np.array(COUNT_BUCKETS)[bucket]


def positions(
    strata: npt.NDArray[np.int16], order: npt.NDArray[np.uint64], ids: pa.Array | pa.ChunkedArray, salt: str
) -> npt.NDArray[np.float64]:
    """Rank the items of one split of one category within their strata.

    The n items of a stratum, sorted by hash of the group and then by id, get u = (p + o) / n for p = 0 .. n-1, with an
    offset o in [0, 1) hashed from the stratum. Selecting u < f therefore selects f * n items of every stratum, rounded
    up or down without bias, and a larger f selects a superset.

    Args:
        strata: stratum of each item, from `stratum_of`.
        order: sort key of each item, from `order_of`.
        ids: parent_asin of each item, unique.
        salt: salt of the offsets.

    Returns:
        u of each item, in [0, 1).
    """
    table = pa.table({"stratum": strata, "order": order, "id": ids})
    ranked = pc.sort_indices(table, [(name, "ascending") for name in table.column_names]).to_numpy()
    present, first, size = np.unique(strata[ranked], return_index=True, return_counts=True)
    start = units(f"{salt}/start", [str(stratum) for stratum in present])
    place = np.arange(len(ranked)) - np.repeat(first, size)
    result = np.empty(len(ranked))
    result[ranked] = (place + np.repeat(start, size)) / np.repeat(size, size)
    return np.minimum(result, np.nextafter(1, 0))  # with an offset just below 1 the last item may round to 1


def least(u: npt.NDArray[np.float64], fraction: float, minimum: int) -> float:
    """Return `fraction`, or the least bound below which `minimum` items are selected if that is more.

    The paper evaluates on 10 % of max(20 %, 10,000) items of a category.

    Args:
        u: position of each item of a split of a category, from `positions`.
        fraction: ``sample.eval_fraction``.
        minimum: ``sample.eval_min_per_category``.
    """
    if not 0 < minimum < len(u):
        return 1.0 if minimum else fraction
    return max(fraction, float(np.nextafter(np.partition(u, minimum - 1)[minimum - 1], 1)))


def limit(bands: npt.NDArray[np.integer], fraction: float, count: int, minimum: int) -> int:
    """Return the number of bands that a fraction selects, or that are needed for `minimum` items if that is more.

    The paper uses max(20 %, 10,000) items of a category.

    Args:
        bands: band of each training item of a category.
        fraction: fraction of the training items; a whole number of bands.
        count: total number of bands.
        minimum: ``sample.min_per_category``.
    """
    reached = np.cumsum(np.bincount(bands, minlength=count)) >= min(minimum, len(bands))
    return max(round(fraction * count), int(np.argmax(reached)) + 1)
