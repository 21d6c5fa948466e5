"""The Data Docs of a table: an HTML page with every expectation and its result.

Input: verdicts, and the profile and the counts of values if the table has them. Output: HTML. Guarantees: the page
makes no requests, contains no time and no random id, and has a notice if the data is synthetic.

Great Expectations' Data Docs show single batches, of which a table has many, and load their styles from the network.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from prep.core.templates import DEMO_NOTICE, render
from validation.histograms import histograms
from validation.profile import QUANTILES, shown
from validation.verdicts import Verdict


def docs_page(
    table: str,
    tables: Sequence[str],
    found: Sequence[tuple[str, Sequence[Verdict]]],
    *,
    demo: bool,
    profile: pd.DataFrame | None = None,
    counted: Mapping[str, Mapping[str, pd.Series]] | None = None,
    drift: pd.DataFrame | None = None,
    added: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    Args:
        table: the checked table.
        tables: all tables that have a page.
        found: the verdicts by checked folder or file, in the order of the checks.
        demo: whether the data is synthetic.
        profile: the profile of the table's categories.
        counted: the result of `validation.profile.value_counts` by category, if there is a profile.
        drift: the result of `validation.profile.compare_profiles`.
        added: the result of `validation.profile.new_columns`.
    """
    rows = [(where, verdict) for where, verdicts in found for verdict in verdicts]
    counts = Counter(verdict.level for _, verdict in rows)
    problems = [row for row in rows if row[1].level != "pass"]
    passed = ((where, [verdict for verdict in verdicts if verdict.level == "pass"]) for where, verdicts in found)
    columns = [] if profile is None else profile.groupby("category", sort=False)
    values = {
        "table": table,
        "tables": tables,
        "demo": DEMO_NOTICE if demo else "",
        "counts": {level: counts[level] for level in ("pass", "warn", "fail")},
        "problems": sorted(problems, key=lambda row: row[1].level),  # fail before warn
        "passed": [(where, verdicts) for where, verdicts in passed if verdicts],
        "profiles": [(category, rows.to_dict("records")) for category, rows in columns],
        "histograms": histograms(table, counted) if counted else {},
        "statistics": ["mean", *QUANTILES],
        "drift": []
        if drift is None
        else drift.sort_values("drift", ascending=False, kind="stable").head(100).to_dict("records"),
        "added": added,
    }
    return render("validation", "docs.html.jinja", values, {"shown": _shown})


def _shown(row: Mapping[str, Any], name: str, what: str = "") -> str:
    """Return `row[name]` of a profile or of a drift as text."""
    return shown(row["table"], row["column"], row[name], what or name)
