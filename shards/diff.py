"""Diff: compare two versions of shards.

Input: two locations, each the folder of a version; only manifests and indexes are read, no tars. Output: the
differences. Guarantees: equal versions have no differences; the same versions give the same output; the index of a tar
that both versions contain is read only for its labels, and only if other tars of its split changed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import ks_2samp

from prep.core.params import flatten
from prep.core.tables.shards import INDEX, TABULAR
from shards.index import tabular_values
from shards.location import ShardLocation, index_file
from shards.manifest import OF_SPLITS, Manifest, Shard

COMPARED_FIELDS = ("average_rating", "rating_number", "review_count", "has_image")
EXAMPLES_PER_CHANGE = 5
_READ = pa.schema([INDEX.field(name) for name in ("key", *COMPARED_FIELDS, "jpg_length")])
# Of each sample, in addition: where it is, and its token ids as bytes.
_PLACE = pa.schema([("text", pa.large_binary()), ("band", pa.int16()), ("split", pa.string())])


class LabelValues(NamedTuple):
    """Label columns of the samples of one version."""

    stars: npt.NDArray[np.float32]  # average_rating
    rating_number: npt.NDArray[np.int64]


class Change(msgspec.Struct, frozen=True):
    """A parameter with different values in the manifests of the two versions; None if a manifest lacks it."""

    name: str
    old: Any
    new: Any
    categories: list[str]  # with this difference


class Keys(msgspec.Struct, frozen=True):
    """Items added to a split and removed from it, at most `EXAMPLES_PER_CHANGE` each."""

    into: list[str] = msgspec.field(name="in")
    out: list[str]


class SplitChange(msgspec.Struct, frozen=True, kw_only=True):
    """Items added and removed, and shards, of a split whose tars or indexes changed."""

    category: str
    split: str
    into: int = msgspec.field(name="in")
    out: int
    kept: int
    new: int
    gone: int
    reindexed: int  # kept, with a different index
    bytes_new: int
    examples: Keys


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Items of both versions that are in a different split."""

    category: str
    origin: str = msgspec.field(name="from")
    to: str
    count: int
    examples: list[str]


class MetadataExample(msgspec.Struct, frozen=True):
    """A metadata value of an item in both versions; None if it is missing."""

    key: str
    old: float | None
    new: float | None


class MetadataChange(msgspec.Struct, frozen=True, kw_only=True):
    """Items of both versions with a different label, count, image flag or tabular value."""

    category: str
    fact: str
    count: int
    examples: list[MetadataExample]


class ContentChange(msgspec.Struct, frozen=True, kw_only=True):
    """Items of both versions with another band, text (token ids) or image (its length; as few bytes as that shows)."""

    category: str
    what: str  # band | text | image
    count: int
    examples: list[str]


