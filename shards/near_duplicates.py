"""Near duplicates of the items of a part of the sample among other parts: the same pictures, and the same titles.

Input: parts of ``data/sample`` and ``data/images``. Output: for each row of a part, rows of the others that it repeats.
Guarantees: a picture is compared pixel by pixel with at most `CANDIDATES` others, so time is linear in rows; results
and differences are kept in the local store under the hashes of the parts, so that a part is searched again only if the
others have changed, and no two pictures are compared twice; in memory are the images of at most `ROWS_IN_MEMORY` rows
and the descriptors of all the others.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep import near_duplicate_titles as titles
from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.tables.exclusions import SAME_PICTURE, SAME_PRODUCT_TITLE
from prep.core.tables.images import OK
from shards.images import similarity
from shards.nearest import NearestIndex

CANDIDATES = 4  # pictures that one is compared with pixel by pixel: those with the nearest descriptors
ROWS_IN_MEMORY = 20_000  # of a part, whose images are in memory at once
MATCHES = pa.schema([("row", pa.int32()), ("part", pa.int32()), ("other", pa.int32()), ("difference", pa.float32())])
# The pixel-by-pixel differences of a part's pictures: `images` is the hash of the other part's file.
_DIFFERENCES = pa.schema(
    [("row", pa.int32()), ("images", pa.string()), ("other", pa.int32()), ("difference", pa.float32())]
)
_DESCRIPTORS = pa.schema([("row", pa.int32()), ("descriptor", pa.binary(similarity.DIMENSIONS))])

Rows = npt.NDArray[np.int64]


class Part(NamedTuple):
    """A part of the sample with its images."""

    sample: Path
    images: Path

    @property
    def split(self) -> str:
        """The split of its items."""
        return self.sample.stem.partition("-")[0]

    @property
    def category(self) -> str:
        """The category of its items."""
        return self.sample.parent.name

    def in_folder(self, work: Path, name: str) -> Path:
        """Return the path of a file about this part in a working folder."""
        return work / f"{self.category}.{self.sample.stem}.{name}"


class Hashed(NamedTuple):
    """A part whose descriptors and signatures are in a working folder, with the hashes of its files by reason."""

    part: Part
    descriptors: Path
    signatures: Path
    hashes: dict[str, str]


def describe(part: Part, work: Path) -> Hashed:
    """Compute the descriptors of a part's pictures and the signatures of its titles, or take them from the store.

    Raises:
        UserError: there are no images of the part, or they are those of another sample.
    """
    if not part.images.exists():
        raise UserError(f"{part.images} does not exist; run `dvc repro fetch`")
    if pq.read_metadata(part.images).num_rows != pq.read_metadata(part.sample).num_rows:
        raise UserError(f"{part.images} does not have the items of {part.sample}; run `dvc repro fetch`")
    hashes = {SAME_PICTURE: files.sha256(part.images), SAME_PRODUCT_TITLE: files.sha256(part.sample)}
    # their names state the content, as a process keeps the index that it made of a file
    pictures = f"{files.fingerprint(similarity.FORMAT, hashes[SAME_PICTURE])}.descriptors"
    words = f"{files.fingerprint(titles.FORMAT, hashes[SAME_PRODUCT_TITLE])}.signatures"
    hashed = Hashed(part, part.in_folder(work, pictures), part.in_folder(work, words), hashes)
    files.cached(f"near_duplicates/{pictures}", partial(_write_descriptors, part.images), hashed.descriptors)
    files.cached(f"near_duplicates/{words}", partial(_write_signatures, part.sample), hashed.signatures)
    return hashed


def near_duplicates(one: Hashed, others: tuple[Hashed, ...], reason: str, work: Path) -> pa.Table:
    """Return the rows of a part that repeat a row of other parts.

    Args:
        one: the part whose rows may be repetitions.
        others: the parts that they may repeat.
        reason: one of ``decontaminate.reasons``.
        work: a folder for temporary files, the one that all parts were described in.

    Returns:
        A table of schema MATCHES: row of `one`, number of the part in `others`, row of that part, and difference of
        the pictures, which is null for titles. A row has at most `CANDIDATES` matches of its picture, and one of its
        title.
    """
    depends_on = (CANDIDATES, similarity.FORMAT) if reason == SAME_PICTURE else (titles.FORMAT,)
    known = files.fingerprint(reason, depends_on, [each.hashes[reason] for each in (one, *others)])
    write = _write_same_pictures if reason == SAME_PICTURE else _write_same_titles
    path = one.part.in_folder(work, f"{known}.matches")
    files.cached(f"near_duplicates/{known}.matches", partial(write, one, others), path)
    return pq.read_table(path)


def _write_descriptors(images: Path, path: Path) -> None:
    writers.write_batches(path, _DESCRIPTORS, _descriptor_batches(images))


def _descriptor_batches(images: Path) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in pq.ParquetFile(images).iter_batches(1_000, columns=["outcome", "image"]):
        fetched = np.flatnonzero(pc.equal(batch["outcome"], OK).to_numpy(zero_copy_only=False))
        found = [similarity.descriptors(batch["image"][int(row)].as_py()) for row in fetched]
        rows = np.repeat(start + fetched, [len(views) for views in found]).astype(np.int32)
        descriptors = [view.tobytes() for views in found for view in views]
        yield pa.record_batch([pa.array(rows), pa.array(descriptors, pa.binary(similarity.DIMENSIONS))], _DESCRIPTORS)
        start += batch.num_rows


def _write_signatures(sample: Path, path: Path) -> None:
    rows = pq.read_table(sample, columns=["title", "store"])
    writers.write_table(path, titles.signatures(rows["title"].to_pylist(), rows["store"].to_pylist()))


def _write_same_titles(one: Hashed, others: tuple[Hashed, ...], path: Path) -> None:
    index, parts, rows = _title_index(tuple(each.signatures for each in others))
    found = index.search(pq.read_table(one.signatures))
    matched = np.flatnonzero(found >= 0)
    columns = [matched, parts[found[matched]], rows[found[matched]], pa.nulls(len(matched), pa.float32())]
    writers.write_table(path, pa.table(columns, names=MATCHES.names).cast(MATCHES))


@lru_cache(maxsize=1)  # consecutive parts are compared with the same ones
def _title_index(signatures: tuple[Path, ...]) -> tuple[titles.TitleIndex, Rows, Rows]:
    """Return an index of the titles of several parts, and of each title its part and row."""
    tables = [pq.read_table(path) for path in signatures]
    parts = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
    rows = np.concatenate([np.arange(table.num_rows) for table in tables])
    return titles.TitleIndex(tables), parts, rows


def _write_same_pictures(one: Hashed, others: tuple[Hashed, ...], path: Path) -> None:
    pairs = _candidates(one, others)
    pairs["difference"] = _differences(one, others, pairs)
    same = pairs[pairs["difference"] <= similarity.MAX_DIFFERENCE]
    writers.write_table(path, pa.Table.from_pandas(same, MATCHES, preserve_index=False))


def _candidates(one: Hashed, others: tuple[Hashed, ...]) -> pd.DataFrame:
    """Return the row, part and other row of the pictures that may be the same, at most `CANDIDATES` of each row."""
    rows, queries = _read_descriptors(one.descriptors)
    index, parts, other_rows = _picture_index(tuple(each.descriptors for each in others))
    nearest, distances = index.search(queries, CANDIDATES, similarity.MAX_DISTANCE)
    query, rank = np.nonzero(nearest >= 0)
    found = nearest[query, rank]
    pairs = pd.DataFrame({"row": rows[query], "part": parts[found], "other": other_rows[found]})
    pairs["distance"] = distances[query, rank]
    pairs = pairs.sort_values([*("row", "distance", "part", "other")], kind="stable")
    pairs = pairs.drop_duplicates(["row", "part", "other"])  # two views of an image may be near two of another
    return pairs.groupby("row").head(CANDIDATES).drop(columns="distance").reset_index(drop=True)


@lru_cache(maxsize=1)
def _picture_index(descriptors: tuple[Path, ...]) -> tuple[NearestIndex, Rows, Rows]:
    """Return an index of the descriptors of several parts, and of each descriptor its part and row."""
    rows, vectors = zip(*map(_read_descriptors, descriptors), strict=True)
    parts = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    return NearestIndex(np.concatenate(vectors)), parts, np.concatenate(rows)


def _read_descriptors(path: Path) -> tuple[Rows, npt.NDArray[np.int8]]:
    """Return the row numbers and the descriptors, int8 [N, DIMENSIONS]."""
    table = pq.read_table(path)
    joined = np.frombuffer(table["descriptor"].combine_chunks().buffers()[1] or b"", np.int8)
    vectors = joined[: len(table) * similarity.DIMENSIONS].reshape(-1, similarity.DIMENSIONS)
    return table["row"].to_numpy().astype(np.int64), vectors


def _differences(one: Hashed, others: Sequence[Hashed], pairs: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Return the difference of the pictures of each pair; those that were not compared before are kept in the store."""
    store = (
        files.store() / f"near_duplicates/{files.fingerprint(similarity.FORMAT, one.hashes[SAME_PICTURE])}.differences"
    )
    known = pq.read_table(store) if files.intact(store) else _DIFFERENCES.empty_table()
    hashes = np.array([each.hashes[SAME_PICTURE] for each in others])
    pairs = pairs.assign(images=hashes[pairs["part"]])
    pairs = pairs.merge(known.to_pandas(), how="left", on=["row", "images", "other"])
    new = pairs[pairs["difference"].isna()]
    if len(new):
        pairs.loc[new.index, "difference"] = _compare(one.part.images, [each.part.images for each in others], new)
        added = pa.Table.from_pandas(pairs.loc[new.index], _DIFFERENCES, preserve_index=False)
        writers.write_table(store, pa.concat_tables([known, added]))
        files.seal(store, files.digest(store))
    return np.asarray(pairs["difference"], np.float32)


