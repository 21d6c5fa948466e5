import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep import metadata
from prep.core.errors import UserError
from prep.core.params import Params, SourceParams
from prep.hub import REPO
from prep.metadata import ITEM_BATCH_SCHEMA, item_batches
from prep.records import parse_lines
from tests.prep import hub_server
from tests.prep.hub_server import COMMIT, Hub
from tests.prep.test_source import point_at

STRINGS = pa.list_(pa.string())
# The columns of the hub's files and their types.
HUB = pa.schema(
    [
        ("main_category", pa.string()), ("title", pa.string()), ("average_rating", pa.float64()),
        ("rating_number", pa.int64()), ("features", STRINGS), ("description", STRINGS), ("price", pa.string()),
        ("images", pa.struct([(name, STRINGS) for name in ("hi_res", "large", "thumb", "variant")])),
        ("videos", pa.struct([(name, STRINGS) for name in ("title", "url", "user_id")])), ("store", pa.string()),
        ("categories", STRINGS), ("details", pa.string()), ("parent_asin", pa.string()),
        ("bought_together", pa.string()), ("subtitle", pa.string()), ("author", pa.string()),
    ]
)  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]], files: int = 1, row_group_size: int = 3_000) -> Path:
    """Write JSONL rows as parquet in the hub's schema."""
    folder = folder / "raw_meta_Toys"
    folder.mkdir(parents=True)
    keys = ("hi_res", "large", "thumb", "variant")
    as_hub = [
        row
        | {
            "images": None if row["images"] is None else {k: [image.get(k) for image in row["images"]] for k in keys},
            "details": json.dumps(row["details"]),
            "price": None if row.get("price") is None else str(row["price"]),
            "videos": {key: [video.get(key) for video in row.get("videos", [])] for key in ("title", "url", "user_id")},
            **dict.fromkeys(("bought_together", "subtitle", "author")),
        }
        for row in rows
    ]
    size = -(-len(rows) // files)
    for number in range(files):
        table = pa.Table.from_pylist(as_hub[number * size : (number + 1) * size], schema=HUB)
        path = folder / f"full-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(table, path, row_group_size=row_group_size)
    return folder


def item(number: int = 0, **changes: Any) -> dict[str, Any]:
    images = [{"hi_res": None, "large": "", "thumb": "t", "variant": "MAIN"}]
    images += [{"hi_res": "", "large": "large", "thumb": "t", "variant": "PT01"}]
    images += [{"hi_res": "high", "large": "second", "thumb": "t", "variant": "PT02"}]
    return {
        "parent_asin": f"B{number}", "main_category": None, "title": "A pan", "average_rating": 4.5, "rating_number": 3,
        "features": ["x", None], "description": [], "price": "None", "images": images, "store": None,
        "categories": ["a"], "videos": [], "details": {"any": {"thing": [number]}},
    } | changes  # fmt: skip


def expected(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the result of the JSONL reader for rows."""
    table, rejects = parse_lines("items", b"".join(json.dumps(row).encode() + b"\n" for row in made), 1)
    assert rejects == []
    found: list[dict[str, Any]] = table.select(ITEM_BATCH_SCHEMA.names).to_pylist()
    return found


@pytest.fixture
def settings(make_params: Callable[..., Params]) -> Callable[..., SourceParams]:
    def of(location: Path | str = "") -> SourceParams:
        where = {"kind": "mirror", "location": str(location)} if location else {"kind": "hub", "revision": COMMIT}
        given = {**where, "categories": ["Toys"], "metadata": "parquet"}
        return make_params(**{f"source.{key}": value for key, value in given.items()}).source

    return of


def rows(source: SourceParams) -> list[dict[str, Any]]:
    batches = list(item_batches(source, "Toys"))
    assert all(batch.schema == ITEM_BATCH_SCHEMA for batch in batches)
    assert all(batch.num_rows <= metadata.ROWS_PER_READ for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def test_parquet_over_10_mb_gives_the_same_rows_as_jsonl(tmp_path: Path, settings: Callable[..., SourceParams]) -> None:
    # Types must not be inferred from the first block, which has only nulls and no images.
    dull = {"store": None, "images": [], "features": [], "description": None, "details": {}, "average_rating": None}
    made = [item(n, **dull) for n in range(12_000)]
    text = random.Random(0).randbytes
    made += [item(n, description=[text(200).hex()], store="S", title=text(50).hex()) for n in range(12_000, 60_000)]
    folder = write(tmp_path, made, files=2)
    assert sum(path.stat().st_size for path in folder.iterdir()) > 10 << 20
    assert rows(settings(tmp_path)) == expected(made)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"images": []},
        {"images": [{"hi_res": None, "large": None}]},
        {"features": None, "description": [None]},
        {"title": None, "average_rating": None, "rating_number": None},
        {"images": [{"hi_res": None, "large": "a"}, {"hi_res": "b", "large": None}, {"hi_res": "None", "large": ""}]},
        {"images": None, "categories": None, "price": None},
        {"price": 12.5, "videos": [{"title": "one", "url": "u", "user_id": ""}, {"title": None, "url": "v"}]},
        {"price": "$1,299.00", "videos": [], "categories": []},
        {"price": "from 12.50", "categories": ["a", None, "b"]},
    ],
)
def test_rows_may_lack_values(tmp_path: Path, settings: Callable[..., SourceParams], changes: dict[str, Any]) -> None:
    made = [item(0), item(1, **changes), item(2)]
    write(tmp_path, made)
    assert rows(settings(tmp_path)) == expected(made)


def test_real_rows_are_the_same_in_parquet_and_jsonl(
    corpus: Path, tmp_path: Path, settings: Callable[..., SourceParams]
) -> None:
    lines = (corpus / "amazon/raw/meta_categories/meta_Health_and_Personal_Care.jsonl").read_bytes().splitlines()
    made = [json.loads(line) for line in lines]
    write(tmp_path, made, files=3, row_group_size=100)
    assert rows(settings(tmp_path)) == expected(made)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = write(tmp_path, [item(n) for n in range(100)], files=2)
    with Hub({f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}) as served:
        point_at(served, monkeypatch)
        yield served


def test_the_hubs_files_are_read_at_the_commit(hub: Hub, settings: Callable[..., SourceParams]) -> None:
    hub.faults.append(hub_server.cut)
    hub.api_faults.extend([hub_server.status(429, Retry_After="0"), None, hub_server.status(503)])
    assert [row["parent_asin"] for row in rows(settings())] == [f"B{n}" for n in range(100)]
    assert all(COMMIT in asked.path for asked in hub.hub.asked if REPO in asked.path)
    assert {asked.token for asked in hub.cdn.asked} == {""}


def test_files_that_are_not_metadata_are_an_error(tmp_path: Path, settings: Callable[..., SourceParams]) -> None:
    with pytest.raises(UserError, match=r"has no raw_meta_Toys/full-\*.parquet; check source.categories"):
        rows(settings(tmp_path))
    with pytest.raises(UserError, match=r"cannot be listed at http://.*metadata: jsonl.* a directory, or use the hub"):
        rows(settings("http://127.0.0.1:9"))
    path = write(tmp_path, [item()]) / "full-00000-of-00001.parquet"
    for spoil in (
        lambda: path.write_bytes(b"<html>come back later</html>"),
        lambda: pq.write_table(pa.table({"title": ["a"], "price": ["1"]}), path),
        lambda: pq.write_table(pa.Table.from_pylist([{**item(), "details": "{}"}]), path),  # images as in the JSONL
    ):
        spoil()
        with pytest.raises(
            UserError, match="raw_meta_Toys does not contain the hub's parquet metadata.*again, or set"
        ) as caught:
            rows(settings(tmp_path))
        assert "\n" not in str(caught.value)
