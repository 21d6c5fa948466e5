import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prep import download
from prep.core.errors import UserError
from prep.core.params import Params

ITEM = {
    "parent_asin": "B01",
    "title": "A pan",
    "average_rating": 4.5,
    "rating_number": 3,
    "features": ["x"],
    "description": [],
    "images": [{"hi_res": None, "large": "https://m.media-amazon.com/images/I/1.jpg"}],
    "details": {"any": {"thing": [1]}},
    "main_category": None,
    "store": None,
    "price": "None",
}
REVIEW = {
    "parent_asin": "B01",
    "user_id": "U",
    "rating": 5.0,
    "timestamp": 1,
    "verified_purchase": True,
    "text": "secret",
}


def mirror(folder: Path, items: bytes, reviews: bytes = b"") -> Path:
    for name, content in {"meta_categories/meta_Toys": items, "review_categories/Toys": reviews}.items():
        path = folder / "raw" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def line(**changes: object) -> bytes:
    return json.dumps(ITEM | changes).encode() + b"\n"


@pytest.fixture
def settings(make_params: Callable[..., Params]) -> Callable[..., Params]:
    def of(location: Path | str, **changes: object) -> Params:
        where = {"source.kind": "mirror", "source.location": str(location), "source.categories": ["Toys"]}
        return make_params(**(where | {"download.max_bad_fraction": 0.9} | changes))

    return of


def rows(data: Path, table: str) -> list[dict]:
    files = sorted((data / "raw/Toys").glob(f"{table}*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"<html>503</html>\n", "not_json"),
        (line()[:40] + b"\n", "not_json"),
        (line(title="\xff\xfe").replace(b"\\u00ff", b"\xff"), "bad_utf8"),
        (line(average_rating="four"), "wrong_type"),
        (line(features={"not": "a list"}), "wrong_type"),
        (line(rating_number=-1), "wrong_type"),
        (b'{"title": "no id"}\n', "missing_key"),
        (line(parent_asin=""), "bad_parent_asin"),
        (line(parent_asin=" "), "bad_parent_asin"),
        (line(parent_asin="nan"), "bad_parent_asin"),
        (line(parent_asin="B" * 241), "bad_parent_asin"),
        (line()[:-30], "truncated"),
    ],
)
def test_a_bad_line_is_rejected_with_its_reason(
    tmp_path: Path, settings: Callable[..., Params], bad: bytes, reason: str
) -> None:
    content = line() + line(parent_asin="B02") + bad
    download.download("Toys", settings(mirror(tmp_path / "m", content)), tmp_path)
    assert {row["parent_asin"] for row in rows(tmp_path, "items")} == {"B01", "B02"}
    assert rows(tmp_path, "rejects") == [{"file": "meta_Toys.jsonl", "line": 3, "reason": reason}]
    report = json.loads((tmp_path / "raw/Toys/report.json").read_text())
    assert report["tables"]["items"] == {"rows_in": 3, "rows_out": 2, "dropped": {reason: 1}}


def test_only_used_columns_are_stored_and_no_review_text_or_user_id(
    tmp_path: Path, settings: Callable[..., Params]
) -> None:
    reviews = json.dumps(REVIEW).encode() + b"\n"
    download.download("Toys", settings(mirror(tmp_path / "m", line(), reviews)), tmp_path)
    item = rows(tmp_path, "items")[0]
    assert (item["hi_res"], item["large"]) == (None, ITEM["images"][0]["large"])
    assert json.loads(item["details"]) == ITEM["details"]
    assert item["price"] is None
    assert "images" not in item
    assert all(b"secret" not in file.read_bytes() for file in (tmp_path / "raw/Toys").iterdir())
    assert set(rows(tmp_path, "reviews")[0]) == {
        "parent_asin", "line_hash", "user_hash", "rating", "timestamp", "verified_purchase"
    }  # fmt: skip


def test_items_and_reviews_of_a_product_are_in_one_bucket(tmp_path: Path, make_params: Callable[..., Params]) -> None:
    params = make_params(**{"download.buckets": 7})
    download.download("Demo_Toys", params, tmp_path)
    folder = tmp_path / "raw/Demo_Toys"
    for bucket in range(7):
        items = set(pq.read_table(folder / f"items-{bucket:03d}.parquet")["parent_asin"].to_pylist())
        reviews = set(pq.read_table(folder / f"reviews-{bucket:03d}.parquet")["parent_asin"].to_pylist())
        assert items
        assert reviews <= items


def test_too_many_bad_lines_are_an_error_that_names_some_and_only_their_list_is_left(
    tmp_path: Path, settings: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / "store"))
    bad = line(rating_number="many\n") + b"<html>\n" * 3
    params = settings(mirror(tmp_path / "m", line() + bad), **{"download.max_bad_fraction": 0.5})
    with pytest.raises(UserError) as error:
        download.download("Toys", params, tmp_path)
    kept = tmp_path / "store/rejects/Toys/rejects.parquet"
    assert str(error.value) == (
        "4 of 5 lines of meta_Toys.jsonl are unusable (not_json 3, wrong_type 1), over the budget of 50.0%; "
        f"{kept} lists them; for example line 2: rating_number many (wrong_type), line 3: <html> (not_json), "
        "line 4: <html> (not_json); inspect the file, or raise download.max_bad_fraction (0.5)"
    )
    assert pq.read_table(kept)["line"].to_pylist() == [2, 3, 4, 5]
    assert not (tmp_path / "raw/Toys").exists()


def test_a_few_bad_lines_are_named_in_the_log(tmp_path: Path, settings: Callable[..., Params]) -> None:
    content = line() * 9 + line(average_rating="four") + b"<html>\n"
    notes = download.download("Toys", settings(mirror(tmp_path / "m", content)), tmp_path)
    told = "; for example line 10: average_rating four (wrong_type), line 11: <html> (not_json)"
    assert notes == {"items": told, "reviews": ""}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_refused_with_what_to_do(
    tmp_path: Path, settings: Callable[..., Params], indent: int | None
) -> None:
    content = json.dumps([ITEM, ITEM], indent=indent).encode()
    with pytest.raises(UserError, match="the file seems to be a JSON array, write one object per line"):
        download.download("Toys", settings(mirror(tmp_path / "m", content)), tmp_path)


def test_an_empty_file_and_a_missing_file_are_errors(tmp_path: Path, settings: Callable[..., Params]) -> None:
    with pytest.raises(UserError, match="meta_Toys.jsonl of Toys is empty"):
        download.download("Toys", settings(mirror(tmp_path / "m", b"")), tmp_path)
    with pytest.raises(UserError, match="has no file raw/meta_categories/meta_Toys.jsonl"):
        download.download("Toys", settings(tmp_path / "nowhere"), tmp_path)


def test_a_source_without_reviews_gives_empty_tables(tmp_path: Path, settings: Callable[..., Params]) -> None:
    folder = mirror(tmp_path / "m", line())
    (folder / "raw/review_categories/Toys.jsonl").unlink()
    with pytest.raises(UserError, match="review_categories/Toys.jsonl"):
        download.download("Toys", settings(folder), tmp_path)
    download.download("Toys", settings(folder, **{"source.reviews": False}), tmp_path)
    assert rows(tmp_path, "reviews") == []
