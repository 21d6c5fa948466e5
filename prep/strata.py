"""Where an item stands: its split and its band, as pure functions of its group and its stratum.

In: groups, rating values and counts of a category's items. Out: split names, positions and bands. Guaranteed
(promise 2): an item's split depends on its group alone; bands nest, are stratified to within one item a stratum,
and depend on nothing but the set of items: not on the row order, the partitioning or the fraction.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.core.hashes import hashes, units
from prep.core.parts import TEST, TRAIN, VALIDATION

# The lowest rating_number of each count bucket: strata, and the report's table by count.
COUNT_BUCKETS = (0, 2, 5, 10, 20, 50, 100, 1000)


def split_of(groups: Sequence[str], salt: str, validation: float, test: float) -> npt.NDArray[np.str_]:
    """Return the split of each group: test, validation or train with the given shares, by its hash alone."""
    position = units(f"{salt}/split", groups)
    return np.where(position < test, TEST, np.where(position < test + validation, VALIDATION, TRAIN))


def order_of(groups: Sequence[str], salt: str) -> npt.NDArray[np.uint64]:
    """Return what orders the items of a stratum: the hash of each item's group."""
    return hashes(f"{salt}/order", groups)


def count_bucket(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the index in `COUNT_BUCKETS` of each count."""
    return np.searchsorted(COUNT_BUCKETS, counts, side="right") - 1


def stratum_of(ratings: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """Return the stratum of each item: ten times its rating value (one decimal), and its count bucket, as one number.

    Args:
        ratings: average_rating, stars.
        counts: rating_number.
    """
    return (np.rint(ratings * 10).astype(np.int16) * len(COUNT_BUCKETS) + count_bucket(counts)).astype(np.int16)


def positions(
    strata: npt.NDArray[np.int16], order: npt.NDArray[np.uint64], ids: pa.Array | pa.ChunkedArray, salt: str
) -> npt.NDArray[np.float64]:
    """Rank the items of one split of one category within their strata.

    The n items of a stratum, ordered by hash of the group, ties by id, get u = (p + o) / n for p = 0 .. n-1, with a
    start o in [0, 1) hashed from the stratum. Taking u < f thus takes f * n items of every stratum, rounded up or
    down without bias, and a larger f takes a superset.

    Args:
        strata: of each item, by `stratum_of`.
        order: of each item, by `order_of`.
        ids: parent_asin of each item, unique.
        salt: another salt, other starts.

    Returns:
        u of each item, in [0, 1).

    Source: design, section 4 (band).
    """
    table = pa.table({"stratum": strata, "order": order, "id": ids})
    ranked = pc.sort_indices(table, [(name, "ascending") for name in table.column_names]).to_numpy()
    present, first, size = np.unique(strata[ranked], return_index=True, return_counts=True)
    start = units(f"{salt}/start", [str(stratum) for stratum in present])
    place = np.arange(len(ranked)) - np.repeat(first, size)
    result = np.empty(len(ranked))
    result[ranked] = (place + np.repeat(start, size)) / np.repeat(size, size)
    return np.minimum(result, np.nextafter(1, 0))  # a start just below 1 may round the last one up


def limit(bands: npt.NDArray[np.integer], fraction: float, count: int, minimum: int) -> int:
    """Return the number of bands that a fraction takes, at least enough to hold `minimum` items.

    Args:
        bands: the band of each training item of a category.
        fraction: of the training items; a whole number of bands.
        count: how many bands there are.
        minimum: ``sample.min_per_category``.

    Source: design, section 4 (the paper takes max(20 %, 10,000) items of a category).
    """
    reached = np.cumsum(np.bincount(bands, minlength=count)) >= min(minimum, len(bands))
    return max(round(fraction * count), int(np.argmax(reached)) + 1 if minimum else 0)
