"""The synthetic twin of Amazon Reviews 2023: rows with the distributions of the real ones, and generated text.

Input: `Figures`, and how many items there are. Output: lines of item metadata and of reviews, in the layout of the
dataset. Guarantees: every row is a function of its number, so that any part can be written alone, by any process.

What real data has and the figures do not say: one item in a hundred is of a product that other categories have too,
every second time under the same id; one in a hundred titles differs from another one by a word; one item in 300 has a
placeholder image; one review in a hundred is an exact duplicate and one in 200 a second review of the same user; one in
a million has a rating of 0.0.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.rehearsal.figures import CATEGORIES, COUNT_GROUPS, GRID, SCRIPTS, Figures, ListFigures, draw
from benchmarks.rehearsal.text import Floats, Numbers, mixed, texts, uniform
from prep.strata import count_bucket

ROWS = 20_000  # lines written at once
PICTURES = 16  # numbers of pictures per item
COPIES, PLACEHOLDER = 1 << 26, 1 << 27  # numbers of the products of several categories begin here; of the placeholder
HOST = "https://m.media-amazon.com/images/I/"
_REVIEW_LENGTH = np.exp(np.linspace(np.log(4), np.log(4000), len(GRID)) * 0.92)  # characters; no real ones are here
_FIRST, _LAST = 900_000_000_000, 1_694_000_000_000  # milliseconds since 1970 of a review
_COPIED, _VARIED, _PLACEHOLDER, _SAME_LINE, _SAME_USER, _ZERO = 0.01, 0.01, 1 / 300, 0.01, 0.005, 1e-6


class Picture(msgspec.Struct):
    """An image of an item."""

    thumb: str
    large: str
    variant: str
    hi_res: str | None


class Item(msgspec.Struct):
    """A line of item metadata."""

    main_category: str | None
    title: str | None
    average_rating: float
    rating_number: int
    features: list[str]
    description: list[str]
    price: float | str | None
    images: list[Picture]
    videos: list[dict[str, str]]
    store: str | None
    categories: list[str]
    details: dict[str, str]
    parent_asin: str
    bought_together: None = None


class Review(msgspec.Struct):
    """A review."""

    rating: float
    title: str
    text: str
    images: list[dict[str, str]]
    asin: str
    parent_asin: str
    user_id: str
    timestamp: int
    helpful_vote: int
    verified_purchase: bool


class Share(NamedTuple):
    """A category of the twin."""

    first: int  # number of its first item
    items: int
    reviews: int


def shares(items: int) -> dict[str, Share]:
    """Return the categories with their real proportions, for a total of `items`."""
    total = sum(category.items for category in CATEGORIES.values())
    found, first = {}, 0
    for name, category in CATEGORIES.items():
        count = max(10, round(items * category.items / total))
        found[name] = Share(first, count, round(count * category.reviews / category.items))
        first += count
    return found


class Twin:
    """The twin with a number of items over all categories.

    Args:
        figures: what the rows are drawn from.
        items: number of items.
    """

    def __init__(self, figures: Figures, items: int) -> None:
        self._figures, self._items = figures.items, items
        self._ratings = figures.ratings
        self.shares = shares(items)

    def item_lines(self, category: str) -> Iterator[bytes]:
        """Yield the metadata of a category, `ROWS` lines at a time."""
        share = self.shares[category]
        encode = msgspec.json.Encoder().encode_lines
        for begin in range(0, share.items, ROWS):
            numbers = np.arange(share.first + begin, share.first + min(begin + ROWS, share.items), dtype=np.uint64)
            yield encode(self._item_rows(category, numbers))

    def review_lines(self, category: str) -> Iterator[bytes]:
        """Yield the reviews of a category, `ROWS` lines at a time."""
        share = self.shares[category]
        numbers = np.arange(share.first, share.first + share.items, dtype=np.uint64)
        stars, counts = self._stars(category, numbers)
        weights = np.cumsum(counts**0.8)
        asins = self._asins(share, numbers)
        encode = msgspec.json.Encoder().encode_lines
        for begin in range(0, share.reviews, ROWS):
            rows = np.arange(begin, min(begin + ROWS, share.reviews), dtype=np.uint64)
            salt = np.uint64(share.first << 28)  # reviews of another category are others
            yield encode(self._review_rows(rows + salt, stars, weights / weights[-1], asins))

    def _stars(self, category: str, numbers: Numbers) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Return average_rating and rating_number."""
        ratings = self._ratings[CATEGORIES[category].ratings]
        counts = np.interp(uniform(numbers, 1), GRID, ratings.rating_number).astype(np.int64)
        tables = np.cumsum(ratings.rating, axis=1)[count_bucket(counts)]
        stars = (uniform(numbers, 2)[:, None] * tables[:, -1:] >= tables).sum(axis=1)
        return 1 + stars.clip(0, 40) / 10, counts

    def _products(self, share: Share, numbers: Numbers) -> Numbers:
        """Return the product of each item; items of the same product have the same title and store.

        Products of several categories have numbers of their own.
        """
        u = uniform(numbers, 3)
        near = self._figures.same_title / 2
        neighbours = numbers - np.uint64(1) - mixed(numbers, 4) % np.uint64(3)
        products = np.where((u < near) & (numbers >= share.first + 4), neighbours, numbers)
        return np.where(u > 1 - _COPIED, self._copied(numbers), products)

    def _copied(self, numbers: Numbers) -> Numbers:
        return np.uint64(COPIES) + mixed(numbers, 5) % np.uint64(max(1, round(self._items * _COPIED / 2)))

    def _asins(self, share: Share, numbers: Numbers) -> list[str]:
        products = self._products(share, numbers)
        copied = (products >= COPIES) & (mixed(numbers, 6) % np.uint64(2) == 0)
        codes = np.where(copied, products, numbers) * np.uint64(2654435761) & np.uint64(0xFFFFFFFF)  # one to one
        return [f"B{code:09X}" for code in codes.tolist()]

    def _item_rows(self, category: str, numbers: Numbers) -> list[Item]:
        """Return the items with these numbers."""
        figures, share = self._figures, self.shares[category]
        products = self._products(share, numbers)
        stars, counts = self._stars(category, numbers)
        script = np.searchsorted(np.cumsum([figures.script[s] for s in SCRIPTS])[:-1], uniform(products, 10), "right")
        plain = np.zeros_like(script)
        absent = {
            name: uniform(numbers, 20 + place) < fraction
            for place, (name, fraction) in enumerate(figures.absent.items())
        }
        wanted = CATEGORIES[category]
        has_features = uniform(numbers, 11) < wanted.features
        described = np.where(has_features, wanted.description, wanted.description * (1 - figures.absent["description"]))
        has_description = uniform(numbers, 12) < described
        columns: list[Sequence[Any]] = [
            _optional([_main_category(category)] * len(numbers), absent["main_category"]),
            _optional(self._titles(products, numbers, script), absent["title"]),
            stars.tolist(),
            counts.tolist(),
            _list_texts(figures.features, numbers, has_features, script, 100),
            _list_texts(figures.description, numbers, has_description, script, 200),
            _optional(np.round(np.interp(uniform(numbers, 13), GRID, figures.price), 2).tolist(), absent["price"]),
            self._images(products, numbers, absent["images"]),
            [_videos(count) for count in draw(figures.videos, uniform(numbers, 14)).tolist()],
            _optional(
                texts(
                    mixed(products % np.uint64(97_003), 15),
                    _lengths(figures.store, products % np.uint64(97_003), 16),
                    plain,
                ),
                absent["store"],
            ),
            [[] for _ in numbers],
            self._details(numbers),
            self._asins(share, numbers),
        ]
        columns[6] = ["None" if u < 0.002 else price for u, price in zip(uniform(numbers, 17), columns[6], strict=True)]
        return list(map(Item, *columns))

    def _titles(self, products: Numbers, numbers: Numbers, script: npt.NDArray[np.int64]) -> list[str]:
        """Return the titles; a copy of a product has it in capitals every second time."""
        varied = uniform(numbers, 18) < _VARIED
        products = np.where(varied, products - products % np.uint64(50), products)
        found = texts(mixed(products, 19), _lengths(self._figures.title, products, 30), np.where(varied, 0, script))
        copies = (products != numbers) & ~varied & (mixed(numbers, 31) % np.uint64(2) == 0)
        for row in np.flatnonzero(copies).tolist():
            found[row] = found[row].upper()
        for row in np.flatnonzero(varied).tolist():
            found[row] += f", {numbers[row] % 50}"
        return found

    def _images(self, products: Numbers, numbers: Numbers, absent: npt.NDArray[np.bool_]) -> list[list[Picture]]:
        """Return the images: every second copy has the picture of its product, some more have another item's."""
        figures, u = self._figures, uniform(numbers, 32)
        shared = (products != numbers) & (u < 0.5)
        more = (u > 1 - figures.same_image / 2) & (numbers > 8)
        owners = np.where(shared, products, np.where(more, numbers - np.uint64(7), numbers))
        owners = np.where(uniform(numbers, 33) < _PLACEHOLDER, np.uint64(PLACEHOLDER), owners)
        counts = np.where(absent, 0, draw(figures.images, uniform(numbers, 34)))
        no_hi_res = uniform(owners, 35) < figures.no_hi_res
        return [
            [_picture(owner * PICTURES + place, place, none) for place in range(count)]
            for owner, count, none in zip(owners.tolist(), counts.tolist(), no_hi_res.tolist(), strict=True)
        ]

    def _details(self, numbers: Numbers) -> list[dict[str, str]]:
        """Return the details: the keys of an item are drawn by their frequency."""
        figures = self._figures
        counts = draw(figures.details, uniform(numbers, 36)).clip(0, len(figures.key))
        places = np.arange(len(figures.key), dtype=np.uint64)
        cells = numbers[:, None] * np.uint64(len(places)) + places
        order = np.argsort(-np.log1p(-uniform(cells, 37)) / np.array(figures.key), axis=1)
        chosen = np.concatenate([keys[:count] for keys, count in zip(order, counts.tolist(), strict=True)])
        owners = np.repeat(numbers, counts) * np.uint64(64) + chosen.astype(np.uint64)
        u, lengths = uniform(owners, 39), np.empty(len(owners), np.int64)
        for key, quantiles in enumerate(figures.value):
            lengths[chosen == key] = np.interp(u[chosen == key], GRID, quantiles).astype(np.int64)
        values = iter(texts(mixed(owners, 38), lengths, np.zeros(len(owners), np.int64)))
        names = _keys(len(places))
        return [
            {names[key]: next(values) for key in keys[:count].tolist()}
            for keys, count in zip(order, counts.tolist(), strict=True)
        ]

    def _review_rows(self, numbers: Numbers, stars: Floats, weights: Floats, asins: list[str]) -> list[Review]:
        """Return the reviews with these numbers.

        Args:
            numbers: of the reviews.
            stars: average_rating of each item of the category.
            weights: cumulative fraction of the reviews that are of the items up to each one.
            asins: ids of the items.
        """
        own = numbers - (uniform(numbers, 50) < _SAME_LINE).astype(np.uint64)  # a duplicate is the row before
        visit = own - (uniform(own, 51) < _SAME_USER).astype(np.uint64)  # the user and the item
        items = np.searchsorted(weights, uniform(visit, 52))
        chance = (stars[items] - 1) / 4
        extreme = np.where(uniform(own, 53) < chance, 5, 1)
        middle = 1 + sum((uniform(own, 54 + throw) < chance).astype(np.int64) for throw in range(4))
        rating = np.where(uniform(own, 60) < 0.6, extreme, middle).astype(float)
        rating[(uniform(own, 61) < _ZERO) | (own % np.uint64(1 << 28) == 12)] = 0.0
        users = (4e7 * uniform(visit, 62) ** 2.5).astype(np.int64).tolist()  # a few write very many
        script = draw({0: 0.90, 1: 0.04, 2: 0.01, 4: 0.02, 5: 0.03}, uniform(own, 63))
        length = np.interp(uniform(own, 64), GRID, _REVIEW_LENGTH).astype(np.int64)
        asin = [asins[item] for item in items.tolist()]
        columns = [
            rating.tolist(),
            texts(mixed(own, 65), 4 + (60 * uniform(own, 66) ** 2).astype(np.int64), script),
            texts(mixed(own, 67), length, script),
            [[] for _ in own],
            asin,
            asin,
            [f"A{user * 2654435761 % (1 << 52):027X}" for user in users],
            (_LAST - (_LAST - _FIRST) * uniform(own, 68) ** 2.2).astype(np.int64).tolist(),
            (1 / (1 - 0.999 * uniform(own, 69)) ** 0.6 - 1).astype(np.int64).tolist(),
            (uniform(own, 70) < 0.9).tolist(),
        ]
        return list(map(Review, *columns))


