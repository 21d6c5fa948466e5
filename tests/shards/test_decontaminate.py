"""Exclusions of near duplicates: which items, in which splits, and what is compared again."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw, ImageOps

from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.params import Params
from prep.core.parts import kept_rows
from prep.core.tables.images import IMAGES, OK
from prep.core.tables.sample import SAMPLE
from shards import near_duplicates
from shards.decontaminate import decontaminate
from shards.images.pixels import Preparation, to_training

Rows = dict[str, tuple[str, int]]  # title and number of the picture of each item
SIDE = 96


def picture(number: int, border: int = 0) -> bytes:
    """Return a picture that differs from those of other numbers, with a white border of some pixels."""
    random = Random(number)
    image = Image.new("RGB", (240, 200), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = random.randrange(200), random.randrange(160)
        color = tuple(random.randrange(256) for _ in range(3))
        draw.rectangle((x, y, x + random.randrange(20, 120), y + random.randrange(20, 90)), fill=color)
    buffer = io.BytesIO()
    ImageOps.expand(image, border, "white").save(buffer, "JPEG", quality=90 if border == 0 else 60)
    return to_training(buffer.getvalue(), Preparation(SIDE, "squash", 90, 10**8)).image


def write_part(data: Path, category: str, part: str, rows: Rows, *, border: int = 0) -> None:
    """Write a part of the sample and its images; items without a picture have number 0."""
    split, _, band = part.partition("-")
    sample, images = [], []
    for asin, (title, number) in rows.items():
        texts = {"main_category": "", "title": title, "features": "", "description": "", "store": "", "details": ""}
        sample.append(
            texts
            | {"parent_asin": asin, "category": category, "group": asin, "split": split, "band": int(band or -1)}
            | {"average_rating": 4.0, "rating_number": 7, "review_count": 3, "image_urls": []}
        )
        image = picture(number, border) if number else b""
        known = {
            "parent_asin": asin,
            "outcome": OK if number else "gone",
            "url": asin,
            "source_sha256": "",
            "image": image,
        }
        images.append({name: known.get(name, 0) for name in IMAGES.names})
    writers.write_table(data / "sample" / category / f"{part}.parquet", pa.Table.from_pylist(sample, SAMPLE))
    writers.write_table(data / "images" / category / f"{part}.parquet", pa.Table.from_pylist(images, IMAGES))


def exclusions(data: Path, category: str = "One") -> dict[str, tuple[str, str, str]]:
    """Return the reason, split and parent_asin of the item that each excluded item of a category repeats."""
    rows = pa.concat_tables(
        [pq.read_table(path) for path in sorted((data / "exclusions" / category).glob("*.parquet"))]
    )
    return {
        r["parent_asin"]: (r["reason"], r["other_split"], f"{r['other_category']}/{r['other_asin']}")
        for r in rows.to_pylist()
    }


@pytest.fixture
def params(make_params: Callable[..., Params]) -> Callable[..., Params]:
    def make(*categories: str, **changes: object) -> Params:
        return make_params(**{"source.categories": list(categories or ["One"]), **changes})

    return make


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[set[str], list[str]]]:
    """The parts that are searched, and the pairs of parts of which pictures are compared, as it happens."""
    searched: set[str] = set()
    pairs: list[str] = []

    def name(path: Path) -> str:
        return f"{path.parent.name}/{path.stem}"

    for function in ("_write_same_pictures", "_write_same_titles"):
        write = getattr(near_duplicates, function)

        def counted(one: near_duplicates.Hashed, *rest: object, write: Callable[..., None] = write) -> None:
            searched.add(name(one.part.sample))
            write(one, *rest)

        monkeypatch.setattr(near_duplicates, function, counted)
    compare = near_duplicates._compare

    def compare_counted(one: Path, others: list[Path], new: pd.DataFrame) -> np.ndarray:
        pairs.extend(f"{name(one)} {name(others[part])}" for part in new["part"])
        return compare(one, others, new)

    monkeypatch.setattr(near_duplicates, "_compare", compare_counted)
    # all pictures are candidates, so that it matters which were compared before
    monkeypatch.setattr(near_duplicates.similarity, "MAX_DISTANCE", 10**9)
    return searched, pairs


CABLE = "Acme braided charging cable with fast data transfer {} for phones"


def test_items_that_repeat_a_measured_item_are_excluded_with_the_item_that_they_repeat(
    tmp_path: Path, params: Callable[..., Params]
) -> None:
    write_part(tmp_path, "One", "test", {"T1": ("A lamp", 1), "T2": (CABLE.format("2 m"), 2)})
    write_part(tmp_path, "One", "validation", {"V1": ("Shoes", 3), "V2": ("Another lamp", 1)})
    rows = {"A1": ("Lamp of the test", 1), "A2": ("Shoes of validation", 3), "A3": (CABLE.format("3 m"), 4)}
    write_part(tmp_path, "One", "train-00", rows | {"A4": ("Other shoes", 5), "A5": ("No picture", 0)}, border=8)
    decontaminate(params(), tmp_path)
    assert exclusions(tmp_path) == {
        "A1": ("same_picture", "test", "One/T1"),
        "A2": ("same_picture", "validation", "One/V1"),
        "A3": ("same_product_title", "test", "One/T2"),
        "V2": ("same_picture", "test", "One/T1"),
    }
    report = msgspec.json.decode((tmp_path / "exclusions/One/report.json").read_bytes())
    assert report["tables"]["samples"] == {
        "rows_in": 9, "rows_out": 5, "dropped": {"same_picture": 3, "same_product_title": 1}
    }  # fmt: skip
    assert (tmp_path / "exclusions/One/strata.csv").read_text().splitlines() == [
        "split,average_rating,rating_number_from,taken,excluded",
        "test,4.0,5,2,0",
        "train,4.0,5,5,3",
        "validation,4.0,5,2,1",
    ]
    assert kept_rows(tmp_path / "sample/One/train-00.parquet", ["parent_asin"])["parent_asin"].to_pylist() == [
        "A4",
        "A5",
    ]


@pytest.mark.parametrize("reason", ["same_picture", "same_product_title"])
def test_only_the_configured_reasons_exclude(reason: str, tmp_path: Path, params: Callable[..., Params]) -> None:
    write_part(tmp_path, "One", "test", {"T1": (CABLE.format("2 m"), 1)})
    write_part(tmp_path, "One", "train-00", {"A1": (CABLE.format("3 m"), 1)})
    decontaminate(params(**{"decontaminate.reasons": [reason]}), tmp_path)
    assert exclusions(tmp_path) == {"A1": (reason, "test", "One/T1")}
    decontaminate(params(**{"decontaminate.reasons": []}), tmp_path)
    assert exclusions(tmp_path) == {}


def test_a_new_band_is_searched_alone_and_pictures_are_compared_once(
    tmp_path: Path, params: Callable[..., Params], compared: tuple[set[str], list[str]]
) -> None:
    searched, pairs = compared
    write_part(tmp_path, "One", "test", {"T1": ("A lamp", 1)})
    write_part(tmp_path, "One", "validation", {"V1": ("Shoes", 2)})
    write_part(tmp_path, "One", "train-00", {"A1": ("A chair", 3), "A2": ("A table", 4)})
    decontaminate(params(), tmp_path)
    before = files.sha256(tmp_path / "exclusions/One/train-00.parquet")
    searched.clear(), pairs.clear()
    write_part(tmp_path, "One", "train-01", {"B1": ("A lamp again", 1), "B2": ("A book", 5)})
    decontaminate(params(), tmp_path)
    assert searched == {"One/train-01"}
    assert Counter(pairs) == {"One/train-01 One/test": 2, "One/train-01 One/validation": 2}
    assert exclusions(tmp_path) == {"B1": ("same_picture", "test", "One/T1")}
    assert files.sha256(tmp_path / "exclusions/One/train-00.parquet") == before
    searched.clear(), pairs.clear()
    write_part(tmp_path, "Two", "test", {"T1": ("Another chair", 3)})
    write_part(tmp_path, "Two", "train-00", {"C1": ("The shoes", 2)})
    decontaminate(params("One", "Two"), tmp_path)
    assert all("Two/" in pair for pair in pairs)
    assert {"One/train-00 Two/test", "Two/train-00 One/validation"} < set(pairs)
    assert exclusions(tmp_path)["A1"] == ("same_picture", "test", "Two/T1")
    assert exclusions(tmp_path, "Two") == {"C1": ("same_picture", "validation", "One/V1")}
    searched.clear(), pairs.clear()
    decontaminate(params(), tmp_path)
    assert (searched, pairs) == (set(), [])
    assert "A1" not in exclusions(tmp_path)


@pytest.mark.parametrize("kind", ["descriptors", "signatures", "matches", "differences"])
def test_what_was_changed_in_the_local_store_is_computed_again(
    kind: str, tmp_path: Path, params: Callable[..., Params], digests: Callable[[Path], dict[str, str]]
) -> None:
    write_part(tmp_path, "One", "test", {"T1": (CABLE.format("red"), 1)})
    write_part(tmp_path, "One", "validation", {"V1": ("Shoes", 2)})
    write_part(tmp_path, "One", "train-00", {"A1": (CABLE.format("red"), 3), "A2": ("A table", 2)})
    decontaminate(params(), tmp_path)
    assert len(exclusions(tmp_path)) == 2
    stored = sorted((files.store() / "near_duplicates").glob(f"*.{kind}"))
    before, known = digests(tmp_path / "exclusions"), [files.sha256(path) for path in stored]
    assert stored
    for path in stored:
        path.write_bytes(path.read_bytes()[:-9])
    for path in (files.store() / "near_duplicates").glob("*.matches") if kind == "differences" else ():
        path.unlink()  # otherwise no difference is read
    decontaminate(params(), tmp_path)
    assert digests(tmp_path / "exclusions") == before
    assert [files.sha256(path) for path in stored] == known


def test_two_categories_may_have_the_same_part(tmp_path: Path, params: Callable[..., Params]) -> None:
    for category in ("One", "Two"):
        write_part(tmp_path, category, "test", {"T1": ("A lamp", 1)})
        write_part(tmp_path, category, "train-00", {"A1": ("A chair", 1), "A2": ("A table", 2)})
    decontaminate(params("One", "Two"), tmp_path)
    write_part(tmp_path, "Three", "test", {"T2": ("Shoes", 2)})
    write_part(tmp_path, "Three", "train-00", {"A3": ("A book", 3)})
    decontaminate(params("One", "Two", "Three"), tmp_path)
    for category in ("One", "Two"):
        assert exclusions(tmp_path, category) == {
            "A1": ("same_picture", "test", "One/T1"),
            "A2": ("same_picture", "test", "Three/T2"),
        }


def test_a_picture_is_compared_with_the_nearest_four_of_all_parts(
    tmp_path: Path, params: Callable[..., Params], compared: tuple[set[str], list[str]]
) -> None:
    for category, first in (("One", 10), ("Two", 20), ("Three", 30)):
        write_part(tmp_path, category, "test", {f"{category}{n}": (f"Book {n}", first + n) for n in range(5)})
        write_part(tmp_path, category, "train-00", {f"{category}A": ("A book", first + 4), f"{category}B": ("", first)})
    decontaminate(params("One", "Two", "Three"), tmp_path)
    assert len(compared[1]) <= 6 * near_duplicates.CANDIDATES
    assert exclusions(tmp_path, "Two") == {
        "TwoA": ("same_picture", "test", "Two/Two4"),
        "TwoB": ("same_picture", "test", "Two/Two0"),
    }


def test_a_changed_part_is_compared_anew_by_the_same_process(tmp_path: Path, params: Callable[..., Params]) -> None:
    write_part(tmp_path, "One", "train-00", {"A1": (CABLE.format("3 m"), 1), "A2": ("A lamp", 2)})
    for title, number, expected in (("Shoes", 3, set()), (CABLE.format("2 m"), 2, {"A1", "A2"})):
        write_part(tmp_path, "One", "test", {"T1": (title, number)})
        decontaminate(params(), tmp_path)
        assert set(exclusions(tmp_path)) == expected


def test_workers_and_an_empty_store_give_the_same_bytes(
    tmp_path: Path, params: Callable[..., Params], digests: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for category, first in (("One", 1), ("Two", 5)):
        for number, part in enumerate(("test", "validation", "train-00", "train-01")):
            rows = {f"{category}{part}{i}": (CABLE.format(f"{i} m"), first + (number * i) % 9) for i in range(6)}
            write_part(tmp_path, category, part, rows)
    decontaminate(params("One", "Two"), tmp_path)
    expected = digests(tmp_path / "exclusions")
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / "other"))
    workers = {"dask.scheduler": "processes", "dask.workers": 2}
    decontaminate(params("Two", "One", **workers), tmp_path)
    assert digests(tmp_path / "exclusions") == expected


def test_parts_without_rows_or_pictures_are_compared(tmp_path: Path, params: Callable[..., Params]) -> None:
    write_part(tmp_path, "One", "test", {})
    write_part(tmp_path, "One", "validation", {"V1": ("", 0)})
    write_part(tmp_path, "One", "train-00", {"A1": ("", 0), "A2": ("A lamp", 1)})
    decontaminate(params(), tmp_path)
    assert exclusions(tmp_path) == {}


def test_images_of_another_sample_are_an_error(tmp_path: Path, params: Callable[..., Params]) -> None:
    write_part(tmp_path, "One", "test", {"T1": ("A lamp", 1)})
    write_part(tmp_path, "One", "validation", {"V1": ("Shoes", 2), "V2": ("A book", 3)})
    images = tmp_path / "images/One"
    (images / "validation.parquet").rename(images / "test.parquet")
    with pytest.raises(UserError, match="does not have the items of .*test.parquet; run `dvc repro fetch`"):
        decontaminate(params(), tmp_path)
    (images / "test.parquet").unlink()
    with pytest.raises(UserError, match="images/One/test.parquet does not exist; run `dvc repro fetch`"):
        decontaminate(params(), tmp_path)


def test_missing_exclusions_are_an_error(tmp_path: Path) -> None:
    write_part(tmp_path, "One", "test", {"T1": ("A lamp", 1)})
    with pytest.raises(UserError, match="exclusions/One/test.parquet does not exist; run `dvc repro decontaminate`"):
        kept_rows(tmp_path / "sample/One/test.parquet", ["title"])
