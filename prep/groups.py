"""Groups: which items are the same product, over all categories.

In: ``data/items/``. Out: ``data/groups/<category>/groups-NNN.parquet``, row by row the items of the bucket of the same
number, and ``report.json``. Guaranteed (promise 3): two items with the same normalised title and store, or the same
main image, share a group, directly or through others, in whatever categories they stand; a title or image shared by
more than ``groups.max_items_per_key`` items, as placeholders are, links none. Memory is that of a bucket of all
categories, and of the items that share a key with another.

A group's id is the smallest parent_asin in it, so an item that joins changes only the groups that it links.
"""

import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prep.core import buckets, files, writers
from prep.core.buckets import all_buckets, bucket_names
from prep.core.cluster import dask_pool
from prep.core.hashes import hashes
from prep.core.params import Params, narrow
from prep.core.reports import Funnel
from prep.core.tables.groups import GROUPS

READS = ("source.categories", "download.buckets", "groups", "dask")

_NOT_WORD = re.compile(r"[\W_]+")
_KEYS = pa.schema([("kind", pa.string()), ("key", pa.uint64()), ("parent_asin", pa.string())])
_EDGES = pa.schema([("one", pa.string()), ("other", pa.string())])
_LARGEST = 10  # groups in the report


class _Linked(NamedTuple):
    """What one share of the keys adds."""

    edges: pa.Table
    too_wide: Counter[str]  # keys shared by too many items, by kind


def groups(params: Params, data: Path = Path("data")) -> None:
    """Write ``data/groups``.

    Raises:
        UserError: the items of a category stand in another number of buckets than ``download.buckets``.
    """
    params = narrow(params, READS)
    data = data.absolute()
    count = params.download.buckets
    held = [(c, all_buckets(data / "items" / c, "items", count, f"join@{c}")) for c in params.source.categories]
    with files.atomic_folder(data / "groups") as out, dask_pool(params.dask) as pool:
        work = out / "work"
        keyed = [(number, [paths[number] for _, paths in held], count, work) for number in range(count)]
        items = sum(pool.map(_write_keys, keyed, "groups: keys"))
        pieces = [work / f"keys-{number:03d}.arrow" for number in range(count)]
        links = [(pieces, number, params.groups.max_items_per_key) for number in range(count)]
        linked = pool.map(_link, links, "groups: links")
        grouped = _components(pa.concat_tables([one.edges for one in linked]))
        order = buckets.item_order(grouped.items["parent_asin"])
        buckets.write_piece(work / "grouped.arrow", grouped.items, buckets.bucket_of(order, count), count)
        placed = [
            (path, work / "grouped.arrow", number, out / category / name)
            for category, paths in held
            for number, (path, name) in enumerate(zip(paths, bucket_names("groups", count), strict=True))
        ]
        rows = sum(pool.map(_write_groups, placed, "groups: rows"))
        shutil.rmtree(work)
        report = {
            "stage": "groups",
            "tables": {"groups": Funnel.of(rows, {})},
            "groups": items - grouped.items.num_rows + len(grouped.groups),
            "groups_of_several": len(grouped.groups),
            "shared_too_widely": dict.fromkeys(("image", "title"), 0)
            | dict(sum((one.too_wide for one in linked), Counter[str]())),
            "largest": _largest(grouped),
        }
        writers.write_json(out / "report.json", report)


def title_key(title: str | None, store: str | None) -> str:
    """Return what two titles of a store have in common when they are the same: "" for a title without a word.

    Case, punctuation and spacing do not count.
    """
    words = _words(title)
    return f"{words}\x1f{_words(store)}" if words else ""


def image_key(hi_res: str | None, large: str | None) -> str:
    """Return the id in the URL of an item's main image, "" where there is none.

    The `large` URL is taken where there is one, since nearly every image has it, and hi_res of the same image has
    another id.
    """
    url = large or hi_res or ""
    return unquote(url.rsplit("/", 1)[-1]).split(".", 1)[0]


def _words(text: str | None) -> str:
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text or "").casefold()).strip()


