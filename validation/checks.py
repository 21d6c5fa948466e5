"""Checks of each table, per category and across categories.

Input: the tables' folders. Output: verdicts. The tables that one is compared with may be absent, for example in a clone
that pulled a single table: the checks that need them are then skipped, and no gate is written (`validation.validate`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prep.core import files
from prep.core.buckets import bucket_files, bucket_names
from prep.core.keys import item_keys
from prep.core.params import Params
from prep.core.parts import NOT_TAKEN, REMOVED, TEST, VALIDATION, kept_rows, part_files
from prep.core.tables.exclusions import EXCLUSIONS
from prep.core.tables.images import IMAGES, OK
from prep.core.tables.items import JOINED
from prep.core.tables.predictions import PREDICTIONS
from prep.core.tables.raw import REJECTS
from prep.core.tables.sample import SAMPLE
from validation import columns, exclusions, funnel, links, profile, proportions, weights
from validation.suites import Suite, suite
from validation.verdicts import Verdict, judge

ACCEPTED = "accepted.csv"  # the accepted profile, next to the data folder


class CategoryTables(NamedTuple):
    """The table folders of one category."""

    params: Params
    data: Path
    category: str

    def folder(self, table: str) -> Path:
        """Return the folder of this category in a table."""
        return self.data / table / self.category

    def has(self, table: str) -> bool:
        """Return whether this category's folder of a table exists."""
        return self.folder(table).is_dir()

    def suite(self, name: str) -> Suite:
        """Return the expectation suite of a table."""
        return suite(name, self.params, self.category)

    def counts(self, table: str) -> dict[str, funnel.Counts]:
        """Return the row counts in a table's ``report.json``, by name."""
        return funnel.counts(self.folder(table) / "report.json")

    def rows_out(self, table: str, name: str) -> int | None:
        """Return the rows that the stage of a table wrote according to its report; None if the table is absent."""
        if not self.has(table):
            return None
        counts = self.counts(table)
        return counts[name].rows_out if name in counts else 0


def _count_rows(paths: Iterable[Path]) -> int:
    return sum(map(columns.rows_of, paths))


def _check_files(table: str, expected: Iterable[str], paths: Iterable[Path]) -> Verdict:
    """Check that exactly the expected files exist; a missing file would otherwise look like one without rows."""
    wanted, found = set(expected), {path.name for path in paths}
    wrong = [f"{name} ({'missing' if name in wanted else 'unknown'})" for name in sorted(wanted ^ found)]
    return judge(table, "exactly the files that the stage writes", len(wanted), wrong)


def _check_raw(tables: CategoryTables) -> list[Verdict]:
    folder, counts = tables.folder("raw"), tables.counts("raw")
    verdicts = []
    for name in ("items", "reviews"):
        paths = bucket_files(folder, name)
        verdicts.append(_check_files(name, bucket_names(name, tables.params.download.buckets), paths))
        verdicts += columns.check_columns(name, tables.suite(name), paths)
        verdicts += funnel.check_row_counts(counts, name, _count_rows(paths), None)
    rejects = folder / "rejects.parquet"
    verdicts += columns.check_columns("rejects", tables.suite("rejects"), [rejects])
    if not verdicts[-1].passed:
        return verdicts
    reasons = Counter(columns.read_columns([rejects], ["reason"], REJECTS)["reason"].to_pylist())
    dropped = sum((Counter(own.dropped) for own in counts.values()), Counter[str]())
    dropped.pop(REMOVED, None)  # no list names these lines
    return [*verdicts, funnel.reasons("rejects", dropped, reasons)]


def _check_items(tables: CategoryTables) -> list[Verdict]:
    paths, counts = bucket_files(tables.folder("items"), "items"), tables.counts("items")
    own = columns.check_columns("joined", tables.suite("joined"), paths)
    verdicts = [_check_files("joined", bucket_names("items", tables.params.download.buckets), paths), *own]
    if not own[0].passed:
        return verdicts
    reviewed = pc.sum(columns.read_columns(paths, ["review_count"], JOINED)["review_count"]).as_py() or 0
    verdicts += funnel.check_row_counts(
        counts, "items", _count_rows(paths), tables.rows_out("raw", "items"), "data/raw"
    )
    return verdicts + funnel.check_row_counts(
        counts, "reviews", reviewed, tables.rows_out("raw", "reviews"), "data/raw"
    )


def _check_groups(tables: CategoryTables) -> list[Verdict]:
    paths = bucket_files(tables.folder("groups"), "groups")
    own = columns.check_columns("groups", tables.suite("groups"), paths)
    verdicts = [_check_files("groups", bucket_names("groups", tables.params.download.buckets), paths), *own]
    if not own[0].passed:
        return verdicts
    if not tables.has("items"):
        return verdicts
    items = columns.read_columns(bucket_files(tables.folder("items"), "items"), ["parent_asin"], JOINED)["parent_asin"]
    return [
        *verdicts,
        links.same_items("groups", "data/items", items, links.read_groups(paths)["parent_asin"]),
    ]


