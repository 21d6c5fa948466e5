import csv
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from effimini.input_csv import INPUT_COLUMNS
from effimini.model import Config
from effimini.predict import predict, read_items
from prep.core.errors import UserError
from prep.core.params import Params
from shards.images import pixels
from shards.stream import ShardDataset

from .test_calibration import INTERVAL


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


def test_images_are_prepared_as_the_model_was_trained(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run / "models/best", tmp_path / "model")
    how = {"fit": "crop", "quality": 0, "max_pixels": 10**5, "resample": "bilinear", "request": 48}
    config = msgspec.structs.replace(config_of(run), **how)
    (tmp_path / "model/config.json").write_bytes(msgspec.json.encode(config))
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    items = write_csv(tmp_path / "items.csv", [row(image_paths="a.png")])
    prepared = []
    monkeypatch.setattr(
        "effimini.predict.to_pixels", lambda data, how: prepared.append(how) or pixels.to_pixels(data, how)
    )
    predict(tmp_path / "model", items, tmp_path, tmp_path / "out.csv")
    assert set(prepared) == {pixels.Preparation(size=config.size, **how)}


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
            [row(features="[1, 2]")],
            r"as text or lists of texts, .* line 2 \(not_text \[1, 2\]\)",
        ),
        ([row(), row(), row(parent_asin="")], "parent_asin not null, .*; also failed: input: parent_asin unique"),
    ],
)
def test_a_bad_row_is_an_error_and_nothing_is_written(
    run: Path, tmp_path: Path, rows: list[dict[str, str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict(run / "models/best", write_csv(tmp_path / "items.csv", rows), tmp_path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with a good image, and with what cannot be read as one."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "good.jpg")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "secret.jpg")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:300])
    (folder / "empty.jpg").touch()
    (folder / "folder.jpg").mkdir()
    with (folder / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    os.mkfifo(folder / "pipe.jpg")
    return folder


FAULTS = {
    "../secret.jpg": "outside the images folder",
    "/etc/hostname": "outside the images folder",
    "link.jpg": "outside the images folder",
    "none.jpg": "does not exist",
    "good.jpg/a.jpg": "",
    "loop.jpg": "",
    "a" * 5000 + ".jpg": "File name too long",
    "a/" * 5000 + "b.jpg": "",
    "a\0b.jpg": "",
    "text.jpg": "not_an_image: an unknown type",
    "cut.jpg": "corrupt: JPEG",
    "empty.jpg": "not_an_image: empty",
    "folder.jpg": "not a file",
    "huge.jpg": "too large",
    "pipe.jpg": "not a file",
}


def test_an_item_whose_images_cannot_be_read_is_scored_without_one(
    run: Path, tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(parent_asin=f"B{number}", image_paths=name) for number, name in enumerate(FAULTS)]
    rows += [row(parent_asin="blank"), row(parent_asin="good", image_paths="good.jpg")]
    rows += [row(parent_asin="second", image_paths=f"{'; '.join(FAULTS)} ;good.jpg")]
    items = write_csv(tmp_path / "items.csv", rows)
    predict(run / "models/best", items, pictures, tmp_path / "out.csv", image_faults=True)
    found = scores(tmp_path / "out.csv")
    assert list(found) == [line["parent_asin"] for line in rows]
    assert {found[f"B{number}"] for number in range(len(FAULTS))} == {found["blank"]}
    assert found["second"] == found["good"] != found["blank"]
    with (tmp_path / "out.csv").open(newline="") as file:
        faults = [line["image_fault"] for line in csv.DictReader(file)]
    for fault, (name, why) in zip(faults[: len(FAULTS)], FAULTS.items(), strict=True):
        assert fault.startswith(name[:20].replace("\0", " "))
        assert why in fault.partition(": ")[2] != ""
        assert len(fault) < 300
    assert faults[len(FAULTS) :] == ["", "", ""]
    (said,) = [message for message in caplog.messages if "no image that can be read" in message]
    assert f"{len(FAULTS)} of {len(rows)} items" in said
    assert "B0 (../secret.jpg: outside the images folder)" in said
    assert f"and {len(FAULTS) - 5} more" in said


@pytest.mark.parametrize("name", FAULTS)
def test_strict_refuses_an_item_whose_images_cannot_be_read(
    run: Path, tmp_path: Path, pictures: Path, name: str
) -> None:
    rows = [row(parent_asin="good", image_paths=f"{name};good.jpg"), row(image_paths=name)]
    items = write_csv(tmp_path / "items.csv", rows)
    with pytest.raises(UserError, match="1 of 2 items have no image that can be read: A1 .*--strict"):
        predict(run / "models/best", items, pictures, tmp_path / "out.csv", strict=True)
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_folder_of_images_is_an_error(run: Path, tmp_path: Path) -> None:
    items = write_csv(tmp_path / "items.csv", [row(image_paths="a.jpg")])
    with pytest.raises(UserError, match="none is not a folder; set --images"):
        predict(run / "models/best", items, tmp_path / "none", tmp_path / "out.csv")
    predict(run / "models/best", write_csv(tmp_path / "items.csv", [row()]), tmp_path / "none", tmp_path / "out.csv")


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


def intervals(path: Path) -> dict[str, tuple[float, float, float]]:
    """Return low, score and high of each item."""
    with path.open(newline="") as file:
        return {
            line["item_id"]: (float(line["low"]), float(line["score"]), float(line["high"]))
            for line in csv.DictReader(file)
        }


COUNTED = (*INPUT_COLUMNS, "rating_number")


def with_interval(run: Path, to: Path, interval: dict[str, Any] | None) -> Path:
    """Copy the best model to `to`, with another interval or without one, and return `to`."""
    shutil.copytree(run / "models/best", to)
    content = json.loads((to / "config.json").read_text()) | {"interval": interval}
    (to / "config.json").write_text(json.dumps(content))
    return to


def test_an_interval_is_for_the_items_rating_count(run: Path, tmp_path: Path) -> None:
    """The ratings of the small catalogue do not scatter, so the model gets an interval of ratings that do."""
    model = with_interval(run, tmp_path / "model", INTERVAL)
    cells = {"few": "2", "many": "3000", "printed": " 3000.0 ", "empty": "", "zero": "0", "absent": "nan"}
    rows = [row(parent_asin=name) | {"rating_number": cell} for name, cell in cells.items()]
    items, out = write_csv(tmp_path / "items.csv", rows, COUNTED), tmp_path / "out.csv"
    predict(model, items, tmp_path, out, interval=0.9)
    found = intervals(out)
    assert out.read_text().splitlines()[0] == "item_id,score,params,flops,low,high"
    assert all(1 <= low <= score <= high <= 5 for low, score, high in found.values())
    assert found["many"] == found["printed"]
    assert found["few"][2] - found["few"][0] > found["empty"][2] - found["empty"][0]
    assert found["empty"][2] - found["empty"][0] > found["many"][2] - found["many"][0]
    assert found["empty"] == found["zero"] == found["absent"]

    without = write_csv(tmp_path / "without.csv", rows)
    predict(model, without, tmp_path, out, interval=0.9)
    assert set(intervals(out).values()) == {found["empty"]}, "no column: the median of the training items"
    predict(model, without, tmp_path, out, interval=0.9, ratings=INTERVAL["ratings"])
    assert set(intervals(out).values()) == {found["empty"]}
    predict(model, items, tmp_path, out, interval=0.9, ratings=2)
    assert set(intervals(out).values()) == {found["few"]}, "--ratings is instead of the column"
    predict(model, items, tmp_path, out, interval=0.5)
    assert intervals(out)["few"][0] > found["few"][0]
    predict(model, items, tmp_path, out, image_faults=True, interval=0.9)
    assert out.read_text().splitlines()[0] == "item_id,score,params,flops,low,high,image_fault"


@pytest.mark.parametrize(
    "cell", ["many", "-3", "2.5", "1e3", "1,234", "99999999999999999", "9999999999999999", "\u0663"]
)
def test_a_rating_count_that_is_no_whole_number_is_refused(run: Path, tmp_path: Path, cell: str) -> None:
    rows = [row() | {"rating_number": "1"}, row(parent_asin="A2") | {"rating_number": cell}]
    items, out = write_csv(tmp_path / "items.csv", rows, COUNTED), tmp_path / "out.csv"
    with pytest.raises(UserError, match=r"rating_number as a whole number, .* line 3 \(not_count "):
        predict(run / "models/best", items, tmp_path, out, interval=0.9)
    assert not out.exists()
    predict(run / "models/best", items, tmp_path, out)  # the column is not read
    predict(run / "models/best", items, tmp_path, out, interval=0.9, ratings=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"interval": value}, f"--interval is {value:g}; give a fraction from 0.5 to 0.99") for value in (0, 1, 90)),
        ({"interval": float("nan")}, "--interval is nan; give a fraction"),
        ({"ratings": 3}, "--ratings is 3 but there is no --interval"),
        *(({"interval": 0.9, "ratings": value}, f"--ratings is {value}; give a whole") for value in (0, -1, 2**70)),
    ],
)
def test_options_out_of_range_are_refused(run: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    items = write_csv(tmp_path / "items.csv", [row()])
    with pytest.raises(UserError, match=message):
        predict(run / "models/best", items, tmp_path, tmp_path / "out.csv", **options)


def test_a_model_without_an_interval_says_so(run: Path, tmp_path: Path) -> None:
    model = with_interval(run, tmp_path / "old", None)
    items, out = write_csv(tmp_path / "items.csv", [row()]), tmp_path / "out.csv"
    with pytest.raises(UserError, match=r"old has no interval, .*; train again with more items, or predict without"):
        predict(model, items, tmp_path, out, interval=0.9)
    assert not out.exists()
    predict(model, items, tmp_path, out)
