"""Where an item stands: its split and its band, as pure functions of its group and its stratum.

In: groups, rating values and counts of a category's items. Out: split names, positions and bands. Guaranteed
(promise 2): an item's split depends on its group alone; bands nest, are stratified to within one item a stratum,
and depend on nothing but the set of items: not on the row order, the partitioning or the fraction.
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

# The lowest rating_number of each count bucket: strata, and the report's table by count.
COUNT_BUCKETS = (0, 2, 5, 10, 20, 50, 100, 1000)

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def hash64(salt: str, *parts: str) -> int:
    """Return an unsigned 64-bit hash of the parts; another salt gives an unrelated hash."""
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8, key=salt.encode()[:64]).digest(), "little")


def unit(salt: str, *parts: str) -> float:
    """Return the hash of the parts as a number in [0, 1)."""
    return (hash64(salt, *parts) >> 11) / (1 << 53)


def split_of(group: str, salt: str, validation: float, test: float) -> str:
    """Return the split of a group: test, validation or train with the given shares, by its hash alone."""
    position = unit(f"{salt}/split", group)
    return TEST if position < test else VALIDATION if position < test + validation else TRAIN


def count_bucket(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the index in `COUNT_BUCKETS` of each count."""
    return np.searchsorted(COUNT_BUCKETS, counts, side="right") - 1


def positions(
    groups: list[str],
    ids: list[str],
    ratings: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    salt: str,
) -> npt.NDArray[np.float64]:
    """Rank the items of one split of one category within their strata.

    A stratum is a rating value (one decimal) and a count bucket. Its n items, ordered by hash of the group, ties by
    id, get u = (p + o) / n for p = 0 .. n-1, with a start o in [0, 1) hashed from the stratum. Taking u < f thus
    takes f * n items of every stratum, rounded up or down without bias, and a larger f takes a superset.

    Args:
        groups: the group id of each item.
        ids: its parent_asin, unique.
        ratings: average_rating, stars.
        counts: rating_number.
        salt: another salt, another order.

    Returns:
        u of each item, in [0, 1).
    """
    stars = np.rint(np.asarray(ratings) * 10).astype(np.int64)
    buckets = count_bucket(np.asarray(counts))
    order = sorted(range(len(ids)), key=lambda i: (stars[i], buckets[i], hash64(f"{salt}/order", groups[i]), ids[i]))
    result = np.empty(len(ids))
    edges = [
        k for k in range(len(order)) if k == 0 or _key(order[k], stars, buckets) != _key(order[k - 1], stars, buckets)
    ]
    for first, last in zip(edges, [*edges[1:], len(order)], strict=True):
        start = unit(f"{salt}/start", *map(str, _key(order[first], stars, buckets)))
        result[order[first:last]] = (np.arange(last - first) + start) / (last - first)
    return result


def _key(i: int, stars: npt.NDArray[np.int64], buckets: npt.NDArray[np.int64]) -> tuple[int, int]:
    return int(stars[i]), int(buckets[i])


def limit(bands: npt.NDArray[np.int64], fraction: float, count: int, minimum: int) -> int:
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
