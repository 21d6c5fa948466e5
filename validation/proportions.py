"""Checks of the sample's strata: each gives its fraction of training items, and ``strata.csv`` counts them correctly.

Input: ``strata.csv`` of a category and the parts of its sample. Output: verdicts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prep.core.errors import UserError
from prep.core.parts import TRAIN
from prep.core.tables.sample import SAMPLE
from prep.strata import COUNT_BUCKETS, count_bucket
from validation.columns import read_columns
from validation.verdicts import Verdict, judge

STRATA_FILE = "strata.csv"
_KEY = ["split", "average_rating", "rating_number_from"]


def check_strata(table: Path, parts: Sequence[Path], fraction: float, bands: int, usable: int) -> list[Verdict]:
    """Check the strata of a category.

    Args:
        table: ``strata.csv``.
        parts: the parts of the sample.
        fraction: ``sample.fraction``.
        bands: ``sample.bands``.
        usable: items that passed the filter, sampled or not, according to the report.

    Raises:
        UserError: the file is missing or has other columns.
    """
    try:
        strata = pd.read_csv(table)
        strata = strata[[*_KEY, "population", "taken"]].assign(removed=strata.get("removed", 0))
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise UserError(f"{table} cannot be read ({error}); run `dvc repro --force --single-item sample`") from None
    population = int(strata["population"].sum())
    return [
        judge(
            "sample",
            f"items in {STRATA_FILE} = items that passed the filter",
            population,
            [population] * (population != usable),
        ),
        _sampled_counts(strata, parts),
        _stratum_fractions(strata, max(round(fraction * bands), _bands_taken(parts)) / bands),
    ]


def _sampled_counts(strata: pd.DataFrame, parts: Sequence[Path]) -> Verdict:
    counts = pd.concat([_stratum_counts(part) for part in parts] or [pd.Series(dtype="int64", name="found")])
    found = counts.groupby(level=_KEY).sum() if len(counts) else counts
    both = pd.concat([strata[strata["taken"] > 0].set_index(_KEY)["taken"], found], axis=1).fillna(0)
    wrong = both[both["taken"] != both["found"]].sort_index()
    examples = [f"{_name(key)} ({row['taken']:.0f}, {row['found']:.0f} in the parts)" for key, row in wrong.iterrows()]
    return judge("sample", f"sampled items of each stratum in {STRATA_FILE} = items in the parts", len(both), examples)


def _stratum_counts(part: Path) -> pd.Series:
    """Return the number of items of each stratum in a part."""
    found = read_columns([part], ["split", "average_rating", "rating_number"], SAMPLE).to_pandas()
    found["average_rating"] = np.rint(found["average_rating"] * 10) / 10
    found["rating_number_from"] = np.array(COUNT_BUCKETS)[count_bucket(found["rating_number"].to_numpy())]
    return found.groupby(_KEY).size().rename("found")


def _stratum_fractions(strata: pd.DataFrame, fraction: float) -> Verdict:
    """Check that each stratum gives `fraction` of its training items, to within one item and those removed from it."""
    train = strata[strata["split"] == TRAIN].set_index(_KEY)
    wrong = train[(train["taken"] - fraction * train["population"]).abs() >= 1 + train["removed"]]
    examples = [f"{_name(key)} ({row['taken']} of {row['population']})" for key, row in wrong.iterrows()]
    return judge(
        "sample",
        f"a fraction {fraction:.3g} of each stratum's training items, to within one item",
        len(train),
        examples,
    )


def _bands_taken(parts: Sequence[Path]) -> int:
    """Return the number of bands in the parts; a category with few items has more than the fraction selects."""
    return max(
        (int(part.stem.removeprefix(f"{TRAIN}-")) + 1 for part in parts if part.stem.startswith(TRAIN)), default=0
    )


def _name(key: Any) -> str:
    split, stars, count = key
    return f"{split}, {stars} stars, {count} ratings or more"
