"""Near duplicates between two parts of the sample: the same pictures, and the same product titles.

Input: parts of ``data/sample`` and ``data/images``. Output: for each row of one part a row of the other that it
repeats, if any. Guarantees: results are kept in the local store under the hashes of both parts, so that only parts that
changed or are new are compared; time is linear in rows, because each picture is compared with at most `CANDIDATES`
others; the images of `_ROWS` rows are in memory at once, and the descriptors of both parts.
"""

from collections import defaultdict
from collections.abc import Iterator
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
_ROWS = 10_000  # of a part, whose images are in memory at once
_MATCHES = pa.schema([("row", pa.int32()), ("other", pa.int32()), ("difference", pa.float32())])
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


def near_duplicates(one: Hashed, other: Hashed, reason: str, work: Path) -> pa.Table:
    """Return the rows of a part that repeat a row of another part.

    Args:
        one: the part whose rows may be repetitions.
        other: the part that they may repeat.
        reason: one of ``decontaminate.reasons``.
        work: a folder for temporary files, the one that both parts were described in.

    Returns:
        A table with columns row and other, int32: row numbers in the two parts, at most one for each row of `one`; and
        difference, float32, of the pictures: the most similar picture is chosen, the first of several.
    """
    depends_on = (CANDIDATES, similarity.FORMAT) if reason == SAME_PICTURE else (titles.FORMAT,)
    known = files.fingerprint(reason, depends_on, one.hashes[reason], other.hashes[reason])
    write = _write_same_pictures if reason == SAME_PICTURE else _write_same_titles
    path = one.part.in_folder(work, f"{other.part.category}.{other.part.sample.stem}.{reason}")
    files.cached(f"near_duplicates/{known}.matches", partial(write, one, other), path)
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


def _write_same_titles(one: Hashed, other: Hashed, path: Path) -> None:
    found = _title_index(other.signatures).search(pq.read_table(one.signatures))
    rows = np.flatnonzero(found >= 0)
    columns = [rows.astype(np.int32), found[rows].astype(np.int32), pa.nulls(len(rows), pa.float32())]
    writers.write_table(path, pa.table(columns, schema=_MATCHES))


@lru_cache(maxsize=1)  # consecutive parts are compared with the same one
def _title_index(signatures: Path) -> titles.TitleIndex:
    return titles.TitleIndex([pq.read_table(signatures)])


def _write_same_pictures(one: Hashed, other: Hashed, path: Path) -> None:
    pairs = _candidates(one, other)
    pairs["difference"] = _differences(one.part.images, other.part.images, pairs)
    same = pairs[pairs["difference"] <= similarity.MAX_DIFFERENCE]
    best = same.sort_values(["row", "difference", "other"]).drop_duplicates("row")
    writers.write_table(path, pa.Table.from_pandas(best, _MATCHES, preserve_index=False))


def _candidates(one: Hashed, other: Hashed) -> pd.DataFrame:
    """Return the pairs of rows, as row and other, whose pictures may be the same."""
    rows, queries = _read_descriptors(one.descriptors)
    other_rows, index = _picture_index(other.descriptors)
    nearest, _ = index.search(queries, CANDIDATES, similarity.MAX_DISTANCE)
    query, rank = np.nonzero(nearest >= 0)
    pairs = pd.DataFrame({"row": rows[query], "other": other_rows[nearest[query, rank]]})
    return pairs.drop_duplicates(ignore_index=True)  # two views of one image may be near two of another


@lru_cache(maxsize=1)
def _picture_index(descriptors: Path) -> tuple[Rows, NearestIndex]:
    rows, vectors = _read_descriptors(descriptors)
    return rows, NearestIndex(vectors)


def _read_descriptors(path: Path) -> tuple[Rows, npt.NDArray[np.int8]]:
    """Return the row numbers and the descriptors, int8 [N, DIMENSIONS]."""
    table = pq.read_table(path)
    joined = np.frombuffer(table["descriptor"].combine_chunks().buffers()[1] or b"", np.int8)
    vectors = joined[: len(table) * similarity.DIMENSIONS].reshape(-1, similarity.DIMENSIONS)
    return table["row"].to_numpy().astype(np.int64), vectors


def _differences(one: Path, other: Path, pairs: pd.DataFrame) -> npt.NDArray[np.float32]:
    """Return the difference of the pictures of each pair of rows of two images tables."""
    result = np.full(len(pairs), np.inf, np.float32)
    for _, block in pairs.groupby(pairs["row"] // _ROWS):
        ours = dict(_read_images(one, np.unique(block["row"])))
        asking = defaultdict(list)
        for pair, row, partner in zip(block.index, block["row"], block["other"], strict=True):
            asking[partner].append((pair, row))
        for partner, theirs in _read_images(other, np.unique(block["other"])):
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
