"""Tables of the differences between two versions of shards.

Input: the result of `shards.diff.compare`. Output: tables to print. Guarantees: demo data is labelled; no name from the
data is interpreted as markup.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from shards.diff import Change, Comparison, Drift, SplitChange

_COUNTS = ("into", "out", "kept", "new", "gone", "reindexed")
_LABELS = {
    "samples": ",",
    "mean": ".3f",
    "deviation": ".3f",
    "median": ".1f",
    "five_share": ".1%",
    "median_rating_number": ",.0f",
}


def comparison_table(result: Comparison) -> Group:
    """Return the result of `compare` as tables to print."""
    head = f"[bold]{escape(result.old)} -> {escape(result.new)}[/bold]"
    if not (result.parameters or result.splits):
        return Group(head, "nothing changed")
    lines: list[Any] = [head, ""]
    if result.parameters:
        lines.append(_parameters_table(result.parameters))
    if result.splits:
        lines.append(_splits_table(result))
    lines += [escape(line) for line in _examples(result)]
    if result.unexplained_moves:
        lines.append(
            "[bold]Items changed split, although salt, split fractions, groups, source and categories are unchanged: "
            "do not evaluate a model trained on the old version on the new one[/bold]"
        )
    if result.drift:
        lines.append(_drift_table(result.drift))
    if result.demo:
        lines.append("[bold]DEMO DATA: synthetic products[/bold]")
    return Group(*lines)


def _parameters_table(changes: Sequence[Change]) -> Table:
    shown = _count_table("Parameters", "", ["parameter", "old", "new", "categories"])
    for change in changes:
        values = (_value(change.name, value) for value in (change.old, change.new))
        shown.add_row(escape(change.name), *values, escape(", ".join(change.categories)))
    return shown


def _value(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "tokens.tokenizer":
        return escape(str(value)[:12])
    return escape(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _splits_table(result: Comparison) -> Table:
    note = "in, out: items; kept, new, removed: shards; indexed: kept shards with a different index; MB: of new files"
    shown = _count_table(
        "Items and shards", note, ["category", "split"], ["in", "out", "kept", "new", "removed", "indexed", "MB"]
    )
    rows = result.splits
    for row in rows:
        mark = " (added)" if row.category in result.added else " (removed)" if row.category in result.removed else ""
        shown.add_row(escape(row.category + mark), escape(row.split), *_count_cells([row]), end_section=row is rows[-1])
    shown.add_row("total", "", *_count_cells(rows))
    return shown


def _count_cells(rows: Sequence[SplitChange]) -> Iterator[str]:
    yield from (f"{sum(getattr(row, name) for row in rows):,}" for name in _COUNTS)
    yield f"{sum(row.bytes_new for row in rows) / 1e6:,.2f}"


def _examples(result: Comparison) -> Iterator[str]:
    """Yield a line of examples for each group of items that were added, removed, moved or changed."""
    for row in result.splits:
        for direction, count, keys in (("in", row.into, row.examples.into), ("out", row.out, row.examples.out)):
            if keys:
                yield f"{row.category} {row.split}, {count:,} {direction}: {_some(keys, count)}"
    for move in result.moved:
        examples = _some(move.examples, move.count)
        yield f"{move.category}, {move.count:,} moved from {move.origin} to {move.to}: {examples}"
    for change in result.metadata:
        changes = [f"{each.key} {each.old} -> {each.new}" for each in change.examples]
        yield f"{change.category}, {change.count:,} with a different {change.fact}: {_some(changes, change.count)}"
    for each in result.content:
        in_words = "in another band" if each.what == "band" else f"with another {each.what}"
        yield f"{each.category}, {each.count:,} {in_words}: {_some(each.examples, each.count)}"


def _some(examples: Sequence[str], count: int) -> str:
    return ", ".join(examples) + (", ..." if len(examples) < count else "")


def _drift_table(drifts: Sequence[Drift]) -> Table:
    note = (
        "sd: standard deviation; 5.0: fraction of labels equal to 5; ratings: median rating_number; KS: two-sample "
        "Kolmogorov-Smirnov statistic"
    )
    numbers = ["samples", "mean", "sd", "median", "5.0", "ratings", "KS"]
    shown = _count_table("Labels, stars", note, ["category", "split", ""], numbers)
    for row in drifts:
        names = escape(row.category), escape(row.split)
        statistic = "" if row.ks is None else f"{row.ks:.3f}"
        for side, spread, first, last in (("old", row.old, names, ""), ("new", row.new, ("", ""), statistic)):
            values = ((getattr(spread, name), spec) for name, spec in _LABELS.items())
            cells = ("" if value is None else format(value, spec) for value, spec in values)
            shown.add_row(*first, side, *cells, last, end_section=side == "new")
    return shown


def _count_table(title: str, note: str, names: Sequence[str], numbers: Sequence[str] = ()) -> Table:
    shown = Table(title=title, caption=note, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        shown.add_column(name, overflow="fold")
    for name in numbers:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown
