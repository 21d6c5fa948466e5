"""Near-duplicate images across splits: images of validation or test that leak into another split.

Input: ``data/images/`` of all categories. Output: one row for each image of validation or test that has an equal or
nearly equal image in another split, and a verdict. Guarantees: every such image is found (no sampling); rows are in the
order of the tables; memory is one hash per image.

Two images are near duplicates if their 64-bit perceptual hashes differ in at most `MAX_BITS` bits. If two such hashes
are cut into `MAX_BITS` + 1 pieces, at least one piece is equal, so only images that share a piece are compared. Among
2,400 real posters and 160 product photos, no two different images are within 9 bits.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.compute as pc

from prep.core.params import Limits
from prep.core.parts import TEST, TRAIN, VALIDATION, part_files
from prep.core.tables.images import IMAGES, OK
from validation.columns import read_columns, rows_of
from validation.verdicts import EXAMPLES_SHOWN, Verdict

MAX_BITS = 3  # bits
_PIECE = 64 // (MAX_BITS + 1)  # bits
_HASHES_PER_CHUNK = 1 << 14  # hashes that are compared at once with all that share a piece with them
_SPLITS = (TRAIN, VALIDATION, TEST)

Hashes = npt.NDArray[np.uint64]


def find_near_duplicates(data: Path, categories: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Return the images of validation and test with a near duplicate in another split, and the number of such images.

    Args:
        data: the folder of all tables.
        categories: the categories to compare.

    Returns:
        One row per near duplicate and the number of images of validation and test. A row has the image's split,
        category and parent_asin; those of its nearest image of another split (the first of several) as other_split,
        other_category and other_asin; bits, the number of bits in which the hashes differ; and same_file, whether the
        source files are identical.
    """
    parts = [path for category in categories for path in part_files(data / "images" / category)]
    hashes, splits, positions = _hashes(parts)
    found, measured = [], 0
    for split in (VALIDATION, TEST):
        ours = np.flatnonzero(splits == _SPLITS.index(split))
        theirs = np.flatnonzero(splits != _SPLITS.index(split))
        measured += len(ours)
        nearest, bits = _nearest(hashes[ours], hashes[theirs])
        close = bits <= MAX_BITS
        found.append(np.stack([ours[close], theirs[nearest[close]], bits[close]]))
    one, other, bits = np.concatenate(found, axis=1)
    images = _image_rows(parts, positions, np.unique(np.concatenate([one, other])))
    mine, duplicate = images.loc[one].reset_index(drop=True), images.loc[other].reset_index(drop=True)
    rows = mine[["split", "category", "parent_asin"]].assign(
        other_split=duplicate["split"],
        other_category=duplicate["category"],
        other_asin=duplicate["parent_asin"],
        bits=bits,
        same_file=mine["source_sha256"] == duplicate["source_sha256"],
    )
    return rows, measured


def verdict(duplicates: pd.DataFrame, measured: int, limits: Limits) -> Verdict:
    """Judge what `find_near_duplicates` found.

    Args:
        duplicates: the near duplicates.
        measured: the number of images of validation and test.
        limits: ``validation.near_duplicate_fraction``, the limits of the fraction of near duplicates.
    """
    examples = [
        f"{r.category}/{r.parent_asin} ({r.split}) like {r.other_category}/{r.other_asin} ({r.other_split})"
        for r in duplicates.head(EXAMPLES_SHOWN).itertuples()
    ]
    return Verdict(
        "images",
        "no near duplicates across splits (validation.near_duplicate_fraction)",
        measured,
        len(duplicates),
        int(limits.fail_above * measured),
        tuple(examples),
        int(limits.warn_above * measured),
    )


def _hashes(parts: Sequence[Path]) -> tuple[Hashes, npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """Return the hash, split and row number of every image with outcome ok; rows are numbered over all parts."""
    hashes, splits, positions, offset = [], [], [], 0
    for path in parts:
        table = read_columns([path], ["outcome", "perceptual_hash"], IMAGES)
        fetched = np.flatnonzero(pc.equal(table["outcome"], OK).to_numpy())
        hashes.append(table["perceptual_hash"].to_numpy()[fetched].astype(np.uint64))
        splits.append(np.full(len(fetched), _SPLITS.index(path.stem.partition("-")[0]), np.int8))
        positions.append(offset + fetched)
        offset += table.num_rows
    return np.concatenate(hashes), np.concatenate(splits), np.concatenate(positions)


def _image_rows(parts: Sequence[Path], positions: npt.NDArray[np.int64], images: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return parent_asin, source_sha256, category and split of `images` (indexes of `positions`), indexed by them."""
    wanted, offset, frames = positions[images], 0, []
    for path in parts:
        rows = rows_of(path)
        inside = np.flatnonzero((wanted >= offset) & (wanted < offset + rows))
        if len(inside):
            table = read_columns([path], ["parent_asin", "source_sha256"], IMAGES).take(wanted[inside] - offset)
            frame = table.to_pandas().set_index(images[inside])
            frames.append(frame.assign(category=path.parent.name, split=path.stem.partition("-")[0]))
        offset += rows
    return pd.concat(frames) if frames else pd.DataFrame(columns=["parent_asin", "source_sha256", "category", "split"])


def _nearest(ours: Hashes, theirs: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for each of `ours`, the index of the first nearest of `theirs` and their distance in bits (64 if far)."""
    mine, inverse = np.unique(ours, return_inverse=True)
    others, first = np.unique(theirs, return_index=True)  # equal hashes are compared once
    nearest, bits = np.zeros(len(mine), np.int64), np.full(len(mine), 64)
    for one, other in _sharing_a_piece(mine, others):
        pairs = pd.DataFrame({"one": one, "bits": np.bitwise_count(mine[one] ^ others[other]), "index": first[other]})
        best = pairs.sort_values(["one", "bits", "index"]).drop_duplicates("one")
        so_far = pd.DataFrame({"bits": bits[best["one"]], "index": nearest[best["one"]]}, index=best.index)
        same_bits = best["bits"] == so_far["bits"]
        best = best[(best["bits"] < so_far["bits"]) | (same_bits & (best["index"] < so_far["index"]))]
        nearest[best["one"]], bits[best["one"]] = best["index"], best["bits"]
    return nearest[inverse], bits[inverse]


def _sharing_a_piece(mine: Hashes, others: Hashes) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield batches of pairs of hashes with a common piece, as indexes of `mine` and of `others`."""
    for number in range(MAX_BITS + 1):
        shift, mask = np.uint64(number * _PIECE), np.uint64((1 << _PIECE) - 1)
        piece, all_pieces = mine >> shift & mask, others >> shift & mask
        order = np.argsort(all_pieces, kind="stable")
        begin = np.searchsorted(all_pieces, piece, "left", sorter=order)
        count = np.searchsorted(all_pieces, piece, "right", sorter=order) - begin
        for start in range(0, len(mine), _HASHES_PER_CHUNK):
            rows = slice(start, start + _HASHES_PER_CHUNK)
            one = np.repeat(np.arange(start, start + len(count[rows])), count[rows])
            within = np.arange(len(one)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
            yield one, order[np.repeat(begin[rows], count[rows]) + within]
