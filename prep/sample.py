"""Sample: which items are trained and measured on, and in which split and band each stands.

In: ``data/items/<category>/`` and ``data/groups/<category>.parquet``. Out: ``data/sample/<category>/`` with a file
a part, ``train-00.parquet`` ... for the bands of train, ``validation.parquet``, ``test.parquet``, and
``report.json``. Guaranteed (promise 2): a part's bytes do not depend on the fraction; a larger fraction adds parts,
a smaller one removes them.
"""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep import cluster, files, strata
from prep.download import bucket_files
from prep.faults import Funnel, UserError
from prep.params import Params, Sample
from prep.tables import SAMPLE, TEXTS
from prep.text import clean, clean_details, clean_list

_SLIM = ["parent_asin", "group", "split", "average_rating", "rating_number"]


def sample(category: str, params: Params, data: Path = Path("data")) -> None:
    """Write ``data/sample/<category>``.

    Raises:
        UserError: no item of the category is left to train on.
    """
    groups = data / "groups" / f"{category}.parquet"
    buckets = bucket_files(data / "items" / category, "items")
    with files.folder(data / "sample" / category) as out:
        work = out / "work"
        usable = [(category, bucket, groups, work / bucket.name, params) for bucket in buckets]
        dropped = sum(cluster.run(_write_usable, usable, params.dask), Counter[str]())
        slim = pd.concat([pq.read_table(file, columns=_SLIM).to_pandas() for *_, file, _ in usable], ignore_index=True)
        placed = _place(slim, params.sample)
        taken = placed[placed["part"] != ""]
        if not (taken["split"] == strata.TRAIN).any():
            dropped += Counter(placed["dropped"])
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()) if reason)
            raise UserError(
                f"{category}: no item is left to train on ({reasons}); raise sample.fraction or "
                "sample.min_per_category, loosen sample.require, or take the category out of source.categories"
            )
        spread = [(file, taken, work / "parts") for *_, file, _ in usable]
        cluster.run(_spread, spread, params.dask)
        parts = sorted(taken["part"].unique())
        cluster.run(_gather, [(work / "parts" / part, out / f"{part}.parquet") for part in parts], params.dask)
        shutil.rmtree(work)
        rows_in = len(slim) + dropped.total()
        dropped += Counter(placed.loc[placed["part"] == "", "dropped"])
        report = {
            "stage": "sample",
            "category": category,
            "tables": {"items": Funnel.of(rows_in, dropped)},
            "rows": {part: int(count) for part, count in taken["part"].value_counts().sort_index().items()},
        }
        files.write_json(out / "report.json", report)


def part_files(folder: Path) -> list[Path]:
    """Return the part files of ``data/sample/<category>`` or ``data/images/<category>``, in order."""
    return sorted(folder.glob("*.parquet"))


def candidates(images: Iterable[dict[str, Any]], prefer: str) -> list[str]:
    """Return the image URLs to ask for, best first: the first of the preferred kind, then the first of the other.

    Source: reference, section 1 (first hi_res, else first large).
    """
    kinds = ("hi_res", "large") if prefer == "hi_res" else ("large", "hi_res")
    firsts = (next((image[kind] for image in images if image[kind]), None) for kind in kinds)
    return list(dict.fromkeys(filter(None, firsts)))


def _write_usable(category: str, bucket: Path, groups: Path, out: Path, params: Params) -> Counter[str]:
    """Write the cleaned rows of a bucket that pass the filter, and count those that do not."""
    rows, dropped = [], Counter[str]()
    group_of = pq.read_table(groups, columns=["parent_asin", "group"]).to_pandas().set_index("parent_asin")["group"]
    for item in pq.read_table(bucket).to_pylist():
        row = _row(item, params)
        if reason := _unusable(row, params.sample):
            dropped[reason] += 1
            continue
        row["category"] = category
        row["group"] = group_of[row["parent_asin"]]
        row["split"] = strata.split_of(row["group"], params.sample.salt, params.sample.validation, params.sample.test)
        rows.append(row)
    files.write_table(out, pa.Table.from_pylist(rows, SAMPLE))
    return dropped


def _row(item: dict[str, Any], params: Params) -> dict[str, Any]:
    return {
        "parent_asin": item["parent_asin"],
        "band": -1,
        "main_category": clean(item["main_category"]),
        "title": clean(item["title"]),
        "features": clean_list(item["features"], " | "),
        "description": clean_list(item["description"], " "),
        "store": clean(item["store"]),
        "details": clean_details(item["details"]),
        "average_rating": item["average_rating"],
        "rating_number": item["rating_number"],
        "review_count": item["review_count"],
        "image_urls": candidates(item["images"], params.images.prefer),
    }


def _unusable(row: dict[str, Any], rules: Sample) -> str:
    """Return why a row is dropped, or "" for a row that is kept, and fill in a count that may be absent."""
    present = {name: bool(row[name]) for name in TEXTS} | {
        "average_rating": row["average_rating"] is not None,
        "rating_number": row["rating_number"] is not None,
        "image": bool(row["image_urls"]),
    }
    for name in ("average_rating", *rules.require):  # without the label there is nothing to learn from
        if not present[name]:
            return f"no_{name}"
    if not 1 <= row["average_rating"] <= 5:
        return "rating_out_of_range"
    if sum(len(row[name]) for name in ("title", "features", "description")) < rules.min_chars:
        return "short_text"
    row["rating_number"] = row["rating_number"] or 0
    return ""


def _place(slim: pd.DataFrame, rules: Sample) -> pd.DataFrame:
    """Add to each usable item its band, and its part or why it has none."""
    slim = slim.assign(band=np.int16(-1), part="", dropped="")
    for split, rows in slim.groupby("split"):
        u = strata.positions(
            rows["group"].tolist(),
            rows["parent_asin"].tolist(),
            rows["average_rating"].to_numpy(),
            rows["rating_number"].to_numpy(),
            f"{rules.salt}/{split}",
        )
        if split == strata.TRAIN:
            band = np.floor(u * rules.bands).astype("int16")
            taken = band < strata.limit(band, rules.fraction, rules.bands, rules.min_per_category)
            slim.loc[rows.index, "band"] = band
            slim.loc[rows.index, "part"] = np.where(taken, [f"{split}-{number:02d}" for number in band], "")
            slim.loc[rows.index, "dropped"] = np.where(taken, "", "beyond_fraction")
        else:
            taken = u < rules.eval_fraction
            slim.loc[rows.index, "part"] = np.where(taken, split, "")
            slim.loc[rows.index, "dropped"] = np.where(taken, "", "held_out")
    return slim


def _spread(usable: Path, taken: pd.DataFrame, parts: Path) -> None:
    """Write the taken rows of one bucket into a file a part."""
    rows = pq.read_table(usable)
    places = taken.set_index("parent_asin").reindex(rows["parent_asin"].to_pylist())
    rows = rows.set_column(
        SAMPLE.get_field_index("band"),
        SAMPLE.field("band"),
        pa.array(places["band"].fillna(-1).astype("int16")),
    )
    part = places["part"].fillna("").to_numpy()
    for name in sorted(set(part) - {""}):
        files.write_table(parts / name / usable.name, rows.filter(pa.array(part == name)))


def _gather(buckets: Path, out: Path) -> None:
    """Write one part from what the buckets hold of it, ordered by parent_asin."""
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(buckets.iterdir())])
    files.write_table(out, rows.take(pc.sort_indices(rows, [("parent_asin", "ascending")])).cast(SAMPLE))