class Spread(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Statistics of the labels (stars) of a version; only `samples` if there are none."""

    samples: int
    mean: float | None = None
    deviation: float | None = None
    median: float | None = None
    five_share: float | None = None
    median_rating_number: float | None = None


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Drift of the labels of a split of a category, or of all categories ("all")."""

    category: str
    split: str
    old: Spread
    new: Spread
    ks: float | None  # two-sample Kolmogorov-Smirnov statistic; None if a version has no samples


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What changed between two versions."""

    old: str
    new: str
    demo: bool
    parameters: list[Change]
    added: list[str]  # categories
    removed: list[str]
    splits: list[SplitChange]
    moved: list[Move]
    metadata: list[MetadataChange]
    content: list[ContentChange]
    drift: list[Drift]
    unexplained_moves: bool  # moved, though parameters, source and categories do not explain it


class _Pair(NamedTuple):
    """The manifests of a category in both versions; None if a version lacks the category."""

    old: Manifest | None
    new: Manifest | None


class _Shards(NamedTuple):
    """The shards of a category, by the versions that contain them; kept ones as (old, new) with the same tar."""

    kept: list[tuple[Shard, Shard]]
    removed: list[Shard]
    new: list[Shard]

    @property
    def splits(self) -> list[str]:
        """The splits whose tars or indexes changed."""
        reindexed = [new for old, new in self.kept if old.index_sha256 != new.index_sha256]
        return list(dict.fromkeys(shard.split for shard in (*self.removed, *self.new, *reindexed)))


def compare(old: ShardLocation, new: ShardLocation, categories: Sequence[str] | None = None) -> Comparison:
    """Compare two versions.

    Args:
        old: the earlier version.
        new: the later version.
        categories: to compare, each present in both versions; None compares all categories of either version.

    Raises:
        UserError: a location, a manifest or an index cannot be read.
    """
    before, after = ({c: side.manifest(c) for c in categories or side.categories()} for side in (old, new))
    pairs = {name: _Pair(before.get(name), after.get(name)) for name in sorted({*before, *after})}
    shards = {name: _sort(pair) for name, pair in pairs.items()}
    parameters = _parameter_changes(pairs)
    added = [name for name in pairs if name not in before]
    removed = [name for name in pairs if name not in after]
    drift = list(_drifts(old, new, shards))
    splits: list[SplitChange] = []
    moved: list[Move] = []
    metadata: list[MetadataChange] = []
    content: list[ContentChange] = []
    for name, changed in shards.items():
        removed_rows, new_rows = _index_rows(old, name, changed.removed), _index_rows(new, name, changed.new)
        splits += _split_changes(name, changed, removed_rows, new_rows)
        old_rows, new_rows = _in_both(removed_rows, new_rows)
        moved += _moved(name, old_rows, new_rows)
        metadata += _metadata_changes(name, old_rows, new_rows)
        content += _content_changes(pairs[name], old_rows, new_rows)
    explained = added or removed or any(change.name.startswith(OF_SPLITS) for change in parameters)
    return Comparison(
        old=old.url,
        new=new.url,
        demo=any(about.source.kind == "demo" for about in (*before.values(), *after.values())),
        parameters=parameters,
        added=added,
        removed=removed,
        splits=splits,
        moved=moved,
        metadata=metadata,
        content=content,
        drift=drift,
        unexplained_moves=bool(moved) and not explained,
    )


def _sort(pair: _Pair) -> _Shards:
    """Group shards by whether the same tar with the same name is in both versions."""
    old, new = ({(s.name, s.sha256): s for s in about.shards} if about else {} for about in pair)
    return _Shards(
        [(old[tar], shard) for tar, shard in new.items() if tar in old],
        [shard for tar, shard in old.items() if tar not in new],
        [shard for tar, shard in new.items() if tar not in old],
    )


def _parameter_changes(pairs: Mapping[str, _Pair]) -> list[Change]:
    """List the parameters that differ between the manifests; equal differences are merged over categories."""
    changes: dict[bytes, Change] = {}
    for category, pair in pairs.items():
        if pair.old is None or pair.new is None:
            continue
        old, new = _flat_parameters(pair.old), _flat_parameters(pair.new)
        for name in sorted({*old, *new}):
            if (was := old.get(name)) != (now := new.get(name)):
                change = Change(name, was, now, [])
                changes.setdefault(msgspec.json.encode(change), change).categories.append(category)
    return sorted(changes.values(), key=lambda change: change.name)


def _flat_parameters(about: Manifest) -> dict[str, Any]:
    """Return source, tokenization and parameters of a manifest, by dotted name."""
    stated = {name: msgspec.to_builtins(getattr(about, name)) for name in ("source", "tokens")}
    return dict(flatten(stated | {TABULAR: list(about.tabular)} | about.parameters))


def _index_rows(location: ShardLocation, category: str, shards: Sequence[Shard]) -> pa.Table:
    """Read key, compared fields, tabular columns, text, band and split of the samples of shards.

    Raises:
        UserError: an index is missing or invalid.
    """
    location.prefetch(index_file(category, shard) for shard in shards)
    stored = location.manifest(category).tabular if shards else ()
    names = [name for name in dict.fromkeys(stored) if name not in {*_READ.names, *_PLACE.names}]
    schema = pa.schema([*_READ, *(pa.field(name, pa.float32()) for name in names), *_PLACE])
    tables = [schema.empty_table()]
    for shard in shards:
        index = location.index(category, shard, tabular=len(stored))
        columns = [index[name] for name in _READ.names] + _tabular(index, stored, names)
        band = pa.scalar(-1 if shard.band is None else shard.band, pa.int16())
        place = [_token_bytes(index), pa.repeat(band, len(index)), pa.repeat(shard.split, len(index))]
        tables.append(pa.table([*columns, *place], schema=schema))
    return pa.concat_tables(tables).combine_chunks()


def _tabular(index: pa.Table, stored: Sequence[str], names: Sequence[str]) -> list[pa.Array]:
    """Return the tabular columns `names` of an index that has the columns `stored`; null where a value is missing."""
    values = tabular_values(index)
    return [pa.array(values[:, stored.index(name)], from_pandas=True) for name in names]


def _split_changes(category: str, shards: _Shards, removed: pa.Table, added: pa.Table) -> Iterator[SplitChange]:
    """Count items and shards of the splits whose tars or indexes changed."""
    leaving = removed.filter(pc.is_null(pc.index_in(removed["key"], value_set=added["key"])))
    coming = added.filter(pc.is_null(pc.index_in(added["key"], value_set=removed["key"])))
    existing = {digest for old, _ in shards.kept for digest in (old.sha256, old.index_sha256)}
    existing |= {digest for shard in shards.removed for digest in (shard.sha256, shard.index_sha256)}
    for split in shards.splits:
        kept = [(old, new) for old, new in shards.kept if new.split == split]
        new = [shard for shard in shards.new if shard.split == split]
        contents = {s.sha256: s.bytes for s in new} | {
            s.index_sha256: s.index_bytes for s in (*new, *(n for _, n in kept))
        }
        out, into = (side.filter(pc.equal(side["split"], split))["key"].to_pylist() for side in (leaving, coming))
        yield SplitChange(
            category=category,
            split=split,
            into=len(into),
            out=len(out),
            kept=len(kept),
            new=len(new),
            gone=sum(shard.split == split for shard in shards.removed),
            reindexed=sum(o.index_sha256 != n.index_sha256 for o, n in kept),
            bytes_new=sum(size for digest, size in contents.items() if digest not in existing),
            examples=Keys(into[:EXAMPLES_PER_CHANGE], out[:EXAMPLES_PER_CHANGE]),
        )


def _in_both(removed: pa.Table, added: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the old and the new rows of the items that both tables contain, in the same order."""
    row = pc.index_in(removed["key"], value_set=added["key"])
    return removed.filter(pc.is_valid(row)), added.take(row.drop_null())


def _moved(category: str, old: pa.Table, new: pa.Table) -> list[Move]:
    """Count the items that are in a different split."""
    by_move: dict[tuple[str, str], list[str]] = defaultdict(list)
    differs = pc.not_equal(old["split"], new["split"])
    columns = (old.filter(differs)["split"], new.filter(differs)["split"], old.filter(differs)["key"])
    for was, now, key in zip(*(column.to_pylist() for column in columns), strict=True):
        by_move[was, now].append(key)
    return [
        Move(category=category, origin=was, to=now, count=len(keys), examples=keys[:EXAMPLES_PER_CHANGE])
        for (was, now), keys in sorted(by_move.items())
    ]


def _metadata_changes(category: str, old: pa.Table, new: pa.Table) -> Iterator[MetadataChange]:
    """Count the items with a different value, for each compared field."""
    known = {*_READ.names, *_PLACE.names}
    tabular = [name for name in old.column_names if name in new.column_names and name not in known]
    for field in (*COMPARED_FIELDS, *tabular):
        missing = pc.not_equal(pc.is_null(old[field]), pc.is_null(new[field]))
        differs = pc.coalesce(pc.not_equal(old[field], new[field]), missing)
        if count := pc.sum(differs).as_py():
            was, now = (side.filter(differs).slice(0, EXAMPLES_PER_CHANGE) for side in (old, new))
            columns = (was["key"].to_pylist(), was[field].to_pylist(), now[field].to_pylist())
            examples = [MetadataExample(key, _rounded(a), _rounded(b)) for key, a, b in zip(*columns, strict=True)]
            yield MetadataChange(category=category, fact=field, count=count, examples=examples)


def _content_changes(pair: _Pair, old: pa.Table, new: pa.Table) -> Iterator[ContentChange]:
    """Count the items in another band of the same split, and those with another text or image."""
    if pair.old is None or pair.new is None:
        return
    image = pc.and_(pc.not_equal(old["jpg_length"], new["jpg_length"]), pc.and_(old["has_image"], new["has_image"]))
    changes = {
        "band": pc.and_(pc.not_equal(old["band"], new["band"]), pc.equal(old["split"], new["split"])),
        "text": pc.and_(pc.not_equal(old["text"], new["text"]), pair.old.tokens == pair.new.tokens),
        "image": image,
    }
    for what, differs in changes.items():
        if count := pc.sum(differs).as_py():
            examples = old["key"].filter(differs).slice(0, EXAMPLES_PER_CHANGE).to_pylist()
            yield ContentChange(category=pair.new.category, what=what, count=count, examples=examples)


def _token_bytes(index: pa.Table) -> pa.LargeBinaryArray:
    """Return the token ids of each sample as bytes, which can be compared."""
    lists = index["tokens"].combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64) * 4  # bytes of an int32
    ids = np.ascontiguousarray(lists.values.to_numpy())
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(lists), [None, pa.py_buffer(offsets), pa.py_buffer(ids)]
    )


