"""Parameters and predictions for a small data/ folder of two categories, and helpers to corrupt its tables.

The rows are films of the corpus if it exists, otherwise synthetic.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep.core import files, params, writers
from prep.core.reports import Funnel
from prep.core.tables.predictions import PREDICT_INPUT, PREDICTIONS

ROOT = Path(__file__).parents[2]
FILMS = Path(os.environ.get("EFFIMINI_CORPUS", ROOT / "../shared/corpus")).resolve() / "movies"
ONE, OTHER = ("Animation", "Other") if FILMS.is_dir() else ("Demo_One", "Demo_Two")
CATEGORIES = (ONE, OTHER)


def small_params() -> params.Params:
    read = params.load_params(ROOT / "params.yaml")
    replace = dataclasses.replace
    return replace(
        read,
        source=replace(
            read.source,
            kind="mirror" if FILMS.is_dir() else "demo",
            location=str(FILMS),  # not read: `params_with_source` uses a copy with bad lines
            categories=CATEGORIES,
            demo=params.DemoParams(items=60, seed=3),
            reviews=True,
        ),
        download=replace(read.download, buckets=2, max_bad_fraction=0.05),
        sample=replace(read.sample, fraction=0.5, bands=4, validation=0.2, test=0.2, min_per_category=0),
        images=replace(read.images, resolution=32, max_bad_fraction=0.5),
        shards=params.ShardsParams(samples_per_shard=10),
        validation=replace(read.validation, near_duplicate_fraction=params.Limits(warn_above=0.0, fail_above=0.5)),
        dask=params.DaskParams(scheduler="synchronous", workers=1),
    )


def params_with_source(folder: Path) -> params.Params:
    """Return the parameters with a source in `folder`: the films of two categories and a few invalid lines."""
    small = small_params()
    if small.source.kind == "demo":
        return small
    for kind, prefix in (("meta_categories", "meta_"), ("review_categories", "")):
        (folder / "raw" / kind).mkdir(parents=True)
        for category in CATEGORIES:
            name = f"raw/{kind}/{prefix}{category}.jsonl"
            (folder / name).write_bytes(b'{"no": "film"}\n<html>\n' + (FILMS / name).read_bytes())
    (folder / "images").symlink_to(FILMS / "images")
    return dataclasses.replace(small, source=dataclasses.replace(small.source, location=str(folder)))


def predictions(data: Path) -> None:
    """Write predictions of 4 stars for every sample of validation and test."""
    with files.atomic_folder(data / "predictions") as out:
        total = 0
        for split in ("test", "validation"):
            parts = [pq.read_table(data / "sample" / c / f"{split}.parquet") for c in CATEGORIES]
            rows = pa.concat_tables(parts)
            columns = {name: rows[name] for name in ("parent_asin", "category", "split", "rating_number")}
            columns["average_rating"] = pc.cast(rows["average_rating"], pa.float32(), safe=False)
            columns["has_image"] = pa.array(np.zeros(rows.num_rows, bool))
            columns["prediction"] = pa.array(np.full(rows.num_rows, 4, "float32"))
            table = pa.table({name: columns[name] for name in PREDICTIONS.names}).cast(PREDICTIONS)
            writers.write_table(out / f"{split}.parquet", table)
            total += table.num_rows
        report = {"stage": "evaluate", "tables": {"predictions": Funnel.of(total, {})}}
        writers.write_json(out / "report.json", report)


def items_to_score(data: Path) -> None:
    """Write the prediction input of the items of a test split."""
    asins = pq.read_table(data / "sample" / ONE / "test.parquet")["parent_asin"]
    lines = [f"line {number}" for number in range(2, len(asins) + 2)]
    nothing = pa.nulls(len(asins), pa.string())
    pq.write_table(pa.table([lines, asins, nothing, nothing], PREDICT_INPUT), data / "input.parquet")


def exclude(data: Path, rows: int, part: str = "train-00", **values: object) -> None:
    """Exclude the first rows of a part of the sample, and count them in the report."""
    asins = pq.read_table(data / f"sample/{ONE}/{part}.parquet", columns=["parent_asin"])["parent_asin"].to_pylist()
    made = {"reason": "same_picture", "other_split": "test", "other_category": ONE, "other_asin": "B000000000"}
    path = data / f"exclusions/{ONE}/{part}.parquet"
    known = pq.read_table(path).to_pylist()
    added = [
        made | {"parent_asin": a, "difference": 1.0} | values
        for a in asins
        if a not in {r["parent_asin"] for r in known}
    ]
    write_loose(path, pa.Table.from_pylist(known + added[:rows], pq.read_schema(path)))
    report = data / f"exclusions/{ONE}/report.json"
    content = files.read_json(report)
    counts = content["tables"]["samples"]
    counts["rows_out"] -= len(added[:rows])
    counts["dropped"]["same_picture"] = counts["dropped"].get("same_picture", 0) + len(added[:rows])
    writers.write_json(report, content)


def edit(path: Path, change: Callable[[list[dict[str, object]]], object]) -> None:
    """Change the rows of a table in place, as a list of dictionaries; all columns become nullable."""
    arrow = path.suffix == ".arrow"
    table = pa.ipc.open_file(path).read_all() if arrow else pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    loose = pa.schema([field.with_nullable(True) for field in table.schema])
    write_loose(path, pa.Table.from_pylist(rows, loose))


def write_loose(path: Path, table: pa.Table) -> None:
    path.unlink(missing_ok=True)  # a shard is a hard link to a file in the store
    if path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path)


def copy(data: Path, to: Path) -> Path:
    """Copy a folder without links to the original."""
    shutil.copytree(data, to)
    return to
