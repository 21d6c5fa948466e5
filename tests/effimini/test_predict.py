import csv
import json
import logging
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from effimini.model import Config
from effimini.predict import INPUT_COLUMNS, predict, read_items
from prep.core.errors import UserError
from prep.core.params import Params
from shards.stream import ShardDataset


def write_csv(path: Path, rows: list[dict[str, str]], columns: tuple[str, ...] = INPUT_COLUMNS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(**changes: str) -> dict[str, str]:
    return dict.fromkeys(INPUT_COLUMNS, "") | {"parent_asin": "A1", "title": "sturdy"} | changes


def config_of(run: Path) -> Config:
    return msgspec.json.decode((run / "models/best/config.json").read_bytes(), type=Config)


def scores(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        return {line["item_id"]: line["score"] for line in csv.DictReader(file)}


def raw_rows(run_params: Params, run: Path) -> list[dict[str, str]]:
    """Return the test split as raw text and original pictures, in the challenge's format."""
    test = ShardDataset(run / "data/shards", run_params.source.categories, "test")
    rows = []
    for i in range(len(test)):
        metadata = test.metadata(i)
        picture = f"{metadata['parent_asin']}.png"
        rows.append(
            metadata
            | {
                "title": f" <b>{metadata['title']}</b>&nbsp;",
                "features": json.dumps(["one", "two"]),
                "image_paths": f"{picture};missing.jpg" if test.has_image[i] else "",
            }
        )
    return rows


def test_scores_are_those_of_the_evaluation(
    run_params: Params, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same item scores the same from the shards and from raw text and its original picture."""
    items = write_csv(tmp_path / "items.csv", raw_rows(run_params, run))
    with caplog.at_level(logging.WARNING):
        predict(run / "models/best", items, run / "data/pictures", tmp_path / "out.csv")
    assert "demo data" in caplog.text
    expected = pq.read_table(run / "data/predictions/test.parquet").to_pandas()
    assert np.ptp(expected["prediction"]) > 1  # else equal scores would prove nothing
    found = scores(tmp_path / "out.csv")
    assert list(found) == list(expected["parent_asin"])
    for asin, stars in zip(expected["parent_asin"], expected["prediction"], strict=True):
        assert float(found[asin]) == pytest.approx(stars, abs=0.0051)
    header, first = (tmp_path / "out.csv").read_text().splitlines()[:2]
    assert header == "item_id,score,params,flops"
    assert first.split(",")[2:] == ["0.2", "0.0"]


@pytest.mark.parametrize("cell", ['["one", "two"]', "['one', 'two']", "one | two"])
def test_a_list_may_be_json_python_or_plain(run: Path, tmp_path: Path, cell: str) -> None:
    items = write_csv(tmp_path / "items.csv", [row(features=cell), row(parent_asin="A2", features='["one","two"]')])
    predict(run / "models/best", items, tmp_path, tmp_path / "out.csv")
    found = scores(tmp_path / "out.csv")
    assert found["A1"] == found["A2"]


@pytest.mark.parametrize(
    ("cell", "same"),
    [
        ("['one here' 'two here']", '["one here", "two here"]'),
        ("[nan]", ""),
        ("nan", ""),
        ("<NA>", ""),
        (" None ", ""),
        ("['one' nan]", "one"),
    ],
)
def test_a_cell_is_read_as_the_tool_meant_it(run: Path, tmp_path: Path, cell: str, same: str) -> None:
    """The texts are compared, not the scores, which may be equal for different texts."""
    config = config_of(run)
    items = write_csv(
        tmp_path / "items.csv", [row(features=cell, title="NA"), row(parent_asin="A2", features=same, title="")]
    )
    first, second = read_items(items, tmp_path, config)
    assert first.text == second.text


def test_an_absent_id_is_refused_and_an_absent_image_is_none(run: Path, tmp_path: Path) -> None:
    config = config_of(run)
    items = write_csv(tmp_path / "items.csv", [row(image_paths="nan")])
    assert read_items(items, tmp_path, config)[0].image is None
    with pytest.raises(UserError, match="parent_asin not null, .* line 2"):
        read_items(write_csv(tmp_path / "items.csv", [row(parent_asin="nan")]), tmp_path, config)


@pytest.mark.parametrize("cell", ["['a' ... 'z']", "[['a']]", "['a', 'b", "[b'a']"])
def test_a_list_that_cannot_be_read_whole_is_refused(run: Path, tmp_path: Path, cell: str) -> None:
    config = config_of(run)
    items = write_csv(tmp_path / "items.csv", [row(), row(parent_asin="A2", description=cell)])
    with pytest.raises(UserError, match=r"as text or lists of texts, .* line 3 \(not_text \["):
        read_items(items, tmp_path, config)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(parent_asin=" ")], "expected parent_asin not null, but 1 of 1 .* for example line 2"),
        ([row(), row()], r"expected parent_asin unique, .* for example A1 \(2 times\)"),
        (
            [row(image_paths="../secret.jpg")],
            r"inside the images folder, .* line 2 \(outside ../secret.jpg\)",
        ),
        ([row(image_paths="/etc/hostname")], "inside the images folder"),
        ([row(image_paths="link.jpg")], "inside the images folder"),
        (
            [row(features="[1, 2]")],
            r"as text or lists of texts, .* line 2 \(not_text \[1, 2\]\)",
        ),
        ([row(), row(), row(parent_asin="")], "parent_asin not null, .*; also failed: input: parent_asin unique"),
        ([row(image_paths="none.jpg")], r"expected image files that exist, .* line 2 \(missing none.jpg\)"),
        ([row(image_paths="text.jpg")], r"item A1: image .*text.jpg is unusable \(not_an_image\)"),
    ],
)
def test_a_bad_row_is_an_error_and_nothing_is_written(
    run: Path, tmp_path: Path, rows: list[dict[str, str]], message: str
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "text.jpg").write_text("no image")
    with pytest.raises(UserError, match=message):
        predict(run / "models/best", write_csv(tmp_path / "items.csv", rows), images, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: no column parent_asin"),
        (b"parent_asin,title\nA1,x\n", "no column main_category, features, description, image_paths"),
        (",".join(INPUT_COLUMNS).encode() + b"\nA1,x\n", "line 2: the row does not have 6 cells"),
        (",".join(INPUT_COLUMNS).encode() + b"\nA1,x,\xff,,,\n", "is not UTF-8"),
        (",".join(INPUT_COLUMNS).encode() + b'\nA1,x,"a"b,,,\n', "not valid CSV"),
    ],
)
def test_a_file_in_another_format_is_an_error(run: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "items.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        predict(run / "models/best", tmp_path / "items.csv", tmp_path, tmp_path / "out.csv")


def test_a_missing_file_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        predict(run / "models/best", tmp_path / "no.csv", tmp_path, tmp_path / "out.csv")