def _write_keys(number: int, bucket: list[Path], count: int, work: Path) -> int:
    """Write the keys of a bucket of all categories, spread by key; return how many different items it has."""
    names = ["parent_asin", "title", "store", "hi_res", "large"]
    rows = pa.concat_tables([pq.read_table(path, columns=names) for path in bucket])
    ids, titles, stores, hi_res, large = (rows[name].to_pylist() for name in names)
    keys = {"title": list(map(title_key, titles, stores)), "image": list(map(image_key, hi_res, large))}
    tables = []
    for kind, values in keys.items():
        present = [i for i, value in enumerate(values) if value]
        columns = {
            "kind": pa.array([kind] * len(present), pa.string()),
            "key": hashes(f"effimini/{kind}", [values[i] for i in present]),
            "parent_asin": pa.array([ids[i] for i in present], pa.string()),
        }
        tables.append(pa.table(columns, schema=_KEYS))
    table = pa.concat_tables(tables)
    shares = buckets.bucket_of(table["key"].to_numpy(), count)
    buckets.write_piece(work / f"keys-{number:03d}.arrow", table, shares, count)
    return len(set(ids))


def _link(pieces: list[Path], number: int, max_items_per_key: int) -> _Linked:
    """Return an edge from the first item of each key of this share to each of its other ones."""
    # an item of two categories has a key once
    keys = pa.Table.from_batches(buckets.read_bucket(pieces, number), _KEYS).group_by(_KEYS.names).aggregate([])
    of_key = keys.group_by(["kind", "key"]).aggregate([("parent_asin", "count"), ("parent_asin", "min")])
    wide = of_key.filter(pc.greater(of_key["parent_asin_count"], max_items_per_key))
    linking = of_key.filter(pc.is_in(of_key["parent_asin_count"], pa.array(range(2, max_items_per_key + 1))))
    both = keys.join(linking, ["kind", "key"], join_type="inner")
    others = both.filter(pc.not_equal(both["parent_asin"], both["parent_asin_min"]))
    edges = pa.table([others["parent_asin_min"], others["parent_asin"]], schema=_EDGES)
    return _Linked(edges.group_by(_EDGES.names).aggregate([]), Counter(wide["kind"].to_pylist()))


class _Group(msgspec.Struct, frozen=True):
    """A line of the report."""

    group: str
    items: int


class _Grouped(NamedTuple):
    """The items that an edge touches, and the groups that they make."""

    items: pa.Table  # GROUPS
    groups: pa.Array  # their ids, in order
    sizes: npt.NDArray[np.int64]


def _components(edges: pa.Table) -> _Grouped:
    """Return the connected components of the edges."""
    ids = pc.unique(pa.chunked_array([*edges["one"].chunks, *edges["other"].chunks], pa.string()))
    ids = ids.take(pc.sort_indices(ids))
    one, other = (pc.index_in(edges[name], value_set=ids).to_numpy() for name in _EDGES.names)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(ids), len(ids)))
    component = connected_components(graph, directed=False)[1]
    # ids are sorted, so the first of a component is its smallest
    _, first, inverse, size = np.unique(component, return_index=True, return_inverse=True, return_counts=True)
    items = pa.table([ids, ids.take(pa.array(first[inverse])), size[inverse].astype(np.int32)], schema=GROUPS)
    by_id = np.argsort(first)
    return _Grouped(items, ids.take(pa.array(first[by_id])), size[by_id])


def _write_groups(items: Path, grouped: Path, number: int, out: Path) -> int:
    """Write the group of each item of a bucket: itself, where it shares no key; return how many rows there are."""
    ids = pq.read_table(items, columns=["parent_asin"])["parent_asin"]
    known = pa.Table.from_batches(buckets.read_bucket([grouped], number), GROUPS)
    place = pc.index_in(ids, value_set=known["parent_asin"].combine_chunks())
    groups = pc.coalesce(known["group"].take(place), ids)
    sizes = pc.fill_null(known["group_size"].take(place), 1)
    writers.write_table(out, pa.table([ids, groups, sizes], schema=GROUPS))
    return len(ids)


def _largest(grouped: _Grouped) -> list[_Group]:
    top = np.argsort(-grouped.sizes, kind="stable")[:_LARGEST]
    names = grouped.groups.take(pa.array(top)).to_pylist()
    return [_Group(name, int(size)) for name, size in zip(names, grouped.sizes[top], strict=True)]
