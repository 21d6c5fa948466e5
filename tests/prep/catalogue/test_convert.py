"""The same products in any format become the same items, with ids of any text."""

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prep.catalogue import convert
from prep.catalogue.mapping import category_name, number, record, stars
from prep.core.errors import UserError
from prep.core.keys import item_id
from prep.core.params import Params, TableParams, load_params
from prep.download import download
from shards.fetch import image_base
from shards.stream import ShardDataset
from tests.conftest import ROOT

COLUMNS: dict[str, Any] = {
    "parent_asin": "sku",
    "title": ["brand", "name"],
    "average_rating": "stars",
    "rating_number": "ratings",
    "images": "photo",
    "price": "price",
    "details": ["colour", "weight"],
    "date": "listed",
}
PRODUCTS = [
    {
        "sku": f"SKU-{n:03d}/ä.1",
        "brand": "Bär",
        "name": f'Lamp "{n}"\nwith; shade, large',
        "stars": 1 + n % 9 / 2,
        "ratings": n * 1000,
        "photo": f"photos/{n}.png",
        "price": "€ 12,50",
        "colour": "red",
        "weight": None,
        "listed": "2020-01-02",
    }
    for n in range(60)
]
NAMES = list(PRODUCTS[0])


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 255 - shade, shade * 7 % 256)).save(content, "PNG")
    return content.getvalue()


def csv_file(path: Path, separator: str, rows: list[dict[str, Any]] = PRODUCTS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, NAMES, delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in PRODUCTS))
    return path


def compressed(path: Path) -> Path:
    path.write_bytes(gzip.compress(jsonl(path.with_suffix(".plain")).read_bytes()))
    return path


def parquet(path: Path) -> Path:
    pd.DataFrame(PRODUCTS).to_parquet(path)
    return path


def saved_dataset(path: Path) -> Path:
    datasets.Dataset.from_list(PRODUCTS).save_to_disk(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    parquet(path / "train.parquet")
    return path


def several(path: Path) -> Path:
    csv_file(path.with_name("1.csv"), ",", PRODUCTS[:20])
    csv_file(path.with_name("2.csv"), ",", PRODUCTS[20:])
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "products.csv": lambda path: csv_file(path, ","),
    "semicolons.csv": lambda path: csv_file(path, ";"),
    "products.tsv": lambda path: csv_file(path, "\t"),
    "products.jsonl": jsonl,
    "products.jsonl.gz": compressed,
    "products.parquet": parquet,
    "saved": saved_dataset,
    "folder": folder,
    "[12].csv": several,
}


@pytest.fixture
def settings(make_params: Callable[..., Params]) -> Callable[..., Params]:
    def of(location: Path | str, columns: dict[str, Any] = COLUMNS, **changes: Any) -> Params:
        table = {
            "source.kind": "table",
            "source.location": str(location),
            "source.reviews": False,
            "source.categories": ["Lamps"],
            "source.table": {"columns": columns, "rating_scale": [1, 5], "image_folder": ""},
            "sample.min_chars": 0,
            "sample.require": ["title", "average_rating"],
            "sample.fraction": 1.0,
        }
        return make_params(**(table | changes))

    return of


