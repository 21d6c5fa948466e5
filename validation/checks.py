"""What is checked of each table: of a category alone, and across categories.

In: the folders of the tables. Out: verdicts. A table that another is compared with may be absent, in a clone that has
pulled one table alone: what needs it is then left out, and no gate is written (see `validation.validate`).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prep.core import files
from prep.core.buckets import bucket_files, bucket_names
from prep.core.params import Params
from prep.core.parts import NOT_TAKEN, TEST, VALIDATION, part_files
from prep.core.tables.images import IMAGES, OK
from prep.core.tables.items import JOINED
from prep.core.tables.predictions import PREDICTIONS
from prep.core.tables.raw import REJECTS
from prep.core.tables.sample import SAMPLE
from validation import columns, funnel, links, near_duplicates, profile, proportions, weights
from validation.suites import Suite, suite
from validation.verdicts import Verdict, judge

ACCEPTED = "accepted.csv"  # the profile that was accepted last, beside the folder of the tables


class Place(NamedTuple):
    """One category of the data."""

    params: Params
    data: Path
    category: str

    def folder(self, table: str) -> Path:
        """Return the category's folder of a table."""
        return self.data / table / self.category

    def has(self, table: str) -> bool:
        """Tell whether the category's folder of another table is there to be compared with."""
        return self.folder(table).is_dir()

    def suite(self, name: str) -> Suite:
        """Return the suite of a table's files."""
        return suite(name, self.params, self.category)

    def counts(self, table: str) -> dict[str, funnel.Counts]:
        """Return the funnels of the report of the stage that made a table."""
        return funnel.counts(self.folder(table) / "report.json")

    def rows_out(self, table: str, name: str) -> int | None:
        """Return how many rows came out of the stage that made a table; None where it is not there."""
        if not self.has(table):
            return None
        counts = self.counts(table)
        return counts[name].rows_out if name in counts else 0


def _rows(paths: Iterable[Path]) -> int:
    return sum(map(columns.rows_of, paths))


def _names(table: str, expected: Iterable[str], paths: Iterable[Path]) -> Verdict:
    """Check that a table has its files, so that one that is missing does not pass as one without rows."""
    wanted, found = set(expected), {path.name for path in paths}
    wrong = [f"{name} ({'missing' if name in wanted else 'unknown'})" for name in sorted(wanted ^ found)]
    return judge(table, "the files of the stage", len(wanted), wrong)


def _raw(place: Place) -> list[Verdict]:
    folder, counts = place.folder("raw"), place.counts("raw")
    verdicts = []
    for name in ("items", "reviews"):
        paths = bucket_files(folder, name)
        verdicts.append(_names(name, bucket_names(name, place.params.download.buckets), paths))
        verdicts += columns.check(name, place.suite(name), paths)
        verdicts += funnel.check(counts, name, _rows(paths), None)
    rejects = folder / "rejects.parquet"
    verdicts += columns.check("rejects", place.suite("rejects"), [rejects])
    if not verdicts[-1].passed:
        return verdicts
    reasons = Counter(columns.read([rejects], ["reason"], REJECTS)["reason"].to_pylist())
    dropped = sum((Counter(own.dropped) for own in counts.values()), Counter[str]())
    return [*verdicts, funnel.reasons("rejects", dropped, reasons)]


def _items(place: Place) -> list[Verdict]:
    paths, counts = bucket_files(place.folder("items"), "items"), place.counts("items")
    own = columns.check("joined", place.suite("joined"), paths)
    verdicts = [_names("joined", bucket_names("items", place.params.download.buckets), paths), *own]
    if not own[0].passed:
        return verdicts
    reviewed = pc.sum(columns.read(paths, ["review_count"], JOINED)["review_count"]).as_py() or 0
    verdicts += funnel.check(counts, "items", _rows(paths), place.rows_out("raw", "items"), "data/raw")
    return verdicts + funnel.check(counts, "reviews", reviewed, place.rows_out("raw", "reviews"), "data/raw")


