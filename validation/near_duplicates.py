"""Pictures that stand in two splits: what training has seen of what is measured.

In: ``data/images/`` of all categories. Out: one row for each measured image (of validation or test) that has an equal
or nearly equal one in another split, and a verdict. Guaranteed: every such image is found (no sampling); rows stand in
the order of the tables; memory is that of a hash an image.

Two pictures are twins if their perceptual hashes differ in at most `MAX_BITS` of 64 bits. Of hashes that near, cut into
`MAX_BITS` + 1 pieces, one piece is equal, so only images that share a piece are compared. Of 2,400 real posters and 160
product photos no two different ones are within 9 bits.
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
_HASHES_PER_CHUNK = 1 << 14  # hashes compared at once, with all that share a piece with them
_SPLITS = (TRAIN, VALIDATION, TEST)

Hashes = npt.NDArray[np.uint64]


def find_near_duplicates(data: Path, categories: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Return the measured images that have a twin in another split, and how many measured images there are.

    Args:
        data: the folder of all tables.
        categories: those looked at.

    Returns:
        A row an image with its split, category and parent_asin; the same of its nearest twin (the first of several)
        as other_split, other_category, other_asin; bits, by which their hashes differ; and same_file, whether the files
        that came were equal to the byte.
    """
    parts = [path for category in categories for path in part_files(data / "images" / category)]
    hashes, splits, places = _hashes(parts)
    found, measured = [], 0
    for split in (VALIDATION, TEST):
        ours = np.flatnonzero(splits == _SPLITS.index(split))
        theirs = np.flatnonzero(splits != _SPLITS.index(split))
        measured += len(ours)
        near, bits = _nearest(hashes[ours], hashes[theirs])
        has = bits <= MAX_BITS
        found.append(np.stack([ours[has], theirs[near[has]], bits[has]]))
    one, other, bits = np.concatenate(found, axis=1)
    about = _image_rows(parts, places, np.unique(np.concatenate([one, other])))
    mine, duplicate = about.loc[one].reset_index(drop=True), about.loc[other].reset_index(drop=True)
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
        duplicates: its rows.
        measured: how many images could have been among them.
        limits: ``validation.near_duplicate_fraction``, of the share of them that may be.
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
    """Return of every image there is its hash, its split, and its row in the parts one after another."""
    hashes, splits, places, before = [], [], [], 0
    for path in parts:
        table = read_columns([path], ["outcome", "perceptual_hash"], IMAGES)
        had = np.flatnonzero(pc.equal(table["outcome"], OK).to_numpy())
        hashes.append(table["perceptual_hash"].to_numpy()[had].astype(np.uint64))
        splits.append(np.full(len(had), _SPLITS.index(path.stem.partition("-")[0]), np.int8))
        places.append(before + had)
        before += table.num_rows
    return np.concatenate(hashes), np.concatenate(splits), np.concatenate(places)


def _image_rows(parts: Sequence[Path], places: npt.NDArray[np.int64], images: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return what is to be said of some images, by their numbers."""
    wanted, before, frames = places[images], 0, []
    for path in parts:
        rows = rows_of(path)
        inside = np.flatnonzero((wanted >= before) & (wanted < before + rows))
        if len(inside):
            table = read_columns([path], ["parent_asin", "source_sha256"], IMAGES).take(wanted[inside] - before)
            frame = table.to_pandas().set_index(images[inside])
            frames.append(frame.assign(category=path.parent.name, split=path.stem.partition("-")[0]))
        before += rows
    return pd.concat(frames) if frames else pd.DataFrame(columns=["parent_asin", "source_sha256", "category", "split"])


def _nearest(ours: Hashes, theirs: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return of each of `ours` the first of the nearest of `theirs`, and by how many bits it differs (64: by many)."""
    mine, inverse = np.unique(ours, return_inverse=True)
    others, first = np.unique(theirs, return_index=True)  # equal hashes are compared once
    nearest, bits = np.zeros(len(mine), np.int64), np.full(len(mine), 64)
    for one, other in _sharing_a_piece(mine, others):
        pairs = pd.DataFrame({"one": one, "bits": np.bitwise_count(mine[one] ^ others[other]), "place": first[other]})
        best = pairs.sort_values(["one", "bits", "place"]).drop_duplicates("one")
        known = pd.DataFrame({"bits": bits[best["one"]], "place": nearest[best["one"]]}, index=best.index)
        nearer = (best["bits"] < known["bits"]) | ((best["bits"] == known["bits"]) & (best["place"] < known["place"]))
        best = best[nearer]
        nearest[best["one"]], bits[best["one"]] = best["place"], best["bits"]
    return nearest[inverse], bits[inverse]


def _sharing_a_piece(mine: Hashes, others: Hashes) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the pairs that have a piece of their hashes in common, by their places, some at a time."""
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
