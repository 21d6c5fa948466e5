"""Stage decontaminate: exclude the items that repeat an item of validation or test.

Input: ``data/sample/`` and ``data/images/`` of all categories. Output: ``data/exclusions/<category>/`` with one file
per part of the sample that lists its excluded items, ``strata.csv`` and ``report.json``. Guarantees: no training item
that is kept repeats a validation or test item, and no validation item that is kept repeats a test item, in any
category; test items are never excluded. Since a larger fraction has the same validation and test items, it excludes the
same items and those of its new bands, which alone are searched. With a category more or less all parts are searched,
but only pictures that were not compared before are compared.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep import strata
from prep.core import files, writers
from prep.core.cluster import DaskPool, dask_pool
from prep.core.params import Params, narrow
from prep.core.parts import TEST, TRAIN, VALIDATION, sample_parts
from prep.core.reports import Funnel, earlier_reports
from prep.core.tables.exclusions import EXCLUSIONS
from shards.near_duplicates import Part, describe, near_duplicates

READS = ("source.categories", "decontaminate", "dask")
_IdsOf = Callable[[Part], pa.ChunkedArray]
_LATER = {TRAIN: (VALIDATION, TEST), VALIDATION: (TEST,)}  # an item is excluded if it repeats one of these splits


def decontaminate(params: Params, data: Path = Path("data")) -> None:
    """Write ``data/exclusions``.

    Raises:
        UserError: a category has no sample.
    """
    params = narrow(params, READS)
    data = data.absolute()
    parts = all_parts(params.source.categories, data)
    with files.atomic_folder(data / "exclusions") as out, dask_pool(params.dask, out) as pool:
        work = out / "work"
        work.mkdir()
        for part, exclusions in find_exclusions(parts, params.decontaminate.reasons, work, pool):
            writers.write_table(out / part.category / part.sample.name, exclusions)
        shutil.rmtree(work)
        for category in params.source.categories:
            _write_report(category, data, out / category)


def all_parts(categories: Sequence[str], data: Path) -> list[Part]:
    """Return the parts of the sample of all categories.

    Raises:
        UserError: a category has no sample.
    """
    return [Part(path, data / "images" / c / path.name) for c in categories for path in sample_parts(data, c)]


def find_exclusions(
    parts: Sequence[Part], reasons: Sequence[str], work: Path, pool: DaskPool
) -> Iterator[tuple[Part, pa.Table]]:
    """Yield each part and its exclusions, a table of schema EXCLUSIONS.

    Args:
        parts: the parts of all categories.
        reasons: ``decontaminate.reasons``.
        work: a folder for temporary files.
        pool: runs the comparisons.
    """
    described = pool.map(describe, [(part, work) for part in parts if reasons], "decontaminate, descriptors: parts")
    # sorted, so that the choice among equal ones does not depend on the order of the categories
    described.sort(key=lambda each: (each.part.split, each.part.category, each.part.sample.name))
    calls = [
        (one, others, reason, work)
        for reason in reasons
        for split, later in _LATER.items()
        if (others := tuple(each for each in described if each.part.split in later))
        for one in described
        if one.part.split == split
    ]
    ids_of: _IdsOf = cache(lambda part: pq.read_table(part.sample, columns=["parent_asin"])["parent_asin"])
    matches: dict[Part, list[pa.Table]] = {part: [] for part in parts}
    for (one, others, reason, _), found in zip(
        calls, pool.imap(near_duplicates, calls, "decontaminate: comparisons"), strict=True
    ):
        matches[one.part] += _named(one.part, [each.part for each in others], reason, found, ids_of)
    for part in parts:
        yield part, _one_per_row(matches[part])


def _named(one: Part, others: Sequence[Part], reason: str, found: pa.Table, ids_of: _IdsOf) -> Iterator[pa.Table]:
    """Yield the exclusions of matches with each of the other parts, and their row numbers."""
    for number in pc.unique(found["part"]).to_pylist():
        other, some = others[number], found.filter(pc.equal(found["part"], number))
        ids, theirs = ids_of(one).take(some["row"]), ids_of(other).take(some["other"])
        names = [pa.repeat(value, len(ids)) for value in (reason, other.split, other.category)]
        rows = pa.table([ids, *names, theirs, some["difference"]], schema=EXCLUSIONS)
        yield rows.append_column("row", some["row"])


def _one_per_row(matches: list[pa.Table]) -> pa.Table:
    """Return one exclusion per item: for the first reason, of the most similar picture, the first id of several."""
    if not matches:
        return EXCLUSIONS.empty_table()
    table = pa.concat_tables(matches)
    order = ["row", "reason", "difference", "other_split", "other_category", "other_asin"]
    first = table.select(order).to_pandas().sort_values(order).drop_duplicates("row")
    return table.take(pa.array(first.index)).select(EXCLUSIONS.names).combine_chunks()


def _write_report(category: str, data: Path, out: Path) -> None:
    """Write ``strata.csv``, the sampled and the excluded items of each stratum, and ``report.json`` of a category."""
    frames, reasons = [], Counter[str]()
    for part in sample_parts(data, category):
        exclusions = pq.read_table(out / part.name)
        reasons.update(exclusions["reason"].to_pylist())
        items = pq.read_table(part, columns=["parent_asin", "split", "average_rating", "rating_number"])
        stars, count_from = strata.names_of(
            strata.stratum_of(items["average_rating"].to_numpy(), items["rating_number"].to_numpy())
        )
        gone = pc.is_in(items["parent_asin"], value_set=exclusions["parent_asin"]).to_numpy()
        columns = {"split": items["split"].to_numpy(), "average_rating": stars, "rating_number_from": count_from}
        frames.append(pd.DataFrame(columns | {"excluded": gone}))
    items_by_stratum = pd.concat(frames).groupby(list(columns))["excluded"].agg(taken="size", excluded="sum")
    items_by_stratum.to_csv(out / "strata.csv", lineterminator="\n")
    report = {
        "stage": "decontaminate",
        "category": category,
        "before": earlier_reports(data / "images" / category),
        "tables": {"samples": Funnel.of(sum(map(len, frames)), reasons)},
    }
    writers.write_json(out / "report.json", report)
