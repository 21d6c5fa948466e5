"""Validate: the gate behind a table, which wrong data does not pass.

In: ``data/<table>/`` of all categories, and what it was made from. Out: ``data/gates/<table>/`` with
``<category>.json`` a category, which depends on that category alone, and ``all.json`` for what holds across
categories: what was checked, every expectation with its counts, and that it passed; for images ``data/twins.csv``
beside them, which lists the pictures that stand in two splits. Guaranteed: a table
with an expectation that fails leaves no gate behind, so that no stage behind it runs; the same data gives
the same bytes.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from prep import files
from prep.buckets import bucket_files, bucket_names
from prep.faults import UserError
from prep.params import Params
from prep.sample import NOT_TAKEN, part_files
from prep.strata import TEST, VALIDATION
from prep.tables import IMAGES, JOINED, OK, PREDICTIONS, REJECTS, SAMPLE
from validation import columns, funnel, links, proportions, twins
from validation.suites import Suite, suites
from validation.verdicts import Verdict, judge, require


class Place(NamedTuple):
    """One category of the data."""

    params: Params
    data: Path
    category: str

    def folder(self, table: str) -> Path:
        """Return the category's folder of a table."""
        return self.data / table / self.category

    def suite(self, name: str) -> Suite:
        """Return the suite of a table's files."""
        return suites(self.params, self.category)[name]

    def counts(self, table: str) -> dict[str, funnel.Counts]:
        """Return the funnels of the report of the stage that made a table."""
        return funnel.counts(self.folder(table) / "report.json")

    def rows_out(self, table: str, name: str) -> int:
        """Return how many rows came out of the stage that made a table."""
        counts = self.counts(table)
        return counts[name].rows_out if name in counts else 0


def validate(table: str, params: Params, data: Path = Path("data")) -> None:
    """Check a table and write ``data/gates/<table>``.

    Args:
        table: one of raw, items, groups, sample, images, shards, predictions.
        params: of the run; ``source.categories`` are checked.
        data: the folder of all tables.

    Raises:
        UserError: there is no such table, it is absent, or an expectation fails.
    """
    if table not in GATES:
        raise UserError(f"{table} is no table; the tables are {', '.join(GATES)}")
    if not (data / table).is_dir():
        raise UserError(f"{data / table} does not exist; run `dvc repro`, or `dvc pull`, to have it")
    shutil.rmtree(data / "gates" / table, ignore_errors=True)  # a gate of other data must not stand
    stage, check, check_all = GATES[table]
    gates: dict[str, dict[str, Any]] = {}
    if check:
        places = [Place(params, data, category) for category in params.source.categories]
        gates = {place.category: _check_category(table, stage, check, place) for place in places}
    verdicts = check_all(params, data)
    require(str(data / table), verdicts, _remedy(table, stage, params))
    about = {"categories": params.source.categories} | ({} if check else {"files": _files(data / table, data)})
    gates["all"] = _gate(table, about, verdicts)
    with files.folder(data / "gates" / table) as out:
        for name, gate in gates.items():
            files.write_json(out / f"{name}.json", gate)


def _check_category(table: str, stage: str, check: Callable[[Place], list[Verdict]], place: Place) -> dict[str, Any]:
    """Return the gate of one category.

    Raises:
        UserError: the category's data is absent, or an expectation fails.
    """
    held = place.folder(table)
    if not held.exists():
        raise UserError(f"{held} does not exist; run `dvc repro`, or `dvc pull`, to have it")
    verdicts = check(place)
    unit = stage if table == "groups" else f"{stage}@{place.category}"
    require(str(held), verdicts, _remedy(table, unit, place.params))
    return _gate(table, {"category": place.category, "files": _files(held, place.data)}, verdicts)


def _remedy(table: str, stage: str, params: Params) -> str:
    again = f"make it again with `dvc repro --force {stage}`"
    if (table, stage) == ("images", "fetch"):  # of all categories
        return (
            f"data/twins.csv lists the pictures of two splits; set images.twin_share ({params.images.twin_share}) to "
            f"what you accept, or {again}"
        )
    if table == "raw":
        return (
            f"look at these rows in the source's files (download.bad_share, {params.download.bad_share}, is the share "
            f"of values that may be out of range), or {again}"
        )
    return f"{again}; if that fails too, the rows named show a fault of the stage"


