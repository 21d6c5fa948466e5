"""Take items out of a project on request, and prove that no file holds them any more.

Input: ids, the tables, and the local store. Output: ``removed/<category>.csv``, ``data/raw`` and a local store without
the items; the pipeline makes the other outputs again. Guarantees: the list is written first, so that a stopped removal
is repeated by the same command; no listed item comes back with a later run; no other item changes its split, band or
tar; an image that another item shares is kept.
"""

import json
import logging
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from effimini import search
from prep import near_duplicate_titles as titles
from prep import removed, strata
from prep.core import files, locks, pipeline
from prep.core.buckets import bucket_files, bucket_of, item_order
from prep.core.errors import UserError
from prep.core.keys import item_id, item_key
from prep.core.params import Params
from prep.core.parts import part_files
from prep.core.tables.groups import GROUPS
from prep.groups import image_key
from prep.removed import Removed
from prep.sample import usable_rows
from shards.images import journal, similarity

log = logging.getLogger(__name__)

_IMAGES = ("hi_res", "large")  # the columns with URLs of images


class Found(NamedTuple):
    """An item of the raw tables."""

    asin: str
    category: str
    urls: list[str]  # of its images
    group: str  # "" if data/groups has no such item
    same_product: list[tuple[str, str]]  # the other items of its group, with their categories
    appeared: float  # of data/groups; NaN without a time

    @property
    def item(self) -> int:
        """The hash that the lists have."""
        return removed.item_hash(self.asin)


class Removal(msgspec.Struct, frozen=True):
    """What was removed: what `effimini remove --json` prints."""

    found: list[str]  # the ids that the raw tables had
    added: int  # items that were not on a list before
    same_product: list[str]  # ids of other items of the same products, which stay
    next: list[str]  # the commands to run next


def remove(ids: Sequence[str], params: Params, data: Path = Path("data")) -> Removal:
    """Add items to the lists of removed items, and take them out of ``data/raw`` and the local store.

    Args:
        ids: parent_asins; those that were removed before are taken out of what came since.
        params: all parameters.
        data: the folder of the stages' tables.

    Raises:
        UserError: an id is in no table, or a table is missing.
    """
    categories = params.source.categories
    names, ids = ids, list(map(item_key, ids))
    with locks.hold(files.store() / "removed"):
        known = {category: removed.read_removed(data, category) for category in categories}
        listed = {one.item for each in known.values() for one in each if one.item}
        found = list(_find(ids, categories, data, listed))
        absent = [name for name in ids if name not in {one.asin for one in found}]
        if unknown := [name for name in absent if removed.item_hash(name) not in listed]:
            raise UserError(
                f"{unknown[0]} is in no category of {data}/raw, and was not removed before; check the id, or run `dvc "
                "pull` to get the tables"
            )
        new = [one for one in found if one.item not in {each.item for each in known[one.category]}]
        added = _removals(new, known, params, data)
        changed = {c for c in categories if added[c] or not removed.path_of(data, c).exists()}
        for category in sorted(changed):  # also an empty list: each stage depends on a file of its category
            removed.write_removed(data, category, [*known[category], *added[category]])
        if pipeline.FILE.exists():
            pipeline.update_dvc_yaml(params)
        _clean_store(names, [one for c in categories for one in removed.read_removed(data, c)], data)
        changed |= {category for category in categories if removed.drop(category, data)}
        log.info("%d items were added to %s", len(new), removed.path_of(data, "").parent)
        same = []
        for one in found:
            for asin, category in one.same_product:
                if asin not in ids:
                    same.append(asin)
                    log.info("%s of %s is the same product as %s, and stays", asin, category, one.asin)
    commit = [f"dvc commit --force download@{category}" for category in categories if category in changed]
    steps = [
        *commit,
        "dvc repro",
        f"git add {removed.FOLDER} dvc.yaml dvc.lock && git commit -m 'Remove items'",
        "dvc gc --workspace",
        f"effimini remove --verify {shlex.join(names)}",
    ]
    return Removal([item_id(one.asin) for one in found], len(new), list(map(item_id, same)), steps)


