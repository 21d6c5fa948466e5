"""Groups stage: find items that are the same product, across all categories.

Input: ``data/items/``.
Output: ``data/groups/<category>/groups-NNN.parquet``, with rows aligned with those of the same bucket of items, and
``report.json``.
Guarantees: two items with the same normalized title and store, or with the same main image, are in one group, directly
or transitively, also across categories. A title or image of more than ``groups.max_items_per_key`` items (for example a
placeholder) links none of them. Memory is bounded by one bucket of all categories plus the items that share a key.

The id of a group is its smallest parent_asin, so a new item changes only the groups that it links. With a split by time
it may also change which fraction of the products appeared before another one.
"""

import re
import shutil
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

from prep import appearance
from prep.appearance import Appearance
from prep.core import buckets, files, writers
from prep.core.buckets import all_buckets, bucket_names
from prep.core.cluster import dask_pool
from prep.core.errors import UserError
from prep.core.hashes import hashes
from prep.core.params import Params, narrow
from prep.core.reports import Funnel
from prep.core.tables.groups import GROUPS
from prep.core.text import normalized, present

READS = ("source.categories", "download.buckets", "groups", "sample.split", "dask")

_AMAZON = "/images/I/"  # in the URL of every image of the dataset
_NOT_WORD = re.compile(r"[\W_]+")
_KEYS = pa.schema([("kind", pa.string()), ("key", pa.uint64()), ("parent_asin", pa.string())])
_GROUPED = pa.schema([GROUPS.field(name) for name in ("parent_asin", "group", "group_size")])
_EDGES = pa.schema([("one", pa.string()), ("other", pa.string())])
_LARGEST = 10  # number of largest groups in the report


class _Linked(NamedTuple):
    """The links from one bucket of keys."""

    edges: pa.Table
    too_wide: Counter[str]  # number of keys that too many items share, by kind


def groups(params: Params, data: Path = Path("data")) -> None:
    """Write ``data/groups``.

    Raises:
        UserError: the items of a category do not have ``download.buckets`` buckets.
    """
    params = narrow(params, READS)
    data = data.absolute()
    count = params.download.buckets
    item_buckets = [(c, all_buckets(data / "items" / c, "items", count, f"join@{c}")) for c in params.source.categories]
    with files.atomic_folder(data / "groups") as out, dask_pool(params.dask, out) as pool:
        work = out / "work"
        keyed = [(number, [paths[number] for _, paths in item_buckets], count, work) for number in range(count)]
        items = sum(pool.map(_write_keys, keyed, "groups, keys: buckets"))
        pieces = [work / f"keys-{number:03d}.arrow" for number in range(count)]
        links = [(pieces, number, params.groups.max_items_per_key) for number in range(count)]
        linked = pool.map(_link, links, "groups, links: buckets")
        grouped = _components(pa.concat_tables([one.edges for one in linked]))
        order = buckets.item_order(grouped.items["parent_asin"])
        buckets.write_piece(work / "grouped.arrow", grouped.items, buckets.bucket_of(order, count), count)
        when = None
        if params.sample.split == "time":
            days = [
                ([paths[number] for _, paths in item_buckets], grouped.items, work / f"days-{number:03d}.parquet")
                for number in range(count)
            ]
            when = appearance.appearance(pool.map(appearance.count_days, days, "groups, times: buckets"))
            if when is None:
                raise UserError(
                    "sample.split is time, but no item has one: neither a review nor the detail Date First Available; "
                    "set sample.split: hash, or source.reviews: true, or map the field date of a table"
                )
        placed = [
            (path, work / "grouped.arrow", number, when, out / category / name)
            for category, paths in item_buckets
            for number, (path, name) in enumerate(zip(paths, bucket_names("groups", count), strict=True))
        ]
        rows = sum(pool.map(_write_groups, placed, "groups, rows: buckets"))
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
    """Return the key that items with the same title and store share, "" for a title without words.

    Case, punctuation and whitespace are ignored.
    """
    words = _words(title)
    return f"{words}\x1f{_words(store)}" if words else ""


def image_key(hi_res: str | None, large: str | None) -> str:
    """Return the id in the URL of an item's main image, "" if there is none.

    The `large` URL is preferred because nearly every image has one; the hi_res URL of the same image has another id. An
    image of another host than the dataset's has no id: its key is the URL.
    """
    url = large or hi_res or ""
    return unquote(url.rsplit("/", 1)[-1]).split(".", 1)[0] if _AMAZON in url else url


