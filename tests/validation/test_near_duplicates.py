"""Images of validation or test that are also in another split are found, even if saved differently."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prep.core import writers
from prep.core.params import Limits
from prep.core.tables.images import IMAGES
from shards.images import pixels
from validation import near_duplicates

HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6)


def row(asin: str, picture: bytes) -> dict[str, object]:
    """Return a row of the images table for a picture."""
    made = pixels.to_training(picture, 64, "squash", 90, 10**7)
    values = {"parent_asin": asin, "outcome": "ok", "url": asin, "source_sha256": str(hash(picture))}
    numbers = {"status": 200, "tries": 1, "source_bytes": len(picture), "source_width": 80, "source_height": 60}
    return values | numbers | {"perceptual_hash": made.perceptual_hash, "image": made.image}


def saved(seed: int, quality: int = 90, width: int = 120) -> bytes:
    """Return a JPEG of a synthetic picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, width * 3 // 4)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write(data: Path, parts: dict[str, list[dict[str, object]]]) -> None:
    for name, rows in parts.items():
        writers.write_table(data / "images" / f"{name}.parquet", pa.Table.from_pylist(rows, IMAGES))


def test_near_duplicates_are_listed_with_the_nearest_of_another_split(tmp_path: Path) -> None:
    lost = row("LOST", saved(1)) | {"outcome": "gone", "image": b""}
    write(
        tmp_path,
        {
            "A/train-00": [row("T1", saved(1)), row("T2", saved(2)), lost],
            "A/test": [row("E1", saved(9)), row("E2", saved(2, quality=60))],
            "B/train-01": [row("T3", saved(3, width=200))],
            "B/validation": [row("V1", saved(1)), row("V2", saved(8)), row("V3", saved(8))],
            "B/test": [row("E3", saved(3))],
        },
    )
    found, measured = near_duplicates.find_near_duplicates(tmp_path, ["A", "B"])
    assert measured == 6
    named = found[["split", "category", "parent_asin", "other_split", "other_category", "other_asin", "same_file"]]
    assert named.to_numpy().tolist() == [
        ["validation", "B", "V1", "train", "A", "T1", True],
        ["test", "A", "E2", "train", "A", "T2", False],
        ["test", "B", "E3", "train", "B", "T3", False],
    ]
    assert found["bits"].max() <= near_duplicates.MAX_BITS


@pytest.mark.parametrize(("limit", "passes"), [(0.49, False), (0.5, True)])
def test_the_limit_decides(tmp_path: Path, limit: float, passes: bool) -> None:
    write(tmp_path, {"A/train-00": [row("T1", saved(1))], "A/test": [row("E1", saved(1)), row("E2", saved(2))]})
    verdict = near_duplicates.verdict(
        *near_duplicates.find_near_duplicates(tmp_path, ["A"]), Limits(warn_above=0.0, fail_above=limit)
    )
    assert verdict.passed is passes
    assert verdict.examples == ("A/E1 (test) like A/T1 (train)",)


def test_no_images_have_no_near_duplicates(tmp_path: Path) -> None:
    write(tmp_path, {"A/train-00": [], "A/test": []})
    found, measured = near_duplicates.find_near_duplicates(tmp_path, ["A"])
    assert (len(found), measured) == (0, 0)
    assert near_duplicates.verdict(found, measured, Limits(warn_above=0.0, fail_above=0.0)).passed


@given(st.data(), HASHES, HASHES)
def test_the_nearest_is_the_same_as_by_brute_force(data: st.DataObject, ours: list[int], theirs: list[int]) -> None:
    flips = st.sets(st.integers(0, 63), max_size=5)  # hashes close to one of the others
    theirs += [mine ^ sum(1 << bit for bit in data.draw(flips)) for mine in ours]
    near, bits = near_duplicates._nearest(np.array(ours, np.uint64), np.array(theirs, np.uint64))
    for mine, place, distance in zip(ours, near.tolist(), bits.tolist(), strict=True):
        distances = [(mine ^ other).bit_count() for other in theirs]
        if min(distances) <= near_duplicates.MAX_BITS:
            assert (distance, place) == (min(distances), distances.index(min(distances)))
        else:
            assert distance > near_duplicates.MAX_BITS