def _main_category(category: str) -> str:
    return category.replace("_and_", " & ").replace("_", " ")


def _optional(values: Sequence[Any], absent: npt.NDArray[np.bool_]) -> list[Any]:
    return [None if none else value for value, none in zip(values, absent.tolist(), strict=True)]


def _lengths(quantiles: list[float], numbers: Numbers, salt: int) -> npt.NDArray[np.int64]:
    return np.interp(uniform(numbers, salt), GRID, quantiles).astype(np.int64)


def _positions(counts: npt.NDArray[np.int64]) -> Numbers:
    """Return 0 .. n - 1 for each count n, one after another."""
    ends = np.cumsum(counts)
    return (np.arange(counts.sum()) - np.repeat(ends - counts, counts)).astype(np.uint64)


def _list_texts(
    figures: ListFigures, numbers: Numbers, present: npt.NDArray[np.bool_], script: npt.NDArray[np.int64], salt: int
) -> list[list[str]]:
    """Return a list of texts for each item, an empty one where `present` is false."""
    counts = np.where(present, draw(figures.count, uniform(numbers, salt)), 0)
    group = np.searchsorted(COUNT_GROUPS, counts.clip(1), side="right") - 1
    total = np.empty(len(numbers))
    for number, quantiles in enumerate(figures.length):
        rows = group == number
        total[rows] = np.interp(uniform(numbers[rows], salt + 1), GRID, quantiles)
    owners = np.repeat(np.arange(len(numbers)), counts)
    elements = numbers[owners] * np.uint64(1024) + _positions(counts)
    part = 0.3 + uniform(elements, salt + 2)
    length = total[owners] * part / np.bincount(owners, part, len(numbers))[owners]
    found = texts(mixed(elements, salt + 3), np.rint(length).astype(np.int64).clip(1), script[owners])
    ends = np.cumsum(counts).tolist()
    return [found[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]


def _picture(number: int, place: int, no_hi_res: bool) -> Picture:
    """Return a picture; in its address 7 stands for the large form and 4 for the small one of the same picture."""
    small = f"{HOST}41{number:08x}L._AC_"
    hi_res = None if no_hi_res else f"{HOST}71{number:08x}L._AC_SL1500_.jpg"
    return Picture(f"{small}US40_.jpg", f"{small}.jpg", f"PT{place:02d}" if place else "MAIN", hi_res)


def _videos(count: int) -> list[dict[str, str]]:
    return [{"title": f"Video {n}", "url": f"https://www.amazon.com/vdp/{n:032x}", "user_id": ""} for n in range(count)]


@cache
def _keys(count: int) -> list[str]:
    numbers = np.arange(count, dtype=np.uint64)
    found = texts(
        mixed(numbers, 40), 5 + (numbers * np.uint64(7) % np.uint64(18)).astype(np.int64), np.zeros(count, np.int64)
    )
    return [text.strip().title() + f" {place}" for place, text in enumerate(found)]