def items(params: Params, data: Path, category: str = "Lamps") -> list[dict[str, Any]]:
    download(category, params, data)
    found = [
        row for path in (data / "raw" / category).glob("items-*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    return sorted(found, key=lambda row: row["line"])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_items(tmp_path: Path, settings: Callable[..., Params], name: str) -> None:
    found = items(settings(FORMATS[name](tmp_path / name)), tmp_path / "data")
    assert [item_id(row["parent_asin"]) for row in found] == [row["sku"] for row in PRODUCTS]
    first = found[7]
    assert first["title"] == 'Bär Lamp "7"\nwith; shade, large'
    assert (first["average_rating"], first["rating_number"], first["price"]) == (4.5, 7000, 12.5)
    assert json.loads(first["details"]) == {"colour": "red", "Date First Available": "2020-01-02"}
    assert first["large"] == "https://table.invalid/photos/7.png"


def test_a_table_becomes_shards_whose_samples_have_their_own_ids(
    tmp_path: Path, settings: Callable[..., Params], run_to: Callable[..., None]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(60):
        (photos / f"{n}.png").write_bytes(png(4 * n))
    params = settings(csv_file(tmp_path / "products.csv", ","), **{"decontaminate.reasons": []})
    run_to(params, tmp_path / "data")
    samples = ShardDataset(tmp_path / "data/shards", ["Lamps"], "train")
    ids = {samples.metadata(n)["parent_asin"] for n in range(len(samples))}
    assert ids < {row["sku"] for row in PRODUCTS}
    assert samples.has_image.all()
    assert all(key == f"Lamps/SKU-{key[10:13]}%2F%C3%A4%2E1" for key in samples.keys)


@pytest.mark.parametrize("kind", ["binary", "datasets"])
def test_images_in_the_table_are_used(tmp_path: Path, settings: Callable[..., Params], kind: str, run_to: Any) -> None:
    contents = [png(4 * n) for n in range(60)]
    cells: list[Any] = contents if kind == "binary" else [{"bytes": one, "path": "x.png"} for one in contents]
    table = pd.DataFrame(PRODUCTS).assign(photo=cells)
    if kind == "binary":
        table.to_parquet(tmp_path / "products.parquet")
        location = tmp_path / "products.parquet"
    else:
        location = tmp_path / "saved"
        images = datasets.Dataset.from_dict(table.to_dict("list")).cast_column("photo", datasets.Image())
        images.save_to_disk(location)
    params = settings(location)
    run_to(params, tmp_path / "data", "fetch")
    outcomes = pa.concat_tables(map(pq.read_table, (tmp_path / "data/images/Lamps").glob("*.parquet")))["outcome"]
    assert set(outcomes.to_pylist()) == {"ok"}


def test_images_by_url_are_fetched_from_their_hosts(tmp_path: Path, settings: Callable[..., Params]) -> None:
    rows = [row | {"photo": f"https://shop.example/{n}/main.jpg"} for n, row in enumerate(PRODUCTS)]
    params = settings(csv_file(tmp_path / "products.csv", ",", rows))
    assert [row["large"] for row in items(params, tmp_path)] == [row["photo"] for row in rows]
    assert image_base("Lamps", params) == ""


def test_no_file_outside_the_folder_of_the_table_is_read(
    tmp_path: Path, settings: Callable[..., Params], run_to: Callable[..., None]
) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    inside = tmp_path / "inside"
    inside.mkdir()
    paths = ["../secret.png", str(tmp_path / "secret.png"), "%2e%2e/secret.png", "file:///etc/passwd"]
    rows = [row | {"photo": paths[n % 4]} for n, row in enumerate(PRODUCTS)]
    params = settings(csv_file(inside / "products.csv", ",", rows), **{"images.max_bad_fraction": 1.0})
    run_to(params, tmp_path / "data", "fetch")
    outcomes = pa.concat_tables(map(pq.read_table, (tmp_path / "data/images/Lamps").glob("*.parquet")))["outcome"]
    assert set(outcomes.to_pylist()) == {"gone", "bad_url"}


def test_categories_come_from_a_column(tmp_path: Path, settings: Callable[..., Params]) -> None:
    rows = [row | {"brand": ("Home & Kitchen|Pans", "Büro", "照明")[n % 3]} for n, row in enumerate(PRODUCTS)]
    location = csv_file(tmp_path / "products.csv", ",", rows)
    names = [category_name(row["brand"]) for row in rows[:3]]
    assert names[:2] == ["Home_and_Kitchen", "B_ro"]
    params = settings(location, COLUMNS | {"category": "brand"}, **{"source.categories": names})
    assert [len(items(params, tmp_path, name)) for name in names] == [20, 20, 20]
    with pytest.raises(UserError, match=r"no rows of the category Toys; it has B_ro \(20\), Home_and_Kitchen \(20\)"):
        items(settings(location, COLUMNS | {"category": "brand"}, **{"source.categories": ["Toys"]}), tmp_path, "Toys")


def test_bad_rows_are_counted_with_their_reason(tmp_path: Path, settings: Callable[..., Params]) -> None:
    path = csv_file(tmp_path / "products.csv", ",")
    path.write_text(path.read_text() + "too,few\n" + ",".join(["x", "b", "n", "good", "1", "", "", "", "", ""]) + "\n")
    params = settings(path, **{"download.max_bad_fraction": 0.5})
    assert len(items(params, tmp_path)) == 60
    report = json.loads((tmp_path / "raw/Lamps/report.json").read_text())
    assert report["tables"]["items"] == {"rows_in": 62, "rows_out": 60, "dropped": {"wrong_type": 2}}
    with pytest.raises(UserError, match=r"line 61: \"\[\\\"too\\\", .*line 62: average_rating good"):
        items(settings(path, **{"download.max_bad_fraction": 0.0}), tmp_path)


def test_a_changed_table_is_converted_again_and_an_unchanged_one_is_not_read(
    tmp_path: Path, settings: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = csv_file(tmp_path / "products.csv", ",")
    first = items(settings(path), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(convert, "_write", None)
        assert items(settings(path), tmp_path) == first
    csv_file(path, ",", PRODUCTS[:-1])
    assert items(settings(path), tmp_path) == first[:-1]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("none.csv", "none.csv does not exist"),
        ("none-*.csv", r"none-\*.csv matches no file"),
        ("products.xlsx", r"products.xlsx, whose format is unknown; name a file that ends in .csv"),
        ("array.json", "array.json is a JSON array; write one object per line"),
        ("latin.csv", "latin.csv is not UTF-8"),
        ("twice.csv", "has several columns 'sku'"),
        ("other.csv", "has no column 'sku', which source.table.columns names; its columns are id, name"),
        ("broken.parquet", "broken.parquet cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    tmp_path: Path, settings: Callable[..., Params], location: str, message: str
) -> None:
    (tmp_path / "products.xlsx").touch()
    (tmp_path / "array.json").write_text(json.dumps(PRODUCTS))
    (tmp_path / "latin.csv").write_bytes(b"sku,name\n1,\xe4\n")
    (tmp_path / "twice.csv").write_text("sku,sku\n1,2\n")
    (tmp_path / "other.csv").write_text("id,name\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=message):
        items(settings(tmp_path / location), tmp_path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("4.3", 4.3),
        ("4,3", 4.3),
        ("4.3 out of 5 stars", 4.3),
        ("87/100", 87),
        ("90 %", 90),
        ("1,234", 1234),
        ("1,29,900", 129900),
        ("24,269 ratings", 24269),
        ("1 customer review", 1),
        (7, 7),
        (None, None),
        ("good", "good"),
        ("1.2.3", "1.2.3"),
        ("", ""),
    ],
)
def test_numbers_are_read_as_shops_write_them(cell: object, value: object) -> None:
    assert number(cell) == value


def test_other_scales_become_stars() -> None:
    assert [stars(cell, (0, 100)) for cell in ("0", "50%", 100, "none")] == [1, 3, 5, "none"]
    assert stars("4.5", (1, 5)) == 4.5
    assert stars(None, (0, 10)) is None


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("https://a/1.jpg;https://a/2.jpg", ["https://a/1.jpg", "https://a/2.jpg"]),
        ("https://a/1.jpg, https://a/2.jpg", ["https://a/1.jpg", "https://a/2.jpg"]),
        ('["https://a/1.jpg", "https://a/2.jpg"]', ["https://a/1.jpg", "https://a/2.jpg"]),
        ("https://a/I/1,2_3.jpg", ["https://a/I/1,2_3.jpg"]),
        ([{"large": None, "hi_res": "https://a/1.jpg"}], ["https://a/1.jpg"]),
        ({"bytes": b"x", "path": "1.jpg"}, [b"x"]),
        ({"bytes": None, "path": "1.jpg"}, ["1.jpg"]),
        (b"x", [b"x"]),
        ("nan", []),
        (None, []),
    ],
)
def test_images_are_read_in_every_form(cell: object, expected: list[object]) -> None:
    seen: list[object] = []
    table = TableParams(columns={"parent_asin": "id", "images": "image"}, rating_scale=(1, 5), image_folder="")
    record({"id": "1", "image": cell}, table, lambda found: seen.extend(found) or None)  # type: ignore[func-returns-value]
    assert seen == expected


def test_a_disturbed_conversion_is_made_again(tmp_path: Path, settings: Callable[..., Params]) -> None:
    params = settings(csv_file(tmp_path / "products.csv", ","))
    first = items(params, tmp_path)
    folder, _ = convert.convert(params.source, "Lamps")
    lines = next(folder.rglob("*.jsonl"))
    lines.write_bytes(lines.read_bytes()[:-50])
    assert items(params, tmp_path) == first
    shutil.rmtree(folder)
    assert items(params, tmp_path) == first


def test_the_files_of_the_challenge_are_a_table(
    tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rows = ["parent_asin,main_category,title,features,description,average_rating,rating_number,image_paths"]
    for n in range(60):
        # of every second product the first image is missing
        for index in (1, 2) if n % 2 else (2,):
            (tmp_path / f"images/B{n:09d}_{index}.png").write_bytes(png(4 * n))
        paths = f"B{n:09d}_1.png;B{n:09d}_2.png"
        rows.append(f'B{n:09d},Toys,toy {n},"[""new"", ""red""]",[],{1 + n % 5},{n},{paths}')
    (tmp_path / "input.csv").write_text("\n".join(rows))
    source = msgspec.to_builtins(load_params(ROOT / "params/challenge.yaml").source)
    chosen = ("kind", "categories", "location", "metadata", "reviews", "table")
    params = make_params(**{f"source.{name}": source[name] for name in chosen} | {"sample.min_chars": 0})
    run_to(params, tmp_path / "data", "fetch")
    found = pa.concat_tables(map(pq.read_table, (tmp_path / "data/images/Challenge").glob("*.parquet")))
    assert set(found["outcome"].to_pylist()) == {"ok"}
    samples = pa.concat_tables(map(pq.read_table, (tmp_path / "data/sample/Challenge").glob("*.parquet")))
    assert set(samples["features"].to_pylist()) == {"new | red"}