def _compare(one: Path, others: Sequence[Path], pairs: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Return the difference of the pictures of each pair: a row of a table, a number of another one, a row of that."""
    result = np.full(len(pairs), np.inf, np.float32)
    pairs = pairs.reset_index(drop=True)
    for _, block in pairs.groupby(pairs["row"] // ROWS_IN_MEMORY):
        ours = dict(_read_images(one, np.unique(block["row"])))
        for part, some in block.groupby("part"):
            asking = defaultdict(list)
            for pair, row, partner in zip(some.index, some["row"], some["other"], strict=True):
                asking[partner].append((pair, row))
            for partner, theirs in _read_images(others[int(part)], np.unique(some["other"])):
                views = similarity.View.all_of(theirs)
                for pair, row in asking[partner]:
                    same = ours[row] == theirs
                    result[pair] = 0 if same else similarity.difference(similarity.View.all_of(ours[row]), views)
    return result


def _read_images(images: Path, rows: Rows) -> Iterator[tuple[int, bytes]]:
    """Yield the row numbers `rows`, in order, and their images, one row group in memory at a time."""
    with pq.ParquetFile(images) as table:
        start = 0
        for group in range(table.num_row_groups):
            end = start + table.metadata.row_group(group).num_rows
            wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)].tolist()
            if wanted:
                column = table.read_row_group(group, columns=["image"])["image"]
                yield from ((row, column[row - start].as_py()) for row in wanted)
            start = end
