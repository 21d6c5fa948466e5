"""`effimini inspect` proposes the mapping, counts what would be dropped, and writes parameters that a run accepts."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from effimini.cli import app
from prep.catalogue.inspect import Inspection, inspect
from prep.core.errors import UserError
from prep.core.params import load_params, read_yaml
from prep.download import download
from tests.conftest import ROOT

# The header of tables as shops, crawlers and competitions publish them, and the fields that are meant.
HEADERS = {
    "name,main_category,sub_category,image,link,ratings,no_of_ratings,discount_price,actual_price": {
        "title": "name",
        "category": "main_category",
        "main_category": "main_category",
        "categories": "sub_category",
        "images": "image",
        "parent_asin": "link",
        "average_rating": "ratings",
        "rating_number": "no_of_ratings",
        "price": "discount_price",
    },
    "product_id,product_name,category,actual_price,rating,rating_count,about_product,img_link,product_link": {
        "parent_asin": "product_id",
        "title": "product_name",
        "category": "category",
        "main_category": "category",
        "price": "actual_price",
        "average_rating": "rating",
        "rating_number": "rating_count",
        "features": "about_product",
        "images": "img_link",
    },
    "Uniq Id,Brand,Item Name,Avg. Rating,Num Reviews,Photo,Created At,Notes": {
        "parent_asin": "Uniq Id",
        "store": "Brand",
        "title": "Item Name",
        "average_rating": "Avg. Rating",
        "rating_number": "Num Reviews",
        "images": "Photo",
        "date": "Created At",
    },
}


CELLS = {
    r"(product_)?link": "https://shop.example/p/{n}",
    "image|img_link|photo": "https://shop.example/i/{n}.jpg",
    "no_of_ratings|rating_count|num reviews": "{n},000",
    "avg. rating|ratings?": "{stars}",
    ".*price": "₹{n}",
    "sku|.*id": "id-{n}",
    ".*category": "text {few}",
    ".*": "{column} of number {n}",
}


def cells(column: str, n: int) -> str:
    pattern = next(text for name, text in CELLS.items() if re.fullmatch(name, column, re.IGNORECASE))
    return pattern.format(n=n + 1, stars=1 + n % 9 / 2, few=n % 5, column=column)


def table(path: Path, header: str, rows: int = 50) -> Path:
    columns = header.split(",")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([cells(column, n) for column in columns] for n in range(rows))
    return path


def inspected(path: Path, **options: Any) -> tuple[Inspection, Any]:
    content = read_yaml(ROOT / "params/best.yaml")
    found = inspect(str(path), content, Path("params.yaml"), options.pop("chosen", {}), **options)
    return found, content


@pytest.mark.parametrize("header", HEADERS)
def test_the_fields_of_published_tables_are_recognised(tmp_path: Path, header: str) -> None:
    found, content = inspected(table(tmp_path / "products.csv", header))
    assert content["source"]["table"]["columns"] == HEADERS[header]
    assert found.rows == found.usable == 50
    assert found.rating_scale == [1, 5]


def test_rows_that_would_be_dropped_are_counted_by_reason(tmp_path: Path) -> None:
    path = table(tmp_path / "products.csv", "sku,title,rating,rating_count,image")
    with path.open("a") as file:
        file.write("id-1,again,4,1,x.jpg\nid-90,bad,good,1,x.jpg\nid-91,none,,1,x.jpg\nid-92,zero,0,1,x.jpg\nid-93\n")
    found, _ = inspected(path)
    assert found.rows == 55
    assert found.dropped == {"wrong_type": 2, "no_average_rating": 1, "rating_out_of_range": 1, "duplicate_id": 1}
    assert found.usable == 50
    assert found.examples["wrong_type"] == "row 52: average_rating good"


@pytest.mark.parametrize(("highest", "scale"), [(5, [1, 5]), (9.5, [0, 10]), (87, [0, 100])])
def test_the_scale_is_the_smallest_that_holds_the_ratings(tmp_path: Path, highest: float, scale: list[float]) -> None:
    rows = "".join(f"{n},{highest - n / 10}\n" for n in range(20))
    (tmp_path / "products.csv").write_text(f"id,score\n{rows}")
    found, content = inspected(tmp_path / "products.csv")
    assert found.rating_scale == scale
    assert content["weights"]["count"] == "none"
    assert content["sample"]["require"] == ["average_rating"]


def test_images_are_counted_by_kind_and_missing_files_named(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    (tmp_path / "products.jsonl").write_text(
        "".join(json.dumps({"id": f"p{n}", "rating": 4, "picture": f"{n}.jpg"}) + "\n" for n in range(3))
    )
    found, _ = inspected(tmp_path / "products.jsonl")
    assert found.images == {"path": 1, "missing": 2}


def test_what_was_chosen_is_used(tmp_path: Path) -> None:
    path = table(tmp_path / "products.csv", "sku,brand,name,rating,rating_count,image,category")
    _, content = inspected(path, chosen={"title": ["brand", "name"], "category": [], "images": []}, scale=(0, 10))
    assert content["source"]["table"]["columns"]["title"] == ["brand", "name"]
    assert {"category", "images"}.isdisjoint(content["source"]["table"]["columns"])
    assert content["source"]["categories"] == ["Products"]
    assert content["source"]["table"]["rating_scale"] == [0, 10]


@pytest.mark.parametrize(
    ("header", "chosen", "message"),
    [
        ("name,comment", {}, "no column of .* looks like average ratings; name it with --map average_rating=COLUMN"),
        ("sku,rating", {"titel": ["sku"]}, "--map titel is not a field; the fields are parent_asin"),
        ("sku,rating", {"title": ["name"]}, "--map title=name: .* has no such column; its columns are sku, rating"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, header: str, chosen: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        inspected(table(tmp_path / "products.csv", header), chosen=chosen)


def test_the_written_parameters_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params").symlink_to(ROOT / "params")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    CliRunner().invoke(app, ["preset", "best"], catch_exceptions=False)
    table(tmp_path / "products.csv", "sku,name,rating,rating_count,image,category")
    done = CliRunner().invoke(app, ["inspect", "products.csv", "--write", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["usable"] == 50
    params = load_params()
    assert params.source.categories == tuple(f"text_{n}" for n in range(5))
    download("text_3", params, tmp_path / "data")
    assert json.loads((tmp_path / "data/raw/text_3/report.json").read_text())["tables"]["items"]["rows_out"] == 10
    stages = YAML(typ="safe").load((tmp_path / "dvc.yaml").read_text())["stages"]
    assert all("products.csv" in stages[name]["deps"] for name in ("download", "fetch"))
    CliRunner().invoke(app, ["preset", "demo", "--force"], catch_exceptions=False)
    assert "products.csv" not in (tmp_path / "dvc.yaml").read_text()