def _groups(place: Place) -> list[Verdict]:
    paths = bucket_files(place.folder("groups"), "groups")
    own = columns.check("groups", place.suite("groups"), paths)
    verdicts = [_names("groups", bucket_names("groups", place.params.download.buckets), paths), *own]
    if not own[0].passed:
        return verdicts
    if not place.has("items"):
        return verdicts
    items = columns.read(bucket_files(place.folder("items"), "items"), ["parent_asin"], JOINED)["parent_asin"]
    return [
        *verdicts,
        links.same_items("groups", "data/items", items, links.read_groups(paths)["parent_asin"]),
    ]


def _groups_all(params: Params, data: Path) -> list[Verdict]:
    paths = [path for c in params.source.categories for path in bucket_files(data / "groups" / c, "groups")]
    out = [Place(params, data, category).rows_out("items", "items") for category in params.source.categories]
    before = None if None in out else sum(filter(None, out))
    counts = funnel.counts(data / "groups" / "report.json")
    return [
        *funnel.check(counts, "groups", _rows(paths), before, "data/items"),
        links.group_sizes(links.read_groups(paths)),
    ]


def _sample(place: Place) -> list[Verdict]:
    params, report = place.params.sample, files.read_json(place.folder("sample") / "report.json")
    paths = part_files(place.folder("sample"))
    own = columns.check("sample", place.suite("sample"), paths)
    verdicts = [_names("sample", (f"{part}.parquet" for part in report["rows"]), paths), *own]
    if not own[0].passed:
        return verdicts
    samples = columns.read(paths, ["parent_asin", "group"], SAMPLE)
    counts = place.counts("sample")
    passed = counts["items"].rows_out + sum(counts["items"].dropped.get(reason, 0) for reason in NOT_TAKEN)
    if place.has("groups"):
        groups = links.read_groups(bucket_files(place.folder("groups"), "groups"))
        verdicts.append(links.groups_of(samples, groups))
    return [
        *verdicts,
        links.parts(paths),
        links.band_limit(paths, round(params.fraction * params.bands), params.min_per_category),
        *funnel.check(counts, "items", _rows(paths), place.rows_out("items", "items"), "data/items"),
        *proportions.check(place.folder("sample") / proportions.NAME, paths, params.fraction, params.bands, passed),
        *profile.spread("sample", paths, place.params.validation.same),
    ]


def _sample_all(params: Params, data: Path) -> list[Verdict]:
    paths = [path for category in params.source.categories for path in part_files(data / "sample" / category)]
    samples = columns.read(paths, ["parent_asin", "group", "split"], SAMPLE)
    return [links.one_split(samples, "group"), links.one_split(samples, "parent_asin")]


def _images(place: Place) -> list[Verdict]:
    paths = part_files(place.folder("images"))
    verdicts = columns.check("images", place.suite("images"), paths)
    if not verdicts[0].passed:
        return verdicts
    counts, before = place.counts("images"), place.rows_out("sample", "items")
    outcomes = Counter(columns.read(paths, ["outcome"], IMAGES)["outcome"].to_pylist())
    had = outcomes.pop(OK, 0)
    dropped = counts["images"].dropped if "images" in counts else {}
    if place.has("sample"):
        verdicts.append(links.aligned(part_files(place.folder("sample")), paths))
    return [
        *verdicts,
        links.image_bytes(paths),
        *funnel.check(counts, "images", had, before, "data/sample"),
        funnel.reasons("images", dropped, outcomes),
    ]


def _images_all(params: Params, data: Path) -> list[Verdict]:
    found, measured = near_duplicates.find(data, params.source.categories)
    with files.aside(data / "twins.csv") as partial:  # written before it is judged, for whom it stops
        found.to_csv(partial, index=False, lineterminator="\n")
    return [near_duplicates.verdict(found, measured, params.validation.twins)]