def _check_all_groups(params: Params, data: Path) -> list[Verdict]:
    paths = [path for c in params.source.categories for path in bucket_files(data / "groups" / c, "groups")]
    rows = [CategoryTables(params, data, category).rows_out("items", "items") for category in params.source.categories]
    upstream = None if None in rows else sum(filter(None, rows))
    counts = funnel.counts(data / "groups" / "report.json")
    return [
        *funnel.check_row_counts(counts, "groups", _count_rows(paths), upstream, "data/items"),
        links.group_sizes(links.read_groups(paths)),
    ]


def _check_sample(tables: CategoryTables) -> list[Verdict]:
    params, report = tables.params.sample, files.read_json(tables.folder("sample") / "report.json")
    paths = part_files(tables.folder("sample"))
    own = columns.check_columns("sample", tables.suite("sample"), paths)
    verdicts = [_check_files("sample", (f"{part}.parquet" for part in report["rows"]), paths), *own]
    if not own[0].passed:
        return verdicts
    samples = columns.read_columns(paths, ["parent_asin", "group"], SAMPLE)
    counts = tables.counts("sample")
    passed = counts["items"].rows_out + sum(counts["items"].dropped.get(reason, 0) for reason in NOT_TAKEN)
    if tables.has("groups"):
        groups = links.read_groups(bucket_files(tables.folder("groups"), "groups"))
        verdicts.append(links.groups_of(samples, groups))
    return [
        *verdicts,
        links.check_parts(paths),
        links.band_limit(paths, round(params.fraction * params.bands), params.min_per_category),
        *funnel.check_row_counts(counts, "items", _count_rows(paths), tables.rows_out("items", "items"), "data/items"),
        *proportions.check_strata(
            tables.folder("sample") / proportions.STRATA_FILE, paths, params.fraction, params.bands, passed
        ),
        *profile.check_mode_fraction("sample", paths, tables.params.validation.mode_fraction),
    ]


def _check_all_samples(params: Params, data: Path) -> list[Verdict]:
    paths = [path for category in params.source.categories for path in part_files(data / "sample" / category)]
    samples = columns.read_columns(paths, ["parent_asin", "group", "split"], SAMPLE)
    return [links.one_split(samples, "group"), links.one_split(samples, "parent_asin")]


def _check_images(tables: CategoryTables) -> list[Verdict]:
    paths = part_files(tables.folder("images"))
    verdicts = columns.check_columns("images", tables.suite("images"), paths)
    if not verdicts[0].passed:
        return verdicts
    counts, upstream = tables.counts("images"), tables.rows_out("sample", "items")
    outcomes = Counter(columns.read_columns(paths, ["outcome"], IMAGES)["outcome"].to_pylist())
    fetched = outcomes.pop(OK, 0)
    dropped = counts["images"].dropped if "images" in counts else {}
    if tables.has("sample"):
        verdicts.append(links.aligned(part_files(tables.folder("sample")), paths))
    return [
        *verdicts,
        links.image_bytes(paths),
        *funnel.check_row_counts(counts, "images", fetched, upstream, "data/sample"),
        funnel.reasons("images", dropped, outcomes),
    ]


def _check_exclusions(tables: CategoryTables) -> list[Verdict]:
    paths = part_files(tables.folder("exclusions"))
    verdicts = columns.check_columns("exclusions", tables.suite("exclusions"), paths)
    if not verdicts[0].passed:
        return verdicts
    reasons = Counter(columns.read_columns(paths, ["reason"], EXCLUSIONS)["reason"].to_pylist())
    counts, upstream = tables.counts("exclusions"), tables.rows_out("sample", "items")
    verdicts.append(funnel.reasons("exclusions", counts["samples"].dropped if "samples" in counts else {}, reasons))
    if not tables.has("sample"):
        return verdicts
    parts = part_files(tables.folder("sample"))
    kept = _count_rows(parts) - sum(reasons.values())
    return [
        *verdicts,
        _check_files("exclusions", (path.name for path in parts), paths),
        exclusions.of_the_sample(parts, paths),
        *funnel.check_row_counts(counts, "samples", kept, upstream, "data/sample"),
        *exclusions.fractions(parts, paths, tables.params.validation.near_duplicate_fraction),
    ]


def _check_all_exclusions(params: Params, data: Path) -> list[Verdict]:
    return [exclusions.none_left(params, data)] if _all_have(("sample", "images"), params, data) else []


def _check_shards(tables: CategoryTables) -> list[Verdict]:
    from validation import tars  # noqa: PLC0415 -- it imports webdataset and thus torch, which no other gate needs

    folder = tables.folder("shards")
    shards = tars.shards_of(folder)
    verdicts, reads = tars.check_content(folder, tables.params.model.text.name)
    if not tars.are_readable(verdicts):
        return verdicts
    indexes = [folder / shard.index for shard in shards]
    if tables.has("sample") and tables.has("exclusions"):
        verdicts += tars.check_items(reads, part_files(tables.folder("sample")))
    return [
        *verdicts,
        *columns.check_columns("index", tables.suite("index"), indexes),
        tars.check_reader(folder, shards),
        *funnel.check_row_counts(
            tables.counts("shards"),
            "samples",
            _count_rows(indexes),
            tables.rows_out("exclusions", "samples"),
            "data/exclusions",
        ),
    ]


