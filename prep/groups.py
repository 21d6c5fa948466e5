"""Groups: which items are the same product, over all categories.

In: ``data/items/``. Out: ``data/groups/<category>.parquet``, the group of each item, and ``report.json``.
Guaranteed (promise 3): two items with the same normalised title and store, or the same main image, share a group,
directly or through others, in whatever categories they stand; a title or image shared by more than
``groups.max_link`` items, as placeholders are, links none.

A group's id is the smallest parent_asin in it, so an item that joins changes only the groups that it links.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prep import cluster, files
from prep.download import bucket_files
from prep.faults import Funnel
from prep.params import Params
from prep.strata import hash64
from prep.tables import GROUPS

_NOT_WORD = re.compile(r"[\W_]+")
_NO_KEY = 0


def group(params: Params, data: Path = Path("data")) -> None:
    """Write ``data/groups``."""
    buckets = [(c, path) for c in params.source.categories for path in bucket_files(data / "items" / c, "items")]
    links = pd.concat(cluster.run(_links, buckets, params.dask), ignore_index=True)
    links["group"], unlinked = _components(links, params.groups.max_link)
    sizes = links.drop_duplicates("parent_asin").groupby("group")["parent_asin"].size().astype("int32")
    links["group_size"] = links["group"].map(sizes)
    with files.folder(data / "groups") as out:
        for category, rows in links.sort_values("parent_asin").groupby("category"):
            table = pa.Table.from_pandas(rows[GROUPS.names], GROUPS, preserve_index=False)
            files.write_table(out / f"{category}.parquet", table.replace_schema_metadata(None))
        report = {
            "stage": "groups",
            "tables": {"groups": Funnel.of(len(links), {})},
            "groups": len(sizes),
            "groups_of_several": int((sizes > 1).sum()),
            "shared_too_widely": unlinked,
            "largest": _largest(sizes),
        }
        files.write_json(out / "report.json", report)


def title_key(title: str | None, store: str | None) -> int:
    """Return the link key of a title and store: case, punctuation and spacing do not count; 0 for an empty title."""
    words = _words(title)
    return hash64("effimini/title", words, _words(store)) if words else _NO_KEY


def image_key(images: list[dict[str, Any]] | None) -> int:
    """Return the link key of the main image: the id in the URL of the first image; 0 where there is none.

    The `large` URL is taken where there is one, since every image has it, and hi_res of the same image has another
    id.
    """
    url = next((url for image in images or () for url in (image["large"], image["hi_res"]) if url), None)
    name = unquote(url.rsplit("/", 1)[-1]).split(".", 1)[0] if url else ""
    return hash64("effimini/image", name) if name else _NO_KEY


def _words(text: str | None) -> str:
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text or "").casefold()).strip()


def _links(category: str, bucket: Path) -> pd.DataFrame:
    rows = pq.read_table(bucket, columns=["parent_asin", "title", "store", "images"]).to_pylist()
    return pd.DataFrame(
        {
            "category": category,
            "parent_asin": [row["parent_asin"] for row in rows],
            "title": np.array([title_key(row["title"], row["store"]) for row in rows], "uint64"),
            "image": np.array([image_key(row["images"]) for row in rows], "uint64"),
        }
    )


def _components(links: pd.DataFrame, max_link: int) -> tuple[npt.NDArray[np.object_], dict[str, int]]:
    """Return the group of each row, and how many titles and images were shared too widely to link."""
    item, ids = pd.factorize(links["parent_asin"], sort=True)
    nodes, edges, unlinked = len(ids), [], {}
    for name in ("title", "image"):
        # one edge an item and key, whatever the number of categories the item stands in
        pairs = pd.DataFrame({"item": item, "key": links[name]}).drop_duplicates()
        pairs = pairs[pairs["key"] != _NO_KEY]
        code, keys = pd.factorize(pairs["key"])
        shared_by = np.bincount(code, minlength=len(keys))
        unlinked[name] = int((shared_by > max_link).sum())
        linking = shared_by[code] <= max_link
        edges.append((pairs["item"].to_numpy()[linking], code[linking] + nodes))
        nodes += len(keys)
    rows, columns = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][: len(ids)]
    # ids are sorted, so the first of a component is its smallest
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(ids)[first][inverse][item], unlinked


def _largest(sizes: "pd.Series[int]") -> list[dict[str, Any]]:
    top = sizes[sizes > 1].sort_index().sort_values(ascending=False, kind="stable").head(10)
    return [{"group": group, "items": int(size)} for group, size in top.items()]