def holding(
    ids: Sequence[str], params: Params, data: Path, left_out: Sequence[Path] = ()
) -> Iterator[tuple[Path, str]]:
    """Yield every file of the project that holds one of `ids` or an image of it, and what it holds.

    The project's folder, the data folder, the local store and DVC's cache are searched. The demo catalogue is not: it
    is the source, which ``fetch`` makes again.

    Args:
        ids: parent_asins.
        params: all parameters.
        data: the folder of the stages' tables.
        left_out: files that are not searched, such as the list of the ids.
    """
    places = [files.project(), data, files.store(), *_dvc_cache()]
    source = [files.store() / "demo"] if params.source.kind == "demo" else []
    for path, found in search.find(search.all_files(places, [*left_out, *source]), _spellings(ids)):
        yield path, ", ".join(found)
    hashed = {removed.item_hash(item_key(name)) for name in ids}
    lists = [one for category in params.source.categories for one in removed.read_removed(data, category)]
    images = {image for one in lists if one.item in hashed for image in one.images}
    for path in _journals():
        if count := len(_urls_of(path, images)):
            yield path, f"{count} of their images"


def _spellings(ids: Sequence[str]) -> list[str]:
    """Return the texts that name items in files: their ids, as they are and in JSON, and their keys."""
    return list(dict.fromkeys(text for name in ids for text in (name.strip(), json.dumps(name)[1:-1], item_key(name))))


def _dvc_cache() -> list[Path]:
    """Return DVC's cache, if there is a DVC project here; it may lie elsewhere."""
    from dvc.exceptions import NotDvcRepoError  # noqa: PLC0415 -- takes a second
    from dvc.repo import Repo  # noqa: PLC0415

    try:
        with Repo(str(files.project())) as repo:
            return [Path(repo.cache.local.path)]
    except NotDvcRepoError:
        return []


def _rows(data: Path, table: str, category: str, asin: str) -> pa.Table | None:
    """Return the rows of an item in raw, items or groups; None if the category has no such table."""
    paths = bucket_files(data / table / category, "groups" if table == "groups" else "items")
    if not paths:
        return None
    ids = pa.array([asin])
    rows = pq.read_table(paths[int(bucket_of(item_order(ids), len(paths))[0])])
    return rows.filter(pc.is_in(rows["parent_asin"], value_set=ids))


def _find(ids: Sequence[str], categories: Sequence[str], data: Path, listed: set[int]) -> Iterator[Found]:
    """Yield the items with the ids `ids` in the raw tables.

    Raises:
        UserError: a category has no raw tables, and an id is not `listed` as removed.
    """
    for category in categories:
        for asin in dict.fromkeys(ids):
            rows = _rows(data, "raw", category, asin)
            if rows is None and removed.item_hash(asin) in listed:
                continue
            if rows is None:
                raise UserError(f"{data}/raw/{category} has no items; run `dvc pull data/raw/{category}`, then again")
            if rows.num_rows:
                urls = [url for name in _IMAGES for url in rows[name].to_pylist() if url]
                groups = _rows(data, "groups", category, asin) or GROUPS.empty_table()
                group, size = (str(groups["group"][0]), groups["group_size"][0].as_py()) if len(groups) else ("", 1)
                same = _members(group, asin, categories, data) if size > 1 else []
                appeared = groups["appeared"].to_numpy()[0] if len(groups) else float("nan")
                yield Found(asin, category, urls, group, same, float(appeared))


def _members(group: str, asin: str, categories: Sequence[str], data: Path) -> list[tuple[str, str]]:
    """Return the items of a group but `asin`, with their categories."""
    members = []
    for category in categories:
        for path in bucket_files(data / "groups" / category, "groups"):
            rows = pq.read_table(path, columns=["parent_asin"], filters=[("group", "=", group)])["parent_asin"]
            members += [(other, category) for other in rows.to_pylist() if other != asin]
    return members


