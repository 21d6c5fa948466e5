"""Formatting of repeated measurements."""

import statistics
from collections.abc import Iterable, Sequence


def median_range(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median, with the minimum and maximum in brackets."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
