"""Profiles of the columns of a table, and their drift from the accepted profile.

Input: the files of a table, and ``accepted.csv``. Output: a profile with one row per category and column, and verdicts
on its drift. Guarantees: quantiles are exact for values rounded to `PROFILED_COLUMNS`; memory grows with the distinct
values, not with the rows; the same data gives the same numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prep.core.errors import UserError
from prep.core.params import Limits
from validation.columns import chunks, rows_of, values
from validation.verdicts import Verdict, judge

_STARS, DAY = 0.01, 86_400_000
_TEXT_COLUMNS = ("title", "features", "description", "store", "details")
# The profiled columns and the units that their values are rounded to.
PROFILED_COLUMNS: dict[str, dict[str, float]] = {
    "items": {
        "average_rating": _STARS,
        "rating_number": 1,
        "review_count": 1,
        "review_mean": _STARS,
        "review_spread": _STARS,
        "verified_share": 0.01,
        "first_review": DAY,
        "last_review": DAY,
        **{f"size of {name}": 1 for name in (*_TEXT_COLUMNS, "main_category", "hi_res + large")},
    },
    "sample": {
        "average_rating": _STARS,
        "rating_number": 1,
        "review_count": 1,
        **{f"size of {name}": 1 for name in (*_TEXT_COLUMNS, "main_category", "image_urls")},
    },
    "images": {"source_width": 1, "source_height": 1, "source_bytes": 1000},
}
QUANTILES = {"lowest": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "highest": 1.0}
_COMPARED = ("q05", "q25", "median", "q75", "q95")  # the extremes are single rows
KEY = ["table", "category", "column"]
NAMES = [*KEY, "rows", "absent", "same", "mean", *QUANTILES]
_NULL_IF_ZERO = ("size of ", "source_")  # prefixes of columns where 0 means no value: no text, no fetched image
_BUFFERED_ROWS = 1 << 20  # values of a column that are counted at once


def profile(table: str, category: str, paths: Sequence[Path]) -> pd.DataFrame:
    """Return the profile of the files of one category.

    Args:
        table: a key of `PROFILED_COLUMNS`.
        category: name of the category in the profile.
        paths: parquet files.

    Returns:
        One row per column: rows; absent, the fraction of rows without a value; for the rows with a value, same (the
        fraction of the most frequent value), mean and quantiles (each is a value of the column). Times are in days
        since 1970, sizes of source files in thousands of bytes.
    """
    return profile_of(table, category, sum(map(rows_of, paths)), value_counts(table, paths))


def profile_of(table: str, category: str, rows: int, counted: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return the result of `profile` from the number of rows and the result of `value_counts`."""
    return pd.DataFrame(
        [
            {"table": table, "category": category, "column": name, "rows": rows} | _column_profile(values, rows)
            for name, values in counted.items()
        ],
        columns=NAMES,
    )


def value_counts(table: str, paths: Sequence[Path]) -> dict[str, pd.Series]:
    """Return the counts of the values of each profiled column, in the units of the profile and ordered by value."""
    return dict(_value_counts(paths, PROFILED_COLUMNS[table]))


def shown(table: str, column: str, value: float, what: str = "") -> str:
    """Return a value of a column, or its statistic `what`, as text: a time is a date."""
    if np.isnan(value):
        return ""
    if what != "absent" and PROFILED_COLUMNS.get(table, {}).get(column) == DAY:
        return str(np.datetime64(int(value), "D"))
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _value_counts(paths: Sequence[Path], units: dict[str, float]) -> Iterator[tuple[str, pd.Series]]:
    """Yield each column with the counts of its values, ordered by value."""
    buffers: dict[str, list[Any]] = {name: [] for name in units}
    counted = {name: pd.Series(dtype="int64") for name in units}

    def count() -> None:
        for name, arrays in buffers.items():
            found = pd.Series(np.concatenate([np.empty(0, np.int64), *arrays])).value_counts()
            counted[name] = counted[name].add(found, fill_value=0)
            arrays.clear()

    buffered = 0
    for chunk in chunks(paths, list(units)):
        for name, unit in units.items():
            column = values(chunk, name).drop_null().to_numpy(zero_copy_only=False)
            if name.startswith(_NULL_IF_ZERO):
                column = column[column > 0]
            # a float is rounded to the nearest unit, an integer (a time, bytes) is rounded down
            rounded = np.rint(column / unit) if column.dtype.kind == "f" else column // int(unit)
            buffers[name].append(rounded.astype(np.int64))
        buffered += chunk.num_rows
        if buffered >= _BUFFERED_ROWS:
            count()
            buffered = 0
    count()
    for name, unit in units.items():
        series = counted[name].sort_index()
        scale = min(1, unit)
        yield name, series.set_axis(series.index.to_numpy(float) * scale)


def _column_profile(counted: pd.Series, rows: int) -> dict[str, float]:
    present = int(counted.sum())
    if not present:
        return {"absent": float(rows > 0), "same": 0.0, "mean": np.nan} | dict.fromkeys(QUANTILES, np.nan)
    cumulative, ordered = counted.cumsum().to_numpy(), counted.index.to_numpy()
    positions = np.searchsorted(cumulative, [max(1.0, q * present) for q in QUANTILES.values()])
    statistics = {
        "absent": 1 - present / rows,
        "same": float(counted.max()) / present,
        "mean": float((ordered * counted.to_numpy()).sum()) / present,
    }
    return statistics | {name: float(ordered[position]) for name, position in zip(QUANTILES, positions, strict=True)}


