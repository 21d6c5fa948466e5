"""The irregularities of the real dataset, including types that change after the first 10 MB of a file."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.core.errors import UserError
from prep.core.params import Params
from prep.download import download
from prep.groups import groups
from prep.join import join
from prep.sample import sample
from prep.source import PATHS
from tests.prep.test_metadata import write as write_parquet

LARGE = 10 << 20  # bytes; tools that infer types read the first 10 MB
TOYS = "Toys"
IMAGE = "https://m.media-amazon.com/images/I"
# In the first 10 MB each field has one type, and after that another one.
EARLY: dict[str, Any] = {
    "price": None, "details": {}, "images": [], "main_category": None, "average_rating": 4, "rating_number": None,
    "store": None, "features": [], "description": [], "author": None, "subtitle": None, "videos": [], "categories": [],
    "bought_together": None,
}  # fmt: skip
LATE: list[dict[str, Any]] = [
    {"price": 9.99},
    {"price": "None"},
    {"price": "from 12.50"},
    {"details": {"Brand": "B", "Rank": {"Toys": 12}, "New": ["a", None], "price": 1.5}},
    {"details": {"Date First Available": "2014", "1": {"2": {"3": [[{}]]}}}},
    {"author": {"name": "A", "about": ["x"]}, "subtitle": "Hardcover"},
    {"author": "A", "subtitle": None},
    {"images": [{"hi_res": None, "large": f"{IMAGE}/1.jpg", "thumb": "t", "variant": "MAIN"}]},
    {"images": [{"hi_res": None, "large": f"{IMAGE}/1.jpg"}, {"hi_res": f"{IMAGE}/2.jpg", "large": None}]},
    {"average_rating": 4.1},
    {"average_rating": None},
    {"average_rating": 5},
    {"main_category": "Toys & Games"},
    {"rating_number": 2**31},
    {"store": "S", "features": ["a", "b"], "description": ["c"]},
    {"videos": [{"title": "v", "url": "u", "user_id": ""}], "categories": ["Toys"], "bought_together": ["B"]},
]
REVIEW = {
    "rating": 4.0, "title": "t", "text": "w" * 300, "images": [], "asin": "A", "parent_asin": "B0000000",
    "user_id": "U", "timestamp": 1, "helpful_vote": 0, "verified_purchase": True,
}  # fmt: skip


def item(number: int, **changes: Any) -> dict[str, Any]:
    title = Random(number).randbytes(400).hex()  # does not shrink below half in parquet
    return {"parent_asin": f"B{number:07d}", "title": title} | EARLY | changes


def large_catalogue() -> list[dict[str, Any]]:
    """Return items whose types change after the first 10 MB, in JSONL and in parquet."""
    early = [item(number) for number in range(2 * LARGE // len(json.dumps(item(0))))]
    return early + [item(len(early) + number, **LATE[number % len(LATE)]) for number in range(2_000)]


@pytest.fixture
def toys(tmp_path: Path, make_params: Callable[..., Params]) -> Callable[..., Params]:
    """Write raw files of one category to a mirror and return parameters that read them."""

    def write(items: bytes, reviews: bytes = b"", **changes: Any) -> Params:
        for name, content in zip(PATHS.values(), (items, reviews), strict=True):
            path = tmp_path / "mirror" / name.format(TOYS)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        where = {"source.kind": "mirror", "source.location": str(tmp_path / "mirror"), "source.categories": [TOYS]}
        return make_params(**where, **{"download.max_bad_fraction": 0.9, "sample.fraction": 1.0}, **changes)

    return write


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(data: Path, name: str) -> list[dict[str, Any]]:
    files = sorted((data / "raw" / TOYS).glob(f"{name}*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def rejects(data: Path) -> list[tuple[str, int, str]]:
    return [(row["file"], row["line"], row["reason"]) for row in table(data, "rejects")]


def report(data: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / stage / TOYS / "report.json").read_text())
    return found


def first_urls(row: dict[str, Any]) -> Iterator[str | None]:
    for kind in ("hi_res", "large"):
        yield next((image[kind] for image in row["images"] if image.get(kind)), None)


def test_types_that_change_after_10_mb_are_parsed_correctly(tmp_path: Path, toys: Callable[..., Params]) -> None:
    rows = large_catalogue()
    assert len(lines(rows[:-2_000])) > LARGE
    download(TOYS, toys(lines(rows)), tmp_path)
    assert rejects(tmp_path) == []
    found = {row["line"]: row for row in table(tmp_path, "items")}
    assert sorted(found) == list(range(1, len(rows) + 1))
    same = (
        "parent_asin",
        "main_category",
        "title",
        "average_rating",
        "rating_number",
        "features",
        "description",
        "store",
    )
    for number, row in enumerate(rows, 1):
        assert {name: found[number][name] for name in same} == {name: row[name] for name in same}
        assert json.loads(found[number]["details"]) == row["details"]
        assert [found[number]["hi_res"], found[number]["large"]] == list(first_urls(row))


def test_a_bad_line_after_10_mb_is_rejected_with_its_number(tmp_path: Path, toys: Callable[..., Params]) -> None:
    review = json.dumps(REVIEW).encode() + b"\n"
    many = LARGE // len(review) + 1
    broken = [
        (review.replace(b"www", b"w\xffw", 1), "bad_utf8"),
        (b"<html><body>503</body></html>\n", "not_json"),
        (review.replace(b"4.0", b'"good"'), "wrong_type"),
        (review.replace(b'"user_id": "U", ', b""), "missing_key"),
        (review.replace(b"B0000000", b""), "bad_parent_asin"),
        (review[:-30], "truncated"),
    ]
    content = review * many + b"".join(line + review * 5 if line.endswith(b"\n") else line for line, _ in broken)
    download(TOYS, toys(lines([item(0)]), content), tmp_path)
    assert rejects(tmp_path) == [("Toys.jsonl", many + 1 + 6 * n, reason) for n, (_, reason) in enumerate(broken)]
    funnel = report(tmp_path, "raw")["tables"]["reviews"]
    assert (funnel["rows_in"], funnel["rows_out"]) == (many + 31, many + 25)
    assert len(table(tmp_path, "reviews")) == many + 25


def parquet_of(rows: list[dict[str, Any]], toys: Callable[..., Params], tmp_path: Path) -> Params:
    write_parquet(tmp_path / "mirror", rows, files=2, row_group_size=700)
    return toys(b"", **{"source.metadata": "parquet"})


@pytest.mark.parametrize("rows", ["of more than 10 MB", "real"])
def test_jsonl_and_parquet_give_the_same_items(
    tmp_path: Path, toys: Callable[..., Params], request: pytest.FixtureRequest, rows: str
) -> None:
    if rows == "real":
        corpus: Path = request.getfixturevalue("corpus")
        content = (corpus / "amazon/raw/meta_categories/meta_Health_and_Personal_Care.jsonl").read_bytes()
        made = [json.loads(line) for line in content.splitlines()]
        assert len(made) == 2_000
    else:
        made = large_catalogue()
        content = lines(made)
    download(TOYS, toys(content), tmp_path / "jsonl")
    assert rejects(tmp_path / "jsonl") == []
    assert len(table(tmp_path / "jsonl", "items")) == len(made)
    download(TOYS, parquet_of(made, toys, tmp_path), tmp_path / "parquet")
    if rows != "real":
        assert next((tmp_path / "mirror/raw_meta_Toys").glob("full-00000-*")).stat().st_size > LARGE / 2
    files = {name: sorted((tmp_path / name / "raw" / TOYS).glob("items-*.parquet")) for name in ("jsonl", "parquet")}
    assert [path.name for path in files["jsonl"]] == [f"items-{number:03d}.parquet" for number in range(4)]
    assert [path.read_bytes() for path in files["jsonl"]] == [path.read_bytes() for path in files["parquet"]]


@pytest.mark.parametrize(
    "change",
    [
        {"rating_number": -1},
        {"rating_number": 2**53 + 1},
        {"average_rating": float("inf")},
        {"parent_asin": "B" * 241},
        {"parent_asin": "nan"},
    ],
)
def test_jsonl_and_parquet_give_the_same_rejects(
    tmp_path: Path, toys: Callable[..., Params], change: dict[str, Any]
) -> None:
    made = [item(0), item(1, **change), item(2)]
    download(TOYS, toys(lines(made)), tmp_path / "jsonl")
    download(TOYS, parquet_of(made, toys, tmp_path), tmp_path / "parquet")
    for name in ("jsonl", "parquet"):
        assert [line for _, line, _ in rejects(tmp_path / name)] == [2]
        assert sorted(row["line"] for row in table(tmp_path / name, "items")) == [1, 3]


def test_jsonl_and_parquet_give_the_same_for_absent_values(tmp_path: Path, toys: Callable[..., Params]) -> None:
    images = [{"hi_res": "None", "large": "nan"}, {"hi_res": "h", "large": "l"}]
    made = [item(0, average_rating=float("nan"), images=images), item(1)]
    download(TOYS, toys(lines(made)), tmp_path / "jsonl")
    download(TOYS, parquet_of(made, toys, tmp_path), tmp_path / "parquet")
    found = [table(tmp_path / name, "items") for name in ("jsonl", "parquet")]
    assert found[0] == found[1]
    row = next(one for one in found[0] if one["line"] == 1)
    assert (row["average_rating"], row["hi_res"], row["large"]) == (None, "h", "l")


def test_details_in_parquet_that_are_not_an_object_are_empty(tmp_path: Path, toys: Callable[..., Params]) -> None:
    path = write_parquet(tmp_path / "mirror", [item(0), item(1), item(2)]) / "full-00000-of-00001.parquet"
    whole = pq.read_table(path)
    details = pa.array([None, "", "[1]"], pa.string())
    pq.write_table(whole.set_column(whole.schema.get_field_index("details"), "details", details), path)
    download(TOYS, toys(b"", **{"source.metadata": "parquet"}), tmp_path)
    assert [row["details"] for row in table(tmp_path, "items")] == ["{}"] * 3


def test_a_rating_of_zero_is_in_the_raw_table_and_counts_nowhere(tmp_path: Path, toys: Callable[..., Params]) -> None:
    reviews = lines([REVIEW | {"rating": rating} for rating in (0.0, 5.0, 4.0)])
    params = toys(lines([item(0)]), reviews, **{"download.buckets": 1})
    download(TOYS, params, tmp_path)
    assert [row["rating"] for row in table(tmp_path, "reviews")] == [0.0, 5.0, 4.0]
    join(TOYS, params, tmp_path)
    joined = pq.read_table(tmp_path / "items/Toys/items-000.parquet").to_pylist()[0]
    assert (joined["review_count"], joined["review_mean"]) == (2, 4.5)
    assert report(tmp_path, "items")["tables"]["reviews"]["dropped"] == {"rating_out_of_range": 1}


@pytest.mark.parametrize(("rule", "count", "dropped"), [("all", 3, {}), ("first_by_user", 2, {"later_by_user": 1})])
def test_duplicate_reviews_count_once_and_several_of_one_user_as_configured(
    tmp_path: Path, toys: Callable[..., Params], rule: str, count: int, dropped: dict[str, int]
) -> None:
    said = [REVIEW, REVIEW | {"rating": 1.0, "timestamp": 2}, REVIEW | {"user_id": "V"}]
    content = lines([*said, REVIEW, REVIEW | {"parent_asin": "B0000001"}])
    content += json.dumps(REVIEW).encode() + b"\r\n"  # the same line with another line ending
    params = toys(lines([item(0), item(1)]), content, **{"join.reviews": rule})
    download(TOYS, params, tmp_path)
    join(TOYS, params, tmp_path)
    files = sorted((tmp_path / "items/Toys").glob("items-*.parquet"))
    counts = {row["parent_asin"]: row["review_count"] for file in files for row in pq.read_table(file).to_pylist()}
    assert counts == {"B0000000": count, "B0000001": 1}
    assert report(tmp_path, "items")["tables"]["reviews"]["dropped"] == {"duplicate_line": 2} | dropped


def test_rating_number_and_review_count_are_compared_and_may_differ(
    tmp_path: Path, toys: Callable[..., Params]
) -> None:
    items = [item(0, rating_number=2), item(1, rating_number=9), item(2, rating_number=None), item(3, rating_number=0)]
    params = toys(lines(items), lines([REVIEW, REVIEW | {"user_id": "V"}, REVIEW | {"parent_asin": "B0000001"}]))
    download(TOYS, params, tmp_path)
    join(TOYS, params, tmp_path)
    found = report(tmp_path, "items")
    assert found["rating_number_less_review_count"] == {
        "items": 3, "mean": 2.6667, "mean_absolute": 2.6667, "share_equal": 0.6667
    }  # fmt: skip
    assert found["items_without_reviews"] == 2
    assert found["average_rating_less_review_mean"]["share_equal"] == 1.0


def test_the_files_category_and_main_category_are_both_kept(tmp_path: Path, toys: Callable[..., Params]) -> None:
    rows = [item(number, main_category="Home & Kitchen", rating_number=1) for number in range(30)]
    params = toys(lines(rows))
    download(TOYS, params, tmp_path)
    join(TOYS, params, tmp_path)
    groups(params, tmp_path)
    sample(TOYS, params, tmp_path)
    row = pq.read_table(next((tmp_path / "sample/Toys").glob("train-*.parquet"))).to_pylist()[0]
    assert (row["category"], row["main_category"]) == (TOYS, "Home & Kitchen")


@pytest.mark.parametrize(
    "details",
    [
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b'"' + b"{'a':".replace(b"'", b'\\"') * 20_000 + b'"',
        b'"{\\"a\\": \\"\\\\ud800\\"}"',
        b'{"a": ' + b"1" * 5_000 + b"}",
        b'{"a": 1e400, "a": [[null]]}',
    ],
    ids=["deep", "deep and a string", "half a character", "a long number", "a large number"],
)
def test_details_of_any_kind_reach_the_sample(tmp_path: Path, toys: Callable[..., Params], details: bytes) -> None:
    rows = [item(number, main_category="Toys", rating_number=1) for number in range(30)]
    params = toys(lines(rows).replace(b'"details": {}', b'"details": ' + details))
    download(TOYS, params, tmp_path)
    assert rejects(tmp_path) == []
    join(TOYS, params, tmp_path)
    groups(params, tmp_path)
    sample(TOYS, params, tmp_path)
    assert report(tmp_path, "sample")["tables"]["items"]["rows_out"] == 30


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "meta_Toys.jsonl of Toys is empty"),
        (
            b"<html>\n<body>come back later</body>\n</html>\n",
            r"3 of 3 lines of meta_Toys.jsonl are unusable \(not_json 3\)",
        ),
        (b"<html>come back later</html>", r"1 of 1 lines of meta_Toys.jsonl are unusable \(truncated 1\)"),
        (b"\0" * 1_000, "1 of 1 lines"),
    ],
)
def test_files_without_data_are_an_error_and_leave_no_output(
    tmp_path: Path, toys: Callable[..., Params], content: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        download(TOYS, toys(content), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "raw" / TOYS).exists()
