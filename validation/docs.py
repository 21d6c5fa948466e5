"""The Data Docs of a table: one page that opens offline and shows every expectation with what was found.

In: verdicts, and for tables that have one the profile. Out: HTML. Guaranteed: the page asks for nothing, holds no time
and no random id, and says so where the data is made.

Great Expectations' own pages are of single batches, of which a table has many, and load their styles from the network.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from prep.core.templates import DEMO, render
from validation.profile import QUANTILES


def page(
    table: str,
    tables: Sequence[str],
    written: Sequence[dict[str, Any]],
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
        written: the verdicts in the order found, each with where and level.
        demo: whether the data is the made catalogue.
        profile: of the table's categories.
        moved: what `validation.profile.moves` found.
        fresh: what of it stands in no accepted profile.
    """
    counts = Counter(verdict["level"] for verdict in written)
    columns = [] if profile is None else profile.groupby("category", sort=False)
    values = {
        "table": table,
        "tables": tables,
        "demo": DEMO if demo else "",
        "written": written,
        "counts": {level: counts[level] for level in ("pass", "warn", "fail")},
        "told": sorted((v for v in written if v["level"] != "pass"), key=lambda v: v["level"]),  # fail before warn
        "places": [(where, list(verdicts)) for where, verdicts in groupby(written, key=lambda v: v["where"])],
        "profiles": [(category, rows.to_dict("records")) for category, rows in columns],
        "quantiles": list(QUANTILES),
        "moved": []
        if moved is None
        else moved.sort_values("moved", ascending=False, kind="stable").head(100).to_dict("records"),
        "fresh": fresh,
    }
    return render("validation", "docs.html.jinja", values)
