"""How true a sample is: ours beside the reference's own way, on the same items.

    python -m benchmarks.sampling [--items 200000] [--seeds 10]

In: made items (`benchmarks.scale`) in two categories with titles and images in common, and the films of the corpus
(EFFIMINI_CORPUS, or ../shared/corpus). Out: tables. The reference's way: of each category max(20 %, 10,000) items drawn
by pandas (of the films 20 %, as no category has so many), then all of them split 80/10/10 by scikit-learn, stratified
on the value of average_rating, values with 50 items or fewer merged (reference, section 1); it is drawn with several
seeds. Both draw from the items that pass our filter. Guaranteed: a deviation is the largest difference, over rating
values (or count buckets), between the share among all items and among the training (or test) items drawn; a product is
a group of data/groups. Ours splits by a hash of the product, whatever its rating, and is stratified within a split, so
it stands beside the items of the same split too.
"""

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.model_selection import train_test_split

from benchmarks.scale import make, parameters
from benchmarks.tables import table
from prep import strata
from prep.core.params import Params, load_params
from prep.core.parts import TEST, TRAIN, VALIDATION, part_files
from prep.download import download
from prep.groups import groups
from prep.join import join
from prep.sample import sample

BUILD = Path("build/bench-sampling")
FRACTIONS = (0.2, 0.4)
COLUMNS = ["parent_asin", "category", "group", "split", "average_rating", "rating_number"]
RARE = 50  # values with as many items or fewer are one stratum of the reference


class Figures(NamedTuple):
    """What is said of a way to sample; shares, but for `leaks`."""

    train_rating: float
    train_count: float
    test_rating: float
    test_count: float
    leaks: float  # products in two splits or more, at the smaller fraction
    kept: float  # of the test items of the smaller fraction, in test at the larger one
    trained: float  # of them, in train at the larger one


def ours(params: Params, data: Path, fraction: float, evaluation: float) -> pd.DataFrame:
    """Run the stage on every category and return the items that it takes."""
    params = replace(params, sample=replace(params.sample, fraction=fraction, eval_fraction=evaluation))
    for category in params.source.categories:
        sample(category, params, data)
    parts = [path for c in params.source.categories for path in part_files(data / "sample" / c)]
    return pa.concat_tables([pq.read_table(path, columns=COLUMNS) for path in parts]).to_pandas()


def reference(items: pd.DataFrame, fraction: float, minimum: int, seed: int) -> pd.DataFrame:
    """Sample and split the reference's way."""
    drawn = [
        each.sample(min(len(each), max(int(len(each) * fraction), minimum)), random_state=seed)
        for _, each in items.groupby("category")
    ]
    taken = pd.concat(drawn, ignore_index=True)
    train, rest = train_test_split(taken, test_size=0.2, random_state=seed, stratify=_strata(taken))
    validation, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=_strata(rest))
    splits = {TRAIN: train, VALIDATION: validation, TEST: test}
    return pd.concat([each.assign(split=name) for name, each in splits.items()])


def _strata(items: pd.DataFrame) -> "pd.Series[str]":
    """Return the rating value of each item, one word for all the rare ones; one value if so few are rare."""
    values = items["average_rating"].astype(str)
    counts = values.map(values.value_counts())
    merged = values.where(counts > RARE, "rare")
    if (merged == "rare").sum() == 1:  # scikit-learn refuses a stratum of one
        merged = values.where(counts > RARE, values[counts > RARE].mode()[0])
    return merged


def figures(items: pd.DataFrame, small: pd.DataFrame, large: pd.DataFrame, *, within: bool = False) -> Figures:
    """Measure a way to sample by what it draws at both fractions from `items`; within: from those of each split."""
    test = small.loc[small["split"] == TEST, "parent_asin"]
    later = large.set_index("parent_asin")["split"].reindex(test)
    return Figures(
        *(
            deviation(items[items["split"] == split] if within else items, small[small["split"] == split], by)
            for split in (TRAIN, TEST)
            for by in ("average_rating", "rating_number")
        ),
        leaks=float((small.groupby("group")["split"].nunique() > 1).sum()),
        kept=float((later == TEST).mean()),
        trained=float((later == TRAIN).mean()),
    )


def deviation(items: pd.DataFrame, drawn: pd.DataFrame, by: str) -> float:
    """Return the largest difference of a share between all items and those drawn."""
    shares = [_shares(each[by]) for each in (items, drawn)]
    return float(shares[0].sub(shares[1], fill_value=0).abs().max())


def _shares(values: "pd.Series[float]") -> "pd.Series[float]":
    if values.name == "rating_number":
        return pd.Series(strata.count_bucket(values.to_numpy())).value_counts(normalize=True)
    return (values * 10).round().value_counts(normalize=True)


def compare(title: str, params: Params, data: Path, minimum: int, seeds: int) -> None:
    """Print the table of one set of items, of which data/raw is there."""
    for category in params.source.categories:
        join(category, params, data)
    groups(params, data)
    params = replace(params, sample=replace(params.sample, min_per_category=round(0.8 * minimum)))
    items = ours(params, data, 1.0, 1.0)
    small, large = (ours(params, data, fraction, FRACTIONS[0]) for fraction in FRACTIONS)
    theirs = [
        figures(items, *(reference(items, fraction, minimum, seed) for fraction in FRACTIONS)) for seed in range(seeds)
    ]
    several = int((items.groupby("group").size() > 1).sum())
    table(
        f"{title}: {len(items):,} items in {items['category'].nunique()} categories, {several:,} products of several "
        f"items; {FRACTIONS[0]:.0%} drawn, {len(small):,} items by ours; the reference: median of {seeds} seeds "
        "(least to most)",
        (
            "way", "train, by rating", "train, by count", "test, by rating", "test, by count",
            "products in two splits", f"test items in test at {FRACTIONS[1]:.0%}", f"in train at {FRACTIONS[1]:.0%}",
        ),
        [
            ("EffiMini", *_words([figures(items, small, large)])),
            ("EffiMini, beside the same split", *_words([figures(items, small, large, within=True)])),
            ("the reference's", *_words(theirs)),
        ],
    )  # fmt: skip


def _words(repeats: list[Figures]) -> Iterable[str]:
    for name, values in zip(Figures._fields, zip(*repeats, strict=True), strict=True):
        form = ",.0f" if name == "leaks" else ".1%" if name in {"kept", "trained"} else ".2%"
        middle = f"{statistics.median(values):{form}}"
        yield middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Compare on made items and on films."""
    parser = argparse.ArgumentParser("python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=10)
    chosen = parser.parse_args()
    movies = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve() / "movies"
    if not movies.is_dir():
        sys.exit(f"the films are not at {movies}; name the corpus folder in EFFIMINI_CORPUS")
    shutil.rmtree(BUILD, ignore_errors=True)
    params = parameters(("Made_A", "Made_B"), 4, "synchronous")
    for number, category in enumerate(params.source.categories):
        make(BUILD / "made", category, np.arange(number, chosen.items, 2), 4)
    compare("Made items", params, BUILD / "made", 10_000, chosen.seeds)
    params = load_params(Path("params/corpus.yaml"))
    params = replace(params, source=replace(params.source, location=str(movies)))
    for category in params.source.categories:
        download(category, params, BUILD / "films")
    compare("Films", params, BUILD / "films", 0, chosen.seeds)
    shutil.rmtree(BUILD)


if __name__ == "__main__":
    main()