def _rounded(value: float | None) -> float | None:
    """Return a value without the representation error of a float32, in which labels are stored."""
    return None if value is None else round(value, 6)


def _drifts(old: ShardLocation, new: ShardLocation, shards: Mapping[str, _Shards]) -> Iterator[Drift]:
    """Yield, by split, the drift of the categories whose labels differ, and of all categories if there are several."""
    nearer = old if old.local_path and not new.local_path else new
    for split in dict.fromkeys(s.split for each in shards.values() for s in (*each.removed, *each.new)):
        sides: dict[str, tuple[LabelValues, LabelValues]] = {}
        for category, each in shards.items():
            kept, removed, added = (
                _index_rows(location, category, [shard for shard in group if shard.split == split])
                for location, group in ((nearer, [n for _, n in each.kept]), (old, each.removed), (new, each.new))
            )
            sides[category] = _labels(kept, removed), _labels(kept, added)
        for category, (was, now) in sides.items():
            if not all(np.array_equal(getattr(was, name), getattr(now, name)) for name in LabelValues._fields):
                yield _drift(category, split, was, now)
        if len(sides) > 1:
            was, now = (
                LabelValues(*(np.concatenate(columns) for columns in zip(*side, strict=True)))
                for side in zip(*sides.values(), strict=True)
            )
            yield _drift("all", split, was, now)


def _labels(*tables: pa.Table) -> LabelValues:
    both = pa.concat_tables(table.select(["average_rating", "rating_number"]) for table in tables)
    return LabelValues(both["average_rating"].to_numpy(), both["rating_number"].to_numpy())


def _drift(category: str, split: str, old: LabelValues, new: LabelValues) -> Drift:
    both = len(old.stars) and len(new.stars)
    return Drift(
        category=category,
        split=split,
        old=_label_stats(old),
        new=_label_stats(new),
        ks=round(float(ks_2samp(old.stars, new.stars, method="asymp").statistic), 6) if both else None,
    )


def _label_stats(labels: LabelValues) -> Spread:
    stars = labels.stars
    if not len(stars):
        return Spread(samples=0)
    return Spread(
        samples=len(stars),
        mean=round(float(stars.mean(dtype=np.float64)), 6),
        deviation=round(float(stars.std(dtype=np.float64)), 6),
        median=round(float(np.median(stars)), 6),
        five_share=round(float((stars == 5).mean()), 6),
        median_rating_number=float(np.median(labels.rating_number)),
    )
