"""Summary of shards: counts by category and split, and the parameters they were made with.

Input: the manifests and indexes of a location; no tar is read. Output: a summary, and its table. Guarantees: demo data
is labelled; only the rating count of each sample is kept in memory.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from shards.location import ShardLocation
from shards.manifest import Manifest, Shard

_HEADINGS = ("category", "split", "shards", "samples", "MB", "image", "label", "ratings", "tokens")


class SplitSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counts of a split of a category; for the total both names are empty."""

    category: str = ""
    split: str = ""
    shards: int
    samples: int
    bytes: int  # of the tars
    image_share: float  # fraction of samples with an image
    mean_label: float  # stars
    median_rating_number: float
    mean_tokens: float


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters shared by the shards of some categories."""

    categories: list[str]
    format: int
    source: str  # kind
    revision: str
    fraction: float | None
    image_size: int  # px
    tokenizer: str  # fingerprint
    fields: tuple[str, ...]
    max_tokens: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a location."""

    location: str
    demo: bool  # whether any category is synthetic
    splits: list[SplitSummary]
    total: SplitSummary
    made: list[Made]


class _Sums(NamedTuple):
    """Sums over the samples of one shard."""

    bytes: int  # of the tar
    images: int
    label: float
    tokens: int
    rating_number: npt.NDArray[np.int64]


def summarise(location: ShardLocation, categories: Sequence[str] | None = None) -> Summary:
    """Summarise `categories` of a location (default: all).

    Raises:
        UserError: the location, a manifest or an index cannot be read.
    """
    splits: list[SplitSummary] = []
    made: dict[bytes, Made] = {}
    everything: list[_Sums] = []
    for category in categories or location.categories():
        about = location.manifest(category)
        parameters = _made(about)
        made.setdefault(msgspec.json.encode(parameters), parameters).categories.append(category)
        for split in dict.fromkeys(shard.split for shard in about.shards):
            sums = [
                _sums(location, category, shard, about.tokens.max_tokens)
                for shard in about.shards
                if shard.split == split
            ]
            splits.append(_counts(sums, category, split))
            everything += sums
    return Summary(
        location=location.url,
        demo=any(each.source == "demo" for each in made.values()),
        splits=splits,
        total=_counts(everything),
        made=list(made.values()),
    )


def summary_table(summary: Summary) -> Group:
    """Return the result of `summarise` as tables to print."""
    shown = Table(title=escape(summary.location), box=SIMPLE_HEAD, padding=0)
    for heading in _HEADINGS:
        is_name = heading in {"category", "split"}
        shown.add_column(
            heading, justify="left" if is_name else "right", overflow="fold", no_wrap=heading != "category"
        )
    last = len(summary.splits) - 1
    for number, row in enumerate(summary.splits):
        shown.add_row(escape(row.category), escape(row.split), *_cells(row), end_section=number == last)
    shown.add_row("total", "", *_cells(summary.total))
    made = Table.grid(padding=(0, 2))
    for each in summary.made:
        if len(summary.made) > 1:
            made.add_row("categories", escape(", ".join(each.categories)))
        made.add_row("format", str(each.format))
        made.add_row("source", escape(" ".join(filter(None, (each.source, each.revision)))))
        made.add_row("fraction", str(each.fraction))
        made.add_row("images", f"{each.image_size} px")
        made.add_row("text", escape(f"{', '.join(each.fields)}; at most {each.max_tokens} tokens"))
        made.add_row("tokenizer", escape(each.tokenizer[:12]))
    note = ["[bold]DEMO DATA: synthetic products[/bold]"] if summary.demo else []
    about = "image: fraction with an image; label: mean, stars; ratings: median rating_number; tokens: mean"
    return Group(shown, about, made, *note)


def _cells(row: SplitSummary) -> Iterable[str]:
    yield f"{row.shards:,}"
    yield f"{row.samples:,}"
    yield f"{row.bytes / 1e6:,.2f}"
    yield f"{row.image_share:.1%}"
    yield f"{row.mean_label:.2f}"
    yield f"{row.median_rating_number:,.0f}"
    yield f"{row.mean_tokens:.1f}"


def _made(about: Manifest) -> Made:
    """Return the parameters of a category's shards; the list of categories is still empty."""
    return Made(
        categories=[],
        format=about.format,
        source=about.source.kind,
        revision=about.source.revision,
        fraction=about.fraction,
        image_size=about.image_size,
        tokenizer=about.tokens.tokenizer,
        fields=about.tokens.fields,
        max_tokens=about.tokens.max_tokens,
    )


def _counts(sums: Sequence[_Sums], category: str = "", split: str = "") -> SplitSummary:
    samples = sum(len(each.rating_number) for each in sums)
    return SplitSummary(
        category=category,
        split=split,
        shards=len(sums),
        samples=samples,
        bytes=sum(each.bytes for each in sums),
        image_share=sum(each.images for each in sums) / samples,
        mean_label=sum(each.label for each in sums) / samples,
        median_rating_number=float(np.median(np.concatenate([each.rating_number for each in sums]))),
        mean_tokens=sum(each.tokens for each in sums) / samples,
    )


def _sums(location: ShardLocation, category: str, shard: Shard, max_tokens: int) -> _Sums:
    """Sum up an index.

    Raises:
        UserError: it is missing or invalid.
    """
    index = location.index(category, shard, max_tokens)
    return _Sums(
        bytes=shard.bytes,
        images=pc.sum(index["has_image"]).as_py() or 0,
        label=pc.sum(index["average_rating"]).as_py() or 0.0,
        tokens=pc.sum(pc.list_value_length(index["tokens"])).as_py() or 0,
        rating_number=index["rating_number"].to_numpy().copy(),  # so that the mapped file can be closed
    )
