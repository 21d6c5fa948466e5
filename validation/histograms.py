"""Histograms of the profiled columns, for the Data Docs.

Input: how often each value of each column occurs. Output: bins with their counts. Guarantees: the counts of a column
add up to its rows with a value; a column has the same bins in all categories.

Ratings are in bins of 0.1, times in bins of equally many days. Counts and sizes are on a log scale, log(1 + n), because
most are small and a few are very large; where that would be less than one value, a bin has one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from validation.profile import DAY, PROFILED_COLUMNS, shown

BINS = 32  # most bins of a column that is not a rating
_RATING = 10  # units of a bin: ratings are rounded to hundredths


class Bin(NamedTuple):
    """A bar: its least and greatest value, as shown, and the rows between them."""

    low: str
    high: str
    rows: int


def histograms(table: str, counted: Mapping[str, Mapping[str, pd.Series]]) -> dict[str, dict[str, list[Bin]]]:
    """Return the bins by category and column; a column without values has none.

    Args:
        table: a key of `PROFILED_COLUMNS`.
        counted: the result of `validation.profile.value_counts` by category.
    """
    found: dict[str, dict[str, list[Bin]]] = {category: {} for category in counted}
    for column, unit in PROFILED_COLUMNS[table].items():
        scale = min(1, unit)
        units = {name: np.rint(own[column].index.to_numpy(float) / scale) for name, own in counted.items()}
        every = np.concatenate(list(units.values()))
        edges = _edges(every.min(), every.max() + 1, unit) if len(every) else np.empty(0)
        lows, highs = edges[:-1], np.minimum(edges[1:] - 1, every.max(initial=0))
        names = [[shown(table, column, end * scale) for end in ends] for ends in zip(lows, highs, strict=True)]
        for category, own in counted.items():
            if len(values := units[category]):
                rows, _ = np.histogram(values, edges, weights=own[column].to_numpy())
                bars = [Bin(low, high, round(n)) for (low, high), n in zip(names, rows.tolist(), strict=True)]
            found[category][column] = bars if len(values) else []
    return found


def _edges(low: float, end: float, unit: float) -> npt.NDArray[np.float64]:
    """Return the edges of bins for whole numbers of units from `low` up to and without `end`."""
    if unit < 1:
        return np.arange(low // _RATING, np.ceil(end / _RATING) + 1) * _RATING
    if unit == DAY:
        return np.unique(np.rint(np.linspace(low, end, BINS + 1)))
    return np.unique(np.rint(np.geomspace(low + 1, end + 1, BINS + 1) - 1))