def _words(text: str | None) -> str:
    return _NOT_WORD.sub(" ", normalized("NFKC", present(text)).casefold()).strip()


def _write_keys(number: int, bucket: list[Path], count: int, work: Path) -> int:
    """Write the keys of one bucket of all categories, partitioned by key; return the number of distinct items."""
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
    numbers = buckets.bucket_of(table["key"].to_numpy(), count)
    buckets.write_piece(work / f"keys-{number:03d}.arrow", table, numbers, count)
    return len(set(ids))


def _link(pieces: list[Path], number: int, max_items_per_key: int) -> _Linked:
    """Return, for each key of one bucket of keys, an edge from its first item to each of its other items."""
    # drop duplicates: an item that is in two categories counts once per key
    keys = pa.Table.from_batches(buckets.read_bucket(pieces, number), _KEYS).group_by(_KEYS.names).aggregate([])
    of_key = keys.group_by(["kind", "key"]).aggregate([("parent_asin", "count"), ("parent_asin", "min")])
    wide = of_key.filter(pc.greater(of_key["parent_asin_count"], max_items_per_key))
    linking = of_key.filter(pc.is_in(of_key["parent_asin_count"], pa.array(range(2, max_items_per_key + 1))))
    both = keys.join(linking, ["kind", "key"], join_type="inner")
    others = both.filter(pc.not_equal(both["parent_asin"], both["parent_asin_min"]))
    edges = pa.table([others["parent_asin_min"], others["parent_asin"]], schema=_EDGES)
    return _Linked(edges.group_by(_EDGES.names).aggregate([]), Counter(wide["kind"].to_pylist()))


class _Group(msgspec.Struct, frozen=True):
    """A group in the report."""

    group: str
    items: int


class _Grouped(NamedTuple):
    """The items that have an edge, and the groups of these items."""

    items: pa.Table  # schema _GROUPED
    groups: pa.Array  # group ids, sorted
    sizes: npt.NDArray[np.int64]  # of `groups`


def _components(edges: pa.Table) -> _Grouped:
    """Return the connected components of the edges."""
    ids = pc.unique(pa.chunked_array([*edges["one"].chunks, *edges["other"].chunks], pa.string()))
    ids = ids.take(pc.sort_indices(ids))
    one, other = (pc.index_in(edges[name], value_set=ids).to_numpy() for name in _EDGES.names)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(ids), len(ids)))
    component = connected_components(graph, directed=False)[1]
    # ids are sorted, so the first one of a component is its smallest
    _, first, inverse, size = np.unique(component, return_index=True, return_inverse=True, return_counts=True)
    groups = ids.take(pa.array(first[inverse]))
    items = pa.table([ids, groups, size[inverse].astype(np.int32)], schema=_GROUPED)
    by_id = np.argsort(first)
    return _Grouped(items, ids.take(pa.array(first[by_id])), size[by_id])


def _write_groups(items: Path, grouped: Path, number: int, when: Appearance | None, out: Path) -> int:
    """Write the group of each item of a bucket and return the number of rows; an unlinked item is its own group."""
    ids = pq.read_table(items, columns=["parent_asin"])["parent_asin"]
    linked = pa.Table.from_batches(buckets.read_bucket([grouped], number), _GROUPED)
    place = pc.index_in(ids, value_set=linked["parent_asin"].combine_chunks())
    groups = pc.coalesce(linked["group"].take(place), ids)
    sizes = pc.fill_null(linked["group_size"].take(place), 1)
    days = grouped.with_name(f"days-{number:03d}.parquet")
    appeared = when.of(ids, groups, days) if when else pa.nulls(len(ids), pa.float64())
    writers.write_table(out, pa.table([ids, groups, sizes, appeared], schema=GROUPS))
    return len(ids)


def _largest(grouped: _Grouped) -> list[_Group]:
    top = np.argsort(-grouped.sizes, kind="stable")[:_LARGEST]
    names = grouped.groups.take(pa.array(top)).to_pylist()
    return [_Group(name, int(size)) for name, size in zip(names, grouped.sizes[top], strict=True)]