def _check_all_predictions(params: Params, data: Path) -> list[Verdict]:
    paths = sorted((data / "predictions").glob("*.parquet"))
    verdicts = columns.check_columns("predictions", suite("predictions", params), paths)
    if not verdicts[0].passed:
        return verdicts
    counts = funnel.counts(data / "predictions" / "report.json")
    if not _all_have(("sample", "exclusions"), params, data):
        return [*verdicts, *funnel.check_row_counts(counts, "predictions", _count_rows(paths), None)]
    names = ["split", "category", "parent_asin", "average_rating"]
    measured = [f"{split}.parquet" for split in (TEST, VALIDATION)]
    parts = [
        path for c in params.source.categories for path in part_files(data / "sample" / c) if path.name in measured
    ]
    samples = pa.concat_tables([kept_rows(part, names) for part in parts])
    predictions = columns.read_columns(paths, names, PREDICTIONS)
    keys = item_keys(predictions["parent_asin"].to_pylist())
    place = predictions.schema.get_field_index("parent_asin")
    predictions = predictions.set_column(place, PREDICTIONS.field("parent_asin"), keys)
    return [
        *verdicts,
        *funnel.check_row_counts(
            counts, "predictions", predictions.num_rows, samples.num_rows, "test and validation that are not excluded"
        ),
        links.same_items("predictions", "data/sample", _whole_key(samples), _whole_key(predictions)),
        links.same_labels(samples, predictions),
    ]


def _all_have(names: Sequence[str], params: Params, data: Path) -> bool:
    categories = [CategoryTables(params, data, category) for category in params.source.categories]
    return all(tables.has(name) for tables in categories for name in names)


def _whole_key(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["split"], table["category"], table["parent_asin"], "/")


def _check_all_weights(params: Params, data: Path) -> list[Verdict]:
    parts = [part for c in params.source.categories for part in part_files(data / "sample" / c)]
    parts = parts if _all_have(("sample", "exclusions"), params, data) else []
    return weights.check_weights_file(data / "weights.json", parts, params.weights)


def _check_all_profiles(params: Params, data: Path) -> list[Verdict]:
    found = profiles(data)
    accepted = profile.read_profile(data.parent / ACCEPTED)
    return profile.drift(profile.compare_profiles(found, accepted), params.validation.drift)


def profiles(data: Path) -> pd.DataFrame:
    """Return the profiles of all tables that have one, in the order of `profile.PROFILED_COLUMNS`.

    Raises:
        UserError: a profile file is not valid.
    """
    found = [profile.read_profile(data / "profiles" / f"{table}.csv") for table in profile.PROFILED_COLUMNS]
    return pd.concat([each for each in found if len(each)] or found)


def _no_checks(_: Params, __: Path) -> list[Verdict]:
    """Return no verdicts: the table has no checks across categories."""
    return []


READS = ("source.kind", "source.categories")  # parameters that every gate reads


class Gate(NamedTuple):
    """How a table is checked."""

    stage: str  # the stage that writes the table
    reads: tuple[str, ...]  # parameters that its checks read in addition to `READS`
    compared_with: tuple[str, ...]  # upstream tables that it is compared with
    check_category: Callable[[CategoryTables], list[Verdict]] | None
    check_all: Callable[[Params, Path], list[Verdict]] = _no_checks
    path: str = ""  # path of the table below the data folder; by default its name
    hash_files: bool = True  # whether the gate lists the files' hashes, so that new content reruns downstream stages


_OF_SAMPLE = (
    *("sample.require", "sample.fraction", "sample.bands", "sample.min_per_category"),
    *("validation.mode_fraction", "validation.long_text_fraction"),
)
_OF_EXCLUSIONS = ("decontaminate", "validation.near_duplicate_fraction", "dask")

GATES = {
    "raw": Gate("download", ("download",), (), _check_raw),
    "items": Gate("join", ("download", "validation.null_fraction"), ("raw",), _check_items),
    "groups": Gate("groups", ("download.buckets",), ("items",), _check_groups, _check_all_groups),
    "sample": Gate("sample", _OF_SAMPLE, ("items", "groups"), _check_sample, _check_all_samples),
    "images": Gate("fetch", (), ("sample",), _check_images),
    "exclusions": Gate("decontaminate", _OF_EXCLUSIONS, ("sample", "images"), _check_exclusions, _check_all_exclusions),
    "shards": Gate("shard", ("text.max_tokens", "model.text.name"), ("sample", "exclusions"), _check_shards),
    "weights": Gate("weights", ("weights",), ("sample", "exclusions"), None, _check_all_weights, "weights.json"),
    "profiles": Gate("validate_images", ("validation.drift",), (), None, _check_all_profiles, hash_files=False),
    "predictions": Gate("evaluate", (), ("sample", "exclusions"), None, _check_all_predictions),
}
