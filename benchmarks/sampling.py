"""Compare how representative our sample and that of the paper's procedure are, on the same items.

    python -m benchmarks.sampling [--items 200000] [--seeds 10]

Input: synthetic items (`benchmarks.scale`) in two categories with common titles and images, and the films of the corpus
(EFFIMINI_CORPUS, or ../shared/corpus). Output: tables.

The paper's procedure draws max(20 %, 10,000) items of each category with pandas (20 % of the films, since no category
has 10,000), and splits all of them 80/10/10 with scikit-learn, stratified on the value of average_rating, with values
of 50 items or fewer merged; it is repeated with several seeds. Both sides sample from the items that pass our filter. A
deviation is the largest difference, over rating values (or count buckets), between the fractions among all items and
among the sampled training (or test) items; a product is a group of data/groups. Ours splits by a hash of the product,
independent of its rating, and is stratified within a split, so it is also compared with the items of the same split.
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
RARE = 50  # values with at most so many items are merged into one stratum in the paper's procedure


class Figures(NamedTuple):
    """Measurements of a sampling procedure; fractions, except `leaks`."""

    train_rating: float
    train_count: float
    test_rating: float
    test_count: float
    leaks: float  # number of products in two or more splits, at the smaller fraction
    kept: float  # test items at the smaller fraction that are in test at the larger one
    trained: float  # test items at the smaller fraction that are in train at the larger one


def ours(params: Params, data: Path, fraction: float, evaluation: float) -> pd.DataFrame:
    """Run the stage on every category and return the sampled items."""
    params = replace(params, sample=replace(params.sample, fraction=fraction, eval_fraction=evaluation))
    for category in params.source.categories:
        sample(category, params, data)
    parts = [path for c in params.source.categories for path in part_files(data / "sample" / c)]
    return pa.concat_tables([pq.read_table(path, columns=COLUMNS) for path in parts]).to_pandas()


def reference(items: pd.DataFrame, fraction: float, minimum: int, seed: int) -> pd.DataFrame:
    """Sample and split by the paper's procedure."""
    drawn = [
        part.sample(min(len(part), max(int(len(part) * fraction), minimum)), random_state=seed)
        for _, part in items.groupby("category")
    ]
    sampled = pd.concat(drawn, ignore_index=True)
    train, rest = train_test_split(sampled, test_size=0.2, random_state=seed, stratify=_strata(sampled))
    validation, test = train_test_split(rest, test_size=0.5, random_state=seed, stratify=_strata(rest))
    splits = {TRAIN: train, VALIDATION: validation, TEST: test}
    return pd.concat([part.assign(split=name) for name, part in splits.items()])


def _strata(items: pd.DataFrame) -> "pd.Series[str]":
    """Return the rating value of each item, with rare values merged (into the mode, if only one item is rare)."""
    values = items["average_rating"].astype(str)
    counts = values.map(values.value_counts())
    merged = values.where(counts > RARE, "rare")
    if (merged == "rare").sum() == 1:  # scikit-learn rejects a stratum of one item
        merged = values.where(counts > RARE, values[counts > RARE].mode()[0])
    return merged


def figures(items: pd.DataFrame, small: pd.DataFrame, large: pd.DataFrame, *, within: bool = False) -> Figures:
    """Measure a procedure by its samples at both fractions; `within` compares with the `items` of each split."""
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
    """Return the largest difference of a fraction between all items and the sampled ones."""
    fractions = [_fractions(part[by]) for part in (items, drawn)]
    return float(fractions[0].sub(fractions[1], fill_value=0).abs().max())


def _fractions(values: "pd.Series[float]") -> "pd.Series[float]":
    if values.name == "rating_number":
        return pd.Series(strata.count_bucket(values.to_numpy())).value_counts(normalize=True)
    return (values * 10).round().value_counts(normalize=True)


def compare(title: str, params: Params, data: Path, minimum: int, seeds: int) -> None:
    """Print the table of one set of items, given as data/raw."""
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
        f"items; {FRACTIONS[0]:.0%} sampled, {len(small):,} items by ours; the paper's: median of {seeds} seeds "
        "(minimum to maximum)",
        (
            "procedure", "train, by rating", "train, by count", "test, by rating", "test, by count",
            "products in two splits", f"test items in test at {FRACTIONS[1]:.0%}", f"in train at {FRACTIONS[1]:.0%}",
        ),
        [
            ("EffiMini", *_cells([figures(items, small, large)])),
            ("EffiMini, compared with the same split", *_cells([figures(items, small, large, within=True)])),
            ("the paper's", *_cells(theirs)),
        ],
    )  # fmt: skip


def _cells(repeats: list[Figures]) -> Iterable[str]:
    for name, values in zip(Figures._fields, zip(*repeats, strict=True), strict=True):
        form = ",.0f" if name == "leaks" else ".1%" if name in {"kept", "trained"} else ".2%"
        middle = f"{statistics.median(values):{form}}"
        yield middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Compare on synthetic items and on films."""
    parser = argparse.ArgumentParser("python -m benchmarks.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=10)
    chosen = parser.parse_args()
    movies = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve() / "movies"
    if not movies.is_dir():
        sys.exit(f"{movies} does not exist; set EFFIMINI_CORPUS to the corpus folder")
    shutil.rmtree(BUILD, ignore_errors=True)
    params = parameters(("Synthetic_A", "Synthetic_B"), 4, "synchronous")
    for number, category in enumerate(params.source.categories):
        make(BUILD / "synthetic", category, np.arange(number, chosen.items, 2), 4)
    compare("Synthetic items", params, BUILD / "synthetic", 10_000, chosen.seeds)
    params = load_params(Path("params/corpus.yaml"))
    params = replace(params, source=replace(params.source, location=str(movies)))
    for category in params.source.categories:
        download(category, params, BUILD / "films")
    compare("Films", params, BUILD / "films", 0, chosen.seeds)
    shutil.rmtree(BUILD)


if __name__ == "__main__":
    main()
