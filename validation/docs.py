"""The Data Docs of a table: one page that opens offline and shows every expectation with what was found.

In: verdicts, and for tables that have one the profile. Out: HTML. Guaranteed: the page asks for nothing, holds no time
and no random id, and says so where the data is made.

Great Expectations' own pages are of single batches, of which a table has many, and load their styles from the network.
"""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from prep.core.templates import DEMO_NOTICE, render
from validation.profile import QUANTILES
from validation.verdicts import Verdict


def docs_page(
    table: str,
    tables: Sequence[str],
    found: Sequence[tuple[str, Sequence[Verdict]]],
    *,
    demo: bool,
    profile: pd.DataFrame | None = None,
    moved: pd.DataFrame | None = None,
    fresh: Sequence[str] = (),
) -> str:
    """Return the page as HTML.

    Args:
        table: what was checked.
        tables: all that have a page.
        found: the verdicts in the order found, by where.
        demo: whether the data is the made catalogue.
        profile: of the table's categories.
        moved: what `validation.profile.compare_profiles` found.
        fresh: what of it stands in no accepted profile.
    """
    every = [(where, verdict) for where, verdicts in found for verdict in verdicts]
    counts = Counter(verdict.level for _, verdict in every)
    told = [row for row in every if row[1].level != "pass"]
    columns = [] if profile is None else profile.groupby("category", sort=False)
    values = {
        "table": table,
        "tables": tables,
        "demo": DEMO_NOTICE if demo else "",
        "counts": {level: counts[level] for level in ("pass", "warn", "fail")},
        "told": sorted(told, key=lambda row: row[1].level),  # fail before warn
        "places": [(where, verdicts) for where, verdicts in found if verdicts],
        "profiles": [(category, rows.to_dict("records")) for category, rows in columns],
        "quantiles": list(QUANTILES),
        "moved": []
        if moved is None
        else moved.sort_values("moved", ascending=False, kind="stable").head(100).to_dict("records"),
        "fresh": fresh,
    }
    return render("validation", "docs.html.jinja", values)
