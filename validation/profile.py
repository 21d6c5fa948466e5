"""What the columns of a table are like, and how far that is from what was accepted before.

In: the files of a table, and ``accepted.csv``. Out: a profile, one row a category and column, and verdicts on its
drift. Guaranteed: quantiles are exact, of values rounded as declared here; memory is that of the distinct values, not
of the rows; the same data gives the same numbers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prep.core.errors import UserError
from prep.core.params import Limits
from validation.columns import chunks, rows_of, values
from validation.verdicts import Verdict, judge

_STARS, _DAY = 0.01, 86_400_000
_TEXT_COLUMNS = ("title", "features", "description", "store", "details")
# The columns that are looked at, and what their values are rounded to. A text stands by its characters, a list by its
# elements.
PROFILED_COLUMNS: dict[str, dict[str, float]] = {
    "items": {
        "average_rating": _STARS,
        "rating_number": 1,
        "review_count": 1,
        "review_mean": _STARS,
        "review_spread": _STARS,
        "verified_share": 0.01,
        "first_review": _DAY,
        "last_review": _DAY,
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
_NONE_AT_ZERO = ("size of ", "source_")  # of columns so named 0 is no value: an empty text, an image that was not had
_HELD = 1 << 20  # values of a column counted at once


def profile(table: str, category: str, paths: Sequence[Path]) -> pd.DataFrame:
    """Return the profile of the files of one category.

    Args:
        table: a key of `PROFILED_COLUMNS`.
        category: as it stands in the profile.
        paths: parquet files.

    Returns:
        A row a column: rows; absent, the share of them without a value; of the others same, the share of the most
        frequent value, mean and quantiles (a quantile is a value that occurs). Times are in days since 1970, bytes of
        sources in thousands.
    """
    rows = sum(map(rows_of, paths))
    return pd.DataFrame(
        [
            {"table": table, "category": category, "column": name, "rows": rows} | _column_profile(counted, rows)
            for name, counted in _value_counts(paths, PROFILED_COLUMNS[table])
        ],
        columns=NAMES,
    )


def _value_counts(paths: Sequence[Path], units: dict[str, float]) -> Iterator[tuple[str, pd.Series]]:
    """Yield each column with how often each of its values occurs, ordered by value."""
    held: dict[str, list[Any]] = {name: [] for name in units}
    counted = {name: pd.Series(dtype="int64") for name in units}

    def count() -> None:
        for name, arrays in held.items():
            found = pd.Series(np.concatenate([np.empty(0, np.int64), *arrays])).value_counts()
            counted[name] = counted[name].add(found, fill_value=0)
            arrays.clear()

    waiting = 0
    for chunk in chunks(paths, list(units)):
        for name, unit in units.items():
            column = values(chunk, name).drop_null().to_numpy(zero_copy_only=False)
            if name.startswith(_NONE_AT_ZERO):
                column = column[column > 0]
            # a float is rounded to the nearest unit, an integer (a time, bytes) falls into the unit that it is in
            whole = np.rint(column / unit) if column.dtype.kind == "f" else column // int(unit)
            held[name].append(whole.astype(np.int64))
        waiting += chunk.num_rows
        if waiting >= _HELD:
            count()
            waiting = 0
    count()
    for name, unit in units.items():
        series = counted[name].sort_index()
        scale = min(1, unit)
        yield name, series.set_axis(series.index.to_numpy(float) * scale)


def _column_profile(counted: pd.Series, rows: int) -> dict[str, float]:
    there = int(counted.sum())
    if not there:
        return {"absent": float(rows > 0), "same": 0.0, "mean": np.nan} | dict.fromkeys(QUANTILES, np.nan)
    upto, ordered = counted.cumsum().to_numpy(), counted.index.to_numpy()
    places = np.searchsorted(upto, [max(1.0, share * there) for share in QUANTILES.values()])
    described = {
        "absent": 1 - there / rows,
        "same": float(counted.max()) / there,
        "mean": float((ordered * counted.to_numpy()).sum()) / there,
    }
    return described | {name: float(ordered[place]) for name, place in zip(QUANTILES, places, strict=True)}


def check_mode_fraction(table: str, paths: Sequence[Path], limits: Limits) -> list[Verdict]:
    """Judge whether ratings and rating counts differ between items, as a constant or a filled-in value would not.

    Args:
        table: a key of `PROFILED_COLUMNS`.
        paths: its files of one category; two columns of them are read.
        limits: ``validation.mode_fraction``.
    """
    verdicts = []
    for name, counted in _value_counts(
        paths, {name: PROFILED_COLUMNS[table][name] for name in ("average_rating", "rating_number")}
    ):
        there, same = int(counted.sum()), int(counted.max()) if len(counted) else 0
        alike = same if same > 1 else 0  # a single item is like no other
        median = _column_profile(counted, there)["median"]
        verdicts.append(
            Verdict(
                table,
                f"{name} not the same for most items (validation.mode_fraction)",
                there,
                alike,
                int(limits.fail_above * there),
                (f"{same} with the same value, the median being {median:g}",) if alike else (),
                int(limits.warn_above * there),
            )
        )
    return verdicts


def read_profile(path: Path) -> pd.DataFrame:
    """Read a profile; one that is not there has no rows.

    Raises:
        UserError: the file is no profile.
    """
    try:
        found = pd.read_csv(path)
    except FileNotFoundError:
        return pd.DataFrame(columns=NAMES)
    except ValueError as error:
        raise UserError(f"{path} is no profile ({error}); run `effimini accept` to write it anew") from None
    if missing := [name for name in NAMES if name not in found]:
        raise UserError(f"{path} is no profile (no column {missing[0]}); run `effimini accept` to write it anew")
    return found[NAMES]


def compare_profiles(now: pd.DataFrame, accepted: pd.DataFrame) -> pd.DataFrame:
    """Return how far each column of each category has moved, ordered as in `now`.

    Args:
        now: a profile.
        accepted: the one it is compared with; what stands in one of them alone is not compared.

    Returns:
        Rows of table, category, column, what (which number moved most), accepted, now, moved. A quantile has moved by
        its difference in parts of the accepted range from 5 to 95 % (of the whole range where that is one value), a
        share by its difference. The column "rows" is the category's share of its table's rows.
    """
    both = now.merge(accepted, on=KEY, suffixes=("", "_was"), validate="one_to_one")
    found = []
    for row in both.to_dict("records"):
        width = row["q95_was"] - row["q05_was"] or row["highest_was"] - row["lowest_was"] or abs(row["median_was"]) or 1
        steps = {name: abs(row[name] - row[f"{name}_was"]) / width for name in _COMPARED}
        steps["absent"] = abs(row["absent"] - row["absent_was"])
        steps = {name: 0.0 if np.isnan(step) else step for name, step in steps.items()}
        most = max(steps, key=lambda name: steps[name])
        found.append([row[k] for k in KEY] + [most, row[f"{most}_was"], row[most], steps[most]])
    whole = both.drop_duplicates(["table", "category"])
    for table, part in whole.groupby("table", sort=False):
        shares = part["rows"] / max(1, part["rows"].sum()), part["rows_was"] / max(1, part["rows_was"].sum())
        for category, is_now, was in zip(part["category"], *shares, strict=True):
            found.append([table, category, "rows", "share of the table's", was, is_now, abs(is_now - was)])
    return pd.DataFrame(found, columns=[*KEY, "what", "accepted", "now", "moved"])


def new_columns(now: pd.DataFrame, accepted: pd.DataFrame) -> list[str]:
    """Return the tables and categories of `now` that stand in no accepted profile."""
    both = (
        now[["table", "category"]]
        .drop_duplicates()
        .merge(accepted[["table", "category"]].drop_duplicates(), "left", indicator=True)
    )
    return [f"{row.table} {row.category}" for row in both[both["_merge"] == "left_only"].itertuples()]


def drift(moved: pd.DataFrame, limits: Limits) -> list[Verdict]:
    """Judge what `compare_profiles` found: a verdict a table.

    Args:
        moved: of all tables.
        limits: ``validation.drift``.
    """
    verdicts = []
    for table, part in moved.groupby("table", sort=False):
        far = part[part["moved"] > limits.warn_above].sort_values("moved", ascending=False, kind="stable")
        named = [f"{r.category} {r.column} ({r.what} {r.now:.4g}, accepted {r.accepted:.4g})" for r in far.itertuples()]
        stops = int((part["moved"] > limits.fail_above).sum())
        words = f"each column within {limits.warn_above:g} of accepted.csv"
        verdicts.append(judge(str(table), words, len(part), named, allowed=len(part)))
        words = f"each column within {limits.fail_above:g} of accepted.csv (validation.drift)"
        verdicts.append(judge(str(table), words, len(part), named[:stops]))
    return verdicts