def _shards(place: Place) -> list[Verdict]:
    from validation import tars  # noqa: PLC0415 -- it imports webdataset and thus torch, which no other gate needs

    folder = place.folder("shards")
    shards = tars.shards_of(folder)
    verdicts = tars.check_content(folder)
    if not tars.are_readable(verdicts):
        return verdicts
    indexes = [folder / shard.index for shard in shards]
    if place.has("sample"):
        verdicts.append(tars.check_items(folder, shards, part_files(place.folder("sample"))))
    return [
        *verdicts,
        *columns.check("index", place.suite("index"), indexes),
        tars.check_reader(folder, shards),
        *funnel.check(
            place.counts("shards"), "samples", _rows(indexes), place.rows_out("sample", "items"), "data/sample"
        ),
    ]


def _predictions_all(params: Params, data: Path) -> list[Verdict]:
    paths = sorted((data / "predictions").glob("*.parquet"))
    verdicts = columns.check("predictions", suite("predictions", params), paths)
    if not verdicts[0].passed:
        return verdicts
    counts = funnel.counts(data / "predictions" / "report.json")
    if not all(Place(params, data, category).has("sample") for category in params.source.categories):
        return [*verdicts, *funnel.check(counts, "predictions", _rows(paths), None)]
    names = ["split", "category", "parent_asin", "average_rating"]
    measured = [f"{split}.parquet" for split in (TEST, VALIDATION)]
    parts = [
        path for c in params.source.categories for path in part_files(data / "sample" / c) if path.name in measured
    ]
    samples, predictions = columns.read(parts, names, SAMPLE), columns.read(paths, names, PREDICTIONS)
    return [
        *verdicts,
        *funnel.check(
            counts, "predictions", predictions.num_rows, samples.num_rows, "data/sample, test and validation"
        ),
        links.same_items("predictions", "data/sample", _whole_key(samples), _whole_key(predictions)),
        links.same_labels(samples, predictions),
    ]


def _whole_key(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["split"], table["category"], table["parent_asin"], "/")


def _weights_all(params: Params, data: Path) -> list[Verdict]:
    parts = [part for c in params.source.categories for part in part_files(data / "sample" / c)]
    return weights.check(data / "weights.json", parts, params.weights)


def _profiles_all(params: Params, data: Path) -> list[Verdict]:
    found = profiles(data)
    accepted = profile.read(data.parent / ACCEPTED)
    return profile.drift(profile.moves(found, accepted), params.validation.drift)


def profiles(data: Path) -> pd.DataFrame:
    """Return the profiles of all tables there are, in the order of `profile.COLUMNS`.

    Raises:
        UserError: one is no profile.
    """
    found = [profile.read(data / "profiles" / f"{table}.csv") for table in profile.COLUMNS]
    return pd.concat([part for part in found if len(part)] or found)


def _nothing(_: Params, __: Path) -> list[Verdict]:
    """Check nothing across categories."""
    return []


READS = ("source.kind", "source.categories")  # of every gate


class Gate(NamedTuple):
    """How a table is checked."""

    stage: str  # makes the table
    reads: tuple[str, ...]  # the parameters that its checks read, beside `READS`
    beside: tuple[str, ...]  # the tables it is compared with
    of_category: Callable[[Place], list[Verdict]] | None
    of_all: Callable[[Params, Path], list[Verdict]] = _nothing
    held: str = ""  # where the table is, when not in the folder of its name
    hashed: bool = True  # whether another content of the table makes what is behind the gate anew


_OF_SAMPLE = (
    *("sample.require", "sample.fraction", "sample.bands", "sample.min_per_category"),
    *("validation.same", "validation.long"),
)

GATES = {
    "raw": Gate("download", ("download",), (), _raw),
    "items": Gate("join", ("download", "validation.absent"), ("raw",), _items),
    "groups": Gate("groups", ("download.buckets",), ("items",), _groups, _groups_all),
    "sample": Gate("sample", _OF_SAMPLE, ("items", "groups"), _sample, _sample_all),
    "images": Gate("fetch", ("validation.twins",), ("sample",), _images, _images_all),
    "shards": Gate("shard", ("text.max_tokens",), ("sample",), _shards),
    "weights": Gate("weights", ("weights",), ("sample",), None, _weights_all, "weights.json"),
    "profiles": Gate("validate_images", ("validation.drift",), (), None, _profiles_all, hashed=False),
    "predictions": Gate("evaluate", (), ("sample",), None, _predictions_all),
}