def _removals(
    found: Sequence[Found], known: dict[str, list[Removed]], params: Params, data: Path
) -> dict[str, list[Removed]]:
    """Return what is added to the list of each category: the items with their places, and groups that keep theirs."""
    added: dict[str, list[Removed]] = {category: [] for category in params.source.categories}
    listed = [one for each in known.values() for one in each]
    gone = {one.item for one in listed} | {one.item for one in found}
    shared = _shared_urls(found, gone, params.source.categories, data)
    salt = params.sample.salt
    for one in found:
        images = removed.image_hashes(sorted({image_key(url, None) for url in one.urls if url not in shared}))
        place = Removed(one.item, tuple(sorted(images.tolist())))
        items = _rows(data, "items", one.category, one.asin)
        if items is None or not one.group:
            log.warning("warning: data/items or data/groups lacks %s: it keeps no place, so others may move", one.asin)
        elif rows := usable_rows(items, params):
            split, order = strata.split_positions([one.group], salt), strata.order_of([one.group], salt)
            if params.sample.split == "time":
                split = strata.time_positions(np.array([one.appeared]))
            removed.keep_places([one.group], split, order, listed)
            stars, count = np.array([rows[0].average_rating], float), np.array([rows[0].rating_number or 0], np.int64)
            place = place._replace(
                stratum=int(strata.stratum_of(stars, count)[0]),
                split=float(split[0]),
                order=int(order[0]) + (one.asin != one.group),  # after the first item of its group
                slot=int(not _is_excluded(one, data)),
            )
            heirs = [(asin, category) for asin, category in one.same_product if removed.item_hash(asin) not in gone]
            if removed.item_hash(one.group) in gone and heirs:
                heir = int(removed.group_hashes([min(heirs)[0]])[0])
                for category in {category for _, category in heirs}:
                    added[category].append(Removed(split=float(split[0]), order=int(order[0]), group=heir))
        added[one.category].append(place)
    return added


def _shared_urls(found: Sequence[Found], gone: set[int], categories: Sequence[str], data: Path) -> set[str]:
    """Return the image URLs of the items that an item which stays has too."""
    urls = pa.array({url for one in found for url in one.urls}, pa.string())
    shared: set[str] = set()
    for path in [path for c in categories for path in bucket_files(data / "raw" / c, "items")]:
        rows = pq.read_table(path, columns=["parent_asin", *_IMAGES])
        for name in _IMAGES:
            same = rows.filter(pc.is_in(rows[name], value_set=urls))
            stays = ~np.isin(item_order(same["parent_asin"]), np.array(list(gone), np.uint64))
            shared |= set(same[name].filter(pa.array(stays)).to_pylist())
    return shared


def _is_excluded(one: Found, data: Path) -> bool:
    paths = part_files(data / "exclusions" / one.category)
    return any(pq.read_table(path, filters=[("parent_asin", "=", one.asin)]).num_rows for path in paths)


def _journals() -> list[Path]:
    return sorted((files.store() / "images").rglob("*.journal"))


def _urls_of(path: Path, images: set[int]) -> set[str]:
    """Return the URLs in an image store whose image id has one of the hashes `images`."""
    urls = journal.urls(path)
    hashed: npt.NDArray[np.uint64] = removed.image_hashes([image_key(url, None) for url in urls])
    chosen = np.isin(hashed, np.array(list(images), np.uint64))
    return {url for url, is_gone in zip(urls, chosen, strict=True) if is_gone}


def _clean_store(ids: Sequence[str], lists: Sequence[Removed], data: Path) -> None:
    """Remove from the local store what holds the items, or was computed from their texts and images."""
    hashed = {removed.item_hash(item_key(name)) for name in ids}
    images = {image for one in lists if one.item in hashed for image in one.images}
    for path in _journals():
        if urls := _urls_of(path, images):
            log.info("%s: removed %d records", path, journal.forget(path, urls))
    store = files.store()
    computed = [*(store / "features").glob("*"), *_of_parts(ids, data)]
    named = search.find(search.all_files([store], [store / "demo", *_journals()]), _spellings(ids))
    for path in [*computed, *(path for path, _ in named)]:
        if not path.name.endswith(".lock"):
            place = store / Path(*path.relative_to(store).parts[:2])
            if place.parent.name in {"train", "table"}:  # a checkpoint, or a converted table: they are only read whole
                shutil.rmtree(place, ignore_errors=True)
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
            log.info("removed %s", path)


def _of_parts(ids: Sequence[str], data: Path) -> Iterator[Path]:
    """Yield what `shards.near_duplicates` keeps of the parts that have the items: a row of numbers for each."""
    folder = files.store() / "near_duplicates"
    for path, _ in search.find((data / "sample").glob("*/*.parquet"), list(map(item_key, ids))):
        yield from folder.glob(f"{files.fingerprint(titles.FORMAT, files.sha256(path))}.*")
        table = data / "images" / path.parent.name / path.name
        if table.exists():
            yield from folder.glob(f"{files.fingerprint(similarity.FORMAT, files.sha256(table))}.*")