def _gate(table: str, about: dict[str, Any], verdicts: Iterable[Verdict]) -> dict[str, Any]:
    expectations = [
        {
            "table": verdict.table,
            "expectation": verdict.expectation,
            "rows": verdict.rows,
            "unexpected": verdict.unexpected,
            "allowed": verdict.allowed,
            "passed": verdict.passed,
        }
        for verdict in verdicts
    ]
    return {"table": table, **about, "expectations": expectations, "passed": True}


def _files(held: Path, data: Path) -> dict[str, dict[str, Any]]:
    """Return hash and rows of the files checked; for shards the manifest, which holds the hashes."""
    paths = [held] if held.is_file() else sorted(p for p in held.iterdir() if p.suffix in {".parquet", ".json"})
    return {
        path.relative_to(data).as_posix(): {"sha256": files.sha256(path)}
        | ({"rows": columns.rows_of(path)} if path.suffix == ".parquet" else {})
        for path in paths
    }


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
    items = columns.read(bucket_files(place.folder("items"), "items"), ["parent_asin"], JOINED)["parent_asin"]
    return [
        *verdicts,
        links.same_items("groups", "data/items", items, links.read_groups(paths)["parent_asin"]),
    ]


def _groups_all(params: Params, data: Path) -> list[Verdict]:
    paths = [path for c in params.source.categories for path in bucket_files(data / "groups" / c, "groups")]
    before = sum(Place(params, data, c).rows_out("items", "items") for c in params.source.categories)
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
    groups = links.read_groups(bucket_files(place.folder("groups"), "groups"))
    return [
        *verdicts,
        links.parts(paths),
        links.band_limit(paths, round(params.fraction * params.bands), params.min_per_category),
        links.groups_of(samples, groups),
        *funnel.check(counts, "items", _rows(paths), place.rows_out("items", "items"), "data/items"),
        *proportions.check(place.folder("sample") / proportions.NAME, paths, params.fraction, params.bands, passed),
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
    return [
        *verdicts,
        links.aligned(part_files(place.folder("sample")), paths),
        links.image_bytes(paths),
        *funnel.check(counts, "images", had, before, "data/sample"),
        funnel.reasons("images", dropped, outcomes),
    ]


def _images_all(params: Params, data: Path) -> list[Verdict]:
    found, measured = twins.find(data, params.source.categories)
    with files.aside(data / "twins.csv") as partial:  # written before it is judged, for whom it stops
        found.to_csv(partial, index=False, lineterminator="\n")
    return [twins.verdict(found, measured, params.images.twin_share)]


def _shards(place: Place) -> list[Verdict]:
    from validation import tars  # noqa: PLC0415 -- it imports webdataset and thus torch, which no other gate needs

    folder = place.folder("shards")
    shards = tars.shards_of(folder)
    verdicts = tars.check_content(folder)
    if not tars.are_readable(verdicts):
        return verdicts
    indexes = [folder / shard.index for shard in shards]
    return [
        *verdicts,
        *columns.check("index", place.suite("index"), indexes),
        tars.check_items(folder, shards, part_files(place.folder("sample"))),
        tars.check_reader(folder, shards),
        *funnel.check(
            place.counts("shards"), "samples", _rows(indexes), place.rows_out("sample", "items"), "data/sample"
        ),
    ]


def _predictions_all(params: Params, data: Path) -> list[Verdict]:
    paths = sorted((data / "predictions").glob("*.parquet"))
    verdicts = columns.check("predictions", suites(params, "")["predictions"], paths)
    if not verdicts[0].passed:
        return verdicts
    names = ["split", "category", "parent_asin", "average_rating"]
    measured = [f"{split}.parquet" for split in (TEST, VALIDATION)]
    parts = [
        path for c in params.source.categories for path in part_files(data / "sample" / c) if path.name in measured
    ]
    samples, predictions = columns.read(parts, names, SAMPLE), columns.read(paths, names, PREDICTIONS)
    counts = funnel.counts(data / "predictions" / "report.json")
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


def _nothing(_: Params, __: Path) -> list[Verdict]:
    """Check nothing across categories."""
    return []


# The stage that makes each table, what is checked of a category, and what across categories.
GATES: dict[str, tuple[str, Callable[[Place], list[Verdict]] | None, Callable[[Params, Path], Sequence[Verdict]]]] = {
    "raw": ("download", _raw, _nothing),
    "items": ("join", _items, _nothing),
    "groups": ("groups", _groups, _groups_all),
    "sample": ("sample", _sample, _sample_all),
    "images": ("fetch", _images, _images_all),
    "shards": ("shard", _shards, _nothing),
    "predictions": ("evaluate", None, _predictions_all),
}
