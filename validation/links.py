"""Checks between tables: the same items in both, no product in two splits, parts that match their file names.

Input: the stages' files, of which only the needed columns are read. Output: verdicts. Memory: the key columns.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep.core.parts import TRAIN
from prep.core.tables.groups import GROUPS
from prep.core.tables.images import IMAGES, OK
from prep.core.tables.sample import SAMPLE
from validation.columns import by_key, chunks, read_columns
from validation.verdicts import EXAMPLES_SHOWN, Verdict, judge


def same_items(table: str, source: str, expected: pa.ChunkedArray, found: pa.ChunkedArray) -> Verdict:
    """Check that two tables have the same keys, in any order.

    Args:
        table: the checked table.
        source: path of the table that it is compared with, for the expectation's name.
        expected: the keys of `source`.
        found: the keys of `table`.
    """
    wrong = []
    for ours, theirs in by_key("key", pa.table({"key": expected}), pa.table({"key": found})):
        missing = ours["key"].filter(pc.invert(pc.is_in(ours["key"], value_set=theirs["key"])))
        unknown = theirs["key"].filter(pc.invert(pc.is_in(theirs["key"], value_set=ours["key"])))
        wrong += [f"{key} (missing)" for key in missing.to_pylist()]
        wrong += [f"{key} (unknown)" for key in unknown.to_pylist()]
    return judge(table, f"the same items as {source}", max(len(expected), len(found)), wrong)


def group_sizes(groups: pa.Table) -> Verdict:
    """Check that ``group_size`` is the number of distinct items of the group over all categories."""
    different, examples = 0, []
    for (bucket,) in by_key("group", groups):
        items = bucket.group_by(["group", "parent_asin", "group_size"]).aggregate([])
        sizes = items.group_by(["group", "group_size"]).aggregate([([], "count_all")])
        different += sizes.num_rows
        wrong = sizes.filter(pc.not_equal(sizes["group_size"], pc.cast(sizes["count_all"], pa.int32())))
        examples += [f"{r['group']} ({r['count_all']} items, group_size {r['group_size']})" for r in wrong.to_pylist()]
    return judge("groups", "group_size = number of items in the group", different, sorted(examples))


def groups_of(samples: pa.Table, groups: pa.Table) -> Verdict:
    """Check that every sampled item has its group of the groups table."""
    wrong: list[str] = []
    for ours, theirs in by_key("parent_asin", samples, groups):
        expected = pc.take(theirs["group"], pc.index_in(ours["parent_asin"], value_set=theirs["parent_asin"]))
        same = pc.fill_null(pc.equal(ours["group"], expected), False)
        wrong += ours.filter(pc.invert(same))["parent_asin"].to_pylist()
    return judge("sample", "the same group as in data/groups", samples.num_rows, wrong)


def one_split(samples: pa.Table, column: str) -> Verdict:
    """Check that no value of `column` is in two splits, over all categories."""
    different, wrong = 0, []
    for (bucket,) in by_key(column, samples):
        splits = bucket.group_by([column]).aggregate([("split", "count_distinct")])
        different += splits.num_rows
        wrong += splits.filter(pc.greater(splits["split_count_distinct"], 1))[column].to_pylist()
    return judge("sample", f"each {column} in only one split", different, sorted(wrong))


def check_parts(paths: Sequence[Path]) -> Verdict:
    """Check that the rows of each part have the split and band in its file name; outside train the band is -1."""
    rows, wrong = 0, []
    for path in paths:
        split, _, number = path.stem.partition("-")
        band = int(number) if number.isdigit() else -1
        part = read_columns([path], ["parent_asin", "split", "band"], SAMPLE)
        rows += part.num_rows
        fits = pc.and_(pc.equal(part["split"], split), pc.equal(part["band"], band))
        strays = part.filter(pc.invert(fits)).to_pylist()
        wrong += [f"{r['parent_asin']} (split {r['split']}, band {r['band']} in {path.name})" for r in strays]
    return judge("sample", "split and band as in the part's file name", rows, wrong)


def band_limit(paths: Sequence[Path], limit: int, minimum: int) -> Verdict:
    """Check that there are no more bands than the fraction selects, unless ``sample.min_per_category`` needs them.

    Args:
        paths: the sample's parts of a category.
        limit: number of bands that the fraction selects.
        minimum: training items that a category keeps at any fraction.
    """
    train = [(path, int(pq.read_metadata(path).num_rows)) for path in paths if path.stem.startswith(f"{TRAIN}-")]
    rows_below = [0, *accumulate(rows for _, rows in train)]
    wrong = [
        f"{path.stem} ({below} rows in lower bands)"
        for (path, _), below in zip(train, rows_below, strict=False)
        if int(path.stem.removeprefix(f"{TRAIN}-")) >= limit and below >= minimum
    ]
    return judge("sample", f"training bands below {limit}, or the fewest with {minimum} items", len(train), wrong)


def aligned(sample: Sequence[Path], images: Sequence[Path]) -> Verdict:
    """Check that the parts of the images have the items of the sample's parts, in the same order."""
    ours, theirs = {path.name: path for path in images}, {path.name: path for path in sample}
    wrong = [f"{name} ({'missing' if name in theirs else 'unknown'})" for name in sorted({*ours} ^ {*theirs})]
    rows = 0
    for name in sorted({*ours} & {*theirs}):
        found = read_columns([ours[name]], ["parent_asin"], IMAGES)["parent_asin"].to_pylist()
        expected = read_columns([theirs[name]], ["parent_asin"], SAMPLE)["parent_asin"].to_pylist()
        rows += len(expected)
        if len(found) != len(expected):
            wrong.append(f"{name} ({len(found)} rows, sample {len(expected)})")
        else:
            pairs = zip(found, expected, strict=True)
            wrong += [f"{a} ({name} row {i}, sample {b})" for i, (a, b) in enumerate(pairs) if a != b]
    return judge("images", "the items of the sample, in the same order", rows, wrong)