def check_mode_fraction(table: str, paths: Sequence[Path], limits: Limits) -> list[Verdict]:
    """Check that no rating or rating count dominates, as a constant or imputed value would.

    Args:
        table: a key of `PROFILED_COLUMNS`.
        paths: its files of one category; two columns are read.
        limits: ``validation.mode_fraction``, the limits of the fraction of the most frequent value.
    """
    verdicts = []
    for name, counted in _value_counts(
        paths, {name: PROFILED_COLUMNS[table][name] for name in ("average_rating", "rating_number")}
    ):
        present, mode_count = int(counted.sum()), int(counted.max()) if len(counted) else 0
        repeated = mode_count if mode_count > 1 else 0  # the value of a single item does not dominate
        median = _column_profile(counted, present)["median"]
        verdicts.append(
            Verdict(
                table,
                f"no dominant value of {name} (validation.mode_fraction)",
                present,
                repeated,
                int(limits.fail_above * present),
                (f"{mode_count} items with the same value (median {median:g})",) if repeated else (),
                int(limits.warn_above * present),
            )
        )
    return verdicts


def read_profile(path: Path) -> pd.DataFrame:
    """Read a profile; a missing file gives a profile without rows.

    Raises:
        UserError: the file is not a valid profile.
    """
    try:
        found = pd.read_csv(path)
    except FileNotFoundError:
        return pd.DataFrame(columns=NAMES)
    except ValueError as error:
        raise UserError(f"{path} is not a valid profile ({error}); run `effimini accept` to write it again") from None
    if missing := [name for name in NAMES if name not in found]:
        raise UserError(
            f"{path} is not a valid profile (no column {missing[0]}); run `effimini accept` to write it again"
        )
    return found[NAMES]


def compare_profiles(now: pd.DataFrame, accepted: pd.DataFrame) -> pd.DataFrame:
    """Return the drift of each column of each category, ordered as in `now`.

    Args:
        now: a profile.
        accepted: the accepted profile; columns that are in only one of the two are left out.

    Returns:
        Rows of table, category, column, what (the statistic that differs most), accepted, now and drift. The drift of a
        quantile is its difference divided by the accepted range from 5 to 95 % (by the whole range if that is 0), the
        drift of a fraction is its difference. The column "rows" is the category's fraction of the table's rows.
    """
    both = now.merge(accepted, on=KEY, suffixes=("", "_was"), validate="one_to_one")
    found = []
    for row in both.to_dict("records"):
        width = row["q95_was"] - row["q05_was"] or row["highest_was"] - row["lowest_was"] or abs(row["median_was"]) or 1
        drifts = {name: abs(row[name] - row[f"{name}_was"]) / width for name in _COMPARED}
        drifts["absent"] = abs(row["absent"] - row["absent_was"])
        drifts = {name: 0.0 if np.isnan(value) else value for name, value in drifts.items()}
        most = max(drifts, key=lambda name: drifts[name])
        found.append([row[k] for k in KEY] + [most, row[f"{most}_was"], row[most], drifts[most]])
    categories = both.drop_duplicates(["table", "category"])
    for table, rows in categories.groupby("table", sort=False):
        fractions = rows["rows"] / max(1, rows["rows"].sum()), rows["rows_was"] / max(1, rows["rows_was"].sum())
        for category, is_now, was in zip(rows["category"], *fractions, strict=True):
            found.append([table, category, "rows", "fraction of the table's", was, is_now, abs(is_now - was)])
    return pd.DataFrame(found, columns=[*KEY, "what", "accepted", "now", "drift"])


def new_columns(now: pd.DataFrame, accepted: pd.DataFrame) -> list[str]:
    """Return the tables and categories of `now` that the accepted profile does not have."""
    both = (
        now[["table", "category"]]
        .drop_duplicates()
        .merge(accepted[["table", "category"]].drop_duplicates(), "left", indicator=True)
    )
    return [f"{row.table} {row.category}" for row in both[both["_merge"] == "left_only"].itertuples()]


def drift(compared: pd.DataFrame, limits: Limits) -> list[Verdict]:
    """Judge the result of `compare_profiles`: two verdicts per table, one that can only warn and one that can fail.

    Args:
        compared: the drift of all tables.
        limits: ``validation.drift``.
    """
    verdicts = []
    for table, rows in compared.groupby("table", sort=False):
        far = rows[rows["drift"] > limits.warn_above].sort_values("drift", ascending=False, kind="stable")
        named = [
            f"{row.category} {row.column} ({row.what} {now}, accepted {was})"
            for row in far.itertuples()
            for now, was in [(shown(str(table), row.column, value, row.what) for value in (row.now, row.accepted))]
        ]
        failed = int((rows["drift"] > limits.fail_above).sum())
        name = f"a drift from accepted.csv of at most {limits.warn_above:g} in each column"
        verdicts.append(judge(str(table), name, len(rows), named, allowed=len(rows)))
        name = f"a drift from accepted.csv of at most {limits.fail_above:g} in each column (validation.drift)"
        verdicts.append(judge(str(table), name, len(rows), named[:failed]))
    return verdicts
