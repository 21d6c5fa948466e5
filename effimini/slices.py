"""Slices of the test split: how good the scores are in each, how good they could be, and which input moves them.

Input: the samples of the test split with their predictions. Output: one `Slice` per group of each grouping: category,
rating count, script, price, missing image and texts. Guarantees: deterministic; the metadata is read once, one sample
after another, and a few bytes of each are kept.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec
import numpy as np
import numpy.typing as npt

from effimini import metrics
from effimini.ceiling import ceiling, ceiling_interval
from effimini.metrics import Scatter, Slice, Stars
from prep.strata import COUNT_BUCKETS, count_bucket

if TYPE_CHECKING:
    from shards.stream import ShardDataset

SMALL = 30  # samples that a PLCC or a ceiling needs
WIDE = 0.3  # the widest interval that a ceiling is shown with
ALL = "all"  # grouping and group of the whole split
_LETTERS = 400  # characters of a text whose script is determined
_EAST_ASIAN = {"CJK", "HIRAGANA", "KATAKANA"}

Chosen = npt.NDArray[np.bool_]


class Predicted(NamedTuple):
    """The stars of each predictor for the samples of the test split."""

    model: Stars
    without_image: Stars  # of the same model
    without_text: Stars
    baselines: Mapping[str, Stars]


class _Group(NamedTuple):
    """The samples of a group."""

    by: str
    name: str
    chosen: Chosen


def slices(
    test: "ShardDataset", predicted: Predicted, scatter: Scatter, resamples: int, seed: int
) -> tuple[Slice, ...]:
    """Return all slices that have samples; the first is the whole split.

    Args:
        test: the samples.
        predicted: the stars of each predictor.
        scatter: the result of `effimini.ceiling.scatter_of_labels`.
        resamples: number of resamples of an interval.
        seed: seed of the resamples.
    """
    return tuple(
        _measure(group, test, predicted, scatter, (resamples, seed)) for group in _groups(test) if group.chosen.any()
    )


def count_bucket_names() -> list[str]:
    """Return the name of each bucket of rating_number: 0-1, 2-4, ... 1000+."""
    names = [f"{low}-{high - 1}" for low, high in pairwise(COUNT_BUCKETS)]
    return [*names, f"{COUNT_BUCKETS[-1]}+"]


def script(text: str) -> str:
    """Return the script of most letters of a text: Latin, Cyrillic, Han or kana, ...; "no letters" if it has none.

    Only the first `_LETTERS` characters are read. A script is not a language: English and Spanish are both Latin.
    """
    begin = unicodedata.normalize("NFKC", text[:_LETTERS])
    found = Counter(_script_of(letter) for letter in begin if letter.isalpha())
    return min(found, key=lambda name: (-found[name], name)) if found else "no letters"


@lru_cache(10_000)
def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "other").split()[0]
    return "Han or kana" if name in _EAST_ASIAN else name.capitalize()


def _groups(test: "ShardDataset") -> Iterator[_Group]:
    """Yield the whole split and the groups of each grouping; some may be empty."""
    yield _Group(ALL, ALL, np.ones(len(test), bool))
    category = np.array(test.categories)
    yield from (_Group("category", name, category == name) for name in dict.fromkeys(test.categories))
    bucket = count_bucket(test.rating_number)
    yield from (_Group("rating_number", name, bucket == i) for i, name in enumerate(count_bucket_names()))
    yield from _two("image", test.has_image)
    scripts: dict[str, int] = {}
    found = np.fromiter(
        (_facts(cast(Mapping[str, object], test.metadata(i)), scripts) for i in range(len(test))), _FACTS, len(test)
    )
    yield from _two("features", found["features"])
    yield from _two("description", found["description"])
    sizes = np.bincount(found["script"], minlength=len(scripts))
    for name in sorted(scripts, key=lambda name: (-sizes[scripts[name]], name)):
        yield _Group("script", name, found["script"] == scripts[name])
    yield from _price_bands(test.tabular_column("price"))


_FACTS = np.dtype([("script", np.uint16), ("features", bool), ("description", bool)])


def _facts(metadata: Mapping[str, object], scripts: dict[str, int]) -> tuple[int, bool, bool]:
    """Return `_FACTS` of a sample. A script that is new gets the next number."""
    texts = {name: str(metadata[name]).strip() for name in ("title", "features", "description")}
    number = scripts.setdefault(script(" ".join(texts.values())), len(scripts))
    return number, bool(texts["features"]), bool(texts["description"])


def _two(field: str, present: Chosen) -> Iterator[_Group]:
    yield _Group(field, f"with {field}", present)
    yield _Group(field, f"without {field}", ~present)


def _price_bands(price: npt.NDArray[np.float32]) -> Iterator[_Group]:
    """Yield the quartiles of the prices, and the samples without one; nothing if no sample has one."""
    priced = price > 0  # not NaN either
    if not priced.any():
        return
    edges = np.unique(np.quantile(price[priced], [0.25, 0.5, 0.75], method="lower"))
    band = np.searchsorted(edges, price, side="left")
    names = [f"up to {edges[0]:,.2f}", *(f"over {low:,.2f} to {high:,.2f}" for low, high in pairwise(edges))]
    for i, name in enumerate([*names, f"over {edges[-1]:,.2f}"]):
        yield _Group("price", name, priced & (band == i))
    yield _Group("price", "no price", ~priced)


def _measure(
    group: _Group, test: "ShardDataset", predicted: Predicted, scatter: Scatter, resampling: tuple[int, int]
) -> Slice:
    """Return what is known of a group."""
    labels, ours = test.labels[group.chosen], predicted.model[group.chosen]
    without = [stars[group.chosen] for stars in (predicted.without_image, predicted.without_text)]
    measured = Slice(
        by=group.by,
        group=group.name,
        samples=len(labels),
        label=_rounded(labels.mean(dtype=np.float64)),
        mae=_rounded(metrics.mae(ours, labels)),
        moved_without_image=_rounded(metrics.mae(ours, without[0])),
        moved_without_text=_rounded(metrics.mae(ours, without[1])),
    )
    if len(labels) < SMALL or np.ptp(labels) == 0:
        reason = f"fewer than {SMALL} samples" if len(labels) < SMALL else "all labels are equal"
        return msgspec.structs.replace(measured, note=reason)
    plcc = metrics.plcc(ours, labels)
    low, high = metrics.plcc_interval(ours, labels, *resampling)
    measured = msgspec.structs.replace(
        measured,
        plcc=_rounded(plcc),
        plcc_low=_rounded(low),
        plcc_high=_rounded(high),
        plcc_without_image=_rounded(metrics.plcc(without[0], labels)),
        plcc_without_text=_rounded(metrics.plcc(without[1], labels)),
        baselines={
            name: _rounded(metrics.plcc(stars[group.chosen], labels)) for name, stars in predicted.baselines.items()
        },
    )
    return _with_ceiling(measured, plcc, labels, test.rating_number[group.chosen], scatter, resampling)


def _with_ceiling(
    measured: Slice,
    plcc: float,
    labels: Stars,
    counts: npt.NDArray[np.int64],
    scatter: Scatter,
    resampling: tuple[int, int],
) -> Slice:
    """Return the slice with its ceiling, or with the reason why it has none."""
    value, (low, high) = ceiling(labels, counts, scatter.value), ceiling_interval(labels, counts, scatter, *resampling)
    if high - low > WIDE:
        return msgspec.structs.replace(measured, note=f"ceiling uncertain: {low:.2f} to {high:.2f}")
    if value == 0:
        return msgspec.structs.replace(measured, note="labels vary no more than noise does")
    return msgspec.structs.replace(
        measured,
        ceiling=_rounded(value),
        ceiling_low=_rounded(low),
        ceiling_high=_rounded(high),
        noise_share=_rounded(min(1.0, (1 - value) / (1 - plcc))) if plcc < 1 else None,
    )


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 6)