def image_bytes(images: Sequence[Path]) -> Verdict:
    """Check that ``image`` is a JPEG if the outcome is ok, and empty otherwise."""
    rows, wrong = 0, 0
    examples: list[str] = []
    for chunk in chunks(images, ["parent_asin", "outcome", "image"]):
        jpeg = pc.starts_with(chunk["image"], pattern=b"\xff\xd8")
        empty = pc.equal(pc.binary_length(chunk["image"]), 0)
        fits = pc.fill_null(pc.if_else(pc.equal(chunk["outcome"], OK), jpeg, empty), False)
        strays = chunk.filter(pc.invert(fits))
        rows, wrong = rows + chunk.num_rows, wrong + strays.num_rows
        examples += [f"{r['parent_asin']} ({r['outcome']}, {len(r['image'] or b'')} bytes)" for r in strays.to_pylist()]
        examples = examples[:EXAMPLES_SHOWN]
    return Verdict(
        "images",
        f"a JPEG if the outcome is {OK}, else an empty image",
        rows,
        wrong,
        examples=tuple(examples),
    )


def same_labels(samples: pa.Table, predictions: pa.Table) -> Verdict:
    """Check that each prediction has the label of its sample (by category and parent_asin)."""
    keys = ["category", "parent_asin"]
    wanted = samples.select([*keys, "average_rating"]).rename_columns([*keys, "label"])
    both = (
        predictions.select([*keys, "average_rating"])
        .join(wanted, keys, join_type="inner")
        .sort_by([(key, "ascending") for key in keys])
    )
    wrong = both.filter(pc.not_equal(both["average_rating"], pc.cast(both["label"], pa.float32(), safe=False)))
    examples = [f"{r['parent_asin']} ({r['average_rating']:g}, sample {r['label']:g})" for r in wrong.to_pylist()]
    return judge("predictions", "the same average_rating as in data/sample", both.num_rows, examples)


def read_groups(paths: Sequence[Path]) -> pa.Table:
    """Return the rows of the given groups files."""
    return read_columns(paths, GROUPS.names, GROUPS)
