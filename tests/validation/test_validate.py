"""The gates: clean data passes with the same bytes every time, and wrong data fails."""

import dataclasses
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.core import files, params, writers
from prep.core.errors import UserError
from prep.core.tables.shards import INDEX, METADATA_FIELDS
from prep.weights import weights
from shards.lint import LintRule
from tests.shards import damage
from tests.validation import tree
from tests.validation.tree import ONE, OTHER
from validation import columns
from validation.checks import GATES
from validation.profile import PROFILED_COLUMNS
from validation.suites import PREDICT_INPUT_SUITE, SUITES, suite
from validation.validate import accept, validate
from validation.verdicts import FailedError

PARAMS = tree.small_params()


def gates(data: Path) -> dict[str, bytes]:
    """The gate files by table and name."""
    found = sorted((data / "gates").rglob("*.json"))
    return {path.relative_to(data / "gates").as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def passed(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean tree with all its gates."""
    data = tree.copy(clean, tmp_path_factory.mktemp("passed") / "data")
    for table in GATES:
        if table == "profiles":
            accept(data)
        validate(table, PARAMS, data)
    return data


def results(data: Path, table: str) -> list[dict[str, Any]]:
    """Return the verdicts in the Data Docs of a table."""
    found: list[dict[str, Any]] = files.read_json(data.parent / "results/validation" / f"{table}.json")
    return found


def test_clean_data_passes_every_gate_with_the_same_bytes(passed: Path, data: Path) -> None:
    per_category = [f"{table}/{c}.json" for table in GATES if GATES[table].check_category for c in (ONE, OTHER)]
    assert set(gates(passed)) == {*per_category, *(f"{table}/all.json" for table in GATES)}
    for table in GATES:
        validate(table, PARAMS, data)  # with no profile accepted
    assert gates(data) == gates(passed)


def test_a_gate_lists_the_checked_files(passed: Path) -> None:
    gate = files.read_json(passed / "gates" / "raw" / f"{ONE}.json")
    paths = sorted((passed / "raw" / ONE).glob("items-*.parquet"))
    rows = [pq.read_metadata(path).num_rows for path in paths]
    assert gate["files"][f"raw/{ONE}/items-000.parquet"] == {"sha256": files.sha256(paths[0]), "rows": rows[0]}
    assert gate["passed"] is True
    (checked,) = [
        e
        for e in results(passed, "raw")
        if (e["where"], e["expectation"]) == (str(passed / "raw" / ONE), "line at least 1") and e["table"] == "items"
    ]
    assert checked | {"rows": sum(rows), "unexpected": 0, "allowed": 0, "level": "pass"} == checked


def test_another_category_does_not_change_the_gates_of_the_others(data: Path) -> None:
    alone = dataclasses.replace(PARAMS, source=dataclasses.replace(PARAMS.source, categories=(ONE,)))
    for run in (alone, PARAMS):
        validate("raw", run, data)
        validate("sample", run, data)
        gate = {name: text for name, text in gates(data).items() if name.endswith(f"{ONE}.json")}
        if run is alone:
            first = gate
    assert gate == first


def _report(
    table: str, name: str, change: Callable[[dict[str, Any]], object], category: str = ONE
) -> Callable[[Path], None]:
    def mutate(data: Path) -> None:
        path = data / table / category / "report.json"
        report = files.read_json(path)
        change(report["tables"][name])
        writers.write_json(path, report)

    return mutate


def _more(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(counts: dict[str, Any]) -> None:
        for key in keys:
            if key == "dropped":
                counts["dropped"]["lost"] = 1
            else:
                counts[key] += 1

    return change


SUM = "rows in = rows out + rows dropped"
OUT = "rows out in report.json = rows in the files"
FRACTION = "a fraction 0.5 of each stratum's training items, to within one item"


def _funnel(table: str, name: str, upstream: str = "", category: str = ONE, shown: str = "") -> dict[Any, Any]:
    """Return the mutations of row counts: an extra row dropped, an extra row out, an extra row in."""
    shown = shown or name
    found = {
        (table, shown, SUM): _report(table, name, _more("dropped"), category),
        (table, shown, OUT): _report(table, name, _more("rows_in", "rows_out"), category),
    }
    if upstream:
        expectation = f"rows in = rows of {upstream}"
        found[table, shown, expectation] = _report(table, name, _more("rows_in", "dropped"), category)
    return found


def _remove(name: str) -> Callable[[Path], None]:
    return lambda data: (data / name).unlink()


def _set(name: str, **values: object) -> Callable[[Path], None]:
    """Change the last row of a table."""
    return lambda data: tree.edit(data / name, lambda rows: rows[-1].update(values))


def _drop_row(name: str) -> Callable[[Path], None]:
    return lambda data: tree.edit(data / name, lambda rows: rows.pop())


def _band_above_fraction(data: Path) -> None:
    (data / f"sample/{ONE}/train-01.parquet").rename(data / f"sample/{ONE}/train-03.parquet")


def _group_in_two_splits(data: Path) -> None:
    other = pq.read_table(data / f"sample/{ONE}/train-00.parquet")["group"][0].as_py()
    path = data / f"sample/{OTHER}/test.parquet"
    stray = pq.read_table(path)["parent_asin"][-1].as_py()
    tree.edit(path, lambda rows: rows[-1].update(group=other))
    _edit_groups(data, lambda rows: [r.update(group=other) for r in rows if r["parent_asin"] == stray])


def _edit_groups(data: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    for path in sorted((data / f"groups/{OTHER}").glob("*.parquet")):
        tree.edit(path, change)


def _item_in_two_splits(data: Path) -> None:
    other = pq.read_table(data / f"sample/{ONE}/train-00.parquet")["parent_asin"][0].as_py()
    path = data / f"sample/{OTHER}/test.parquet"
    stray = pq.read_table(path)["parent_asin"][-1].as_py()

    def rename(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["parent_asin"] = other if row["parent_asin"] == stray else row["parent_asin"]

    tree.edit(path, rename)
    _edit_groups(data, rename)


def _strata(**more: int) -> Callable[[Path], None]:
    """Add to the first training stratum of strata.csv."""

    def mutate(data: Path) -> None:
        path = data / f"sample/{ONE}/strata.csv"
        table = pd.read_csv(path)
        row = table.index[table["split"] == "train"][0]
        for column, count in more.items():
            table.loc[row, column] += count
        table.to_csv(path, index=False)

    return mutate


def _swap_images(data: Path) -> None:
    tree.edit(data / f"images/{ONE}/train-00.parquet", lambda rows: rows.insert(0, rows.pop()))


def _image_lost(data: Path) -> None:
    path = data / f"images/{ONE}/train-00.parquet"
    tree.edit(path, lambda rows: next(r for r in rows if r["outcome"] == "ok").update(outcome="gone", image=b""))


def _exclude_split(data: Path, split: str) -> None:
    for path in sorted((data / f"sample/{ONE}").glob(f"{split}*.parquet")):
        tree.exclude(data, pq.read_metadata(path).num_rows, path.stem)


def _repeat_a_test_item(data: Path) -> None:
    """Give a training item the picture of a test item, without excluding it."""
    test = pq.read_table(data / f"images/{ONE}/test.parquet").to_pylist()
    picture = next(row for row in test if row["outcome"] == "ok")
    gone = set(pq.read_table(data / f"exclusions/{ONE}/train-00.parquet")["parent_asin"].to_pylist())

    def change(rows: list[dict[str, Any]]) -> None:
        row = next(row for row in rows if row["outcome"] == "ok" and row["parent_asin"] not in gone)
        row.update(image=picture["image"])

    tree.edit(data / f"images/{ONE}/train-00.parquet", change)


def _shards(change: Callable[[Path], object], about: Callable[[dict[str, Any]], object] = lambda _: None) -> Any:
    """Change files of a category's shards, update the manifest to match them, and then change the manifest."""

    def mutate(data: Path) -> None:
        change(data / "shards" / ONE)
        damage.reseal(data / "shards" / ONE, about)

    return mutate


def _unchanged(folder: Path) -> None:
    """Leave the files unchanged."""


def _other_name_in_json(folder: Path) -> None:
    path = folder / "test-000.tar"  # the first of the manifest, which datasets infers the columns from
    damage.write(path, path.read_bytes().replace(b'"store":', b'"stare":', 1))


def _other_label(folder: Path) -> None:
    """Change the label of an item in its tar and in the index."""
    damage.set_facts(folder / "train-00-000.tar", 0, average_rating=1.25)
    damage.index(folder / "train-00-000.tar")


def _no_jpeg(folder: Path) -> None:
    path = folder / "train-00-000.tar"
    damage.write(path, path.read_bytes().replace(b"\xff\xd8", b"GI", 1))


def _flip_padding(data: Path) -> None:
    """Change a byte outside all members: the one before the header of the first JSON."""
    index = columns.read_columns([data / f"shards/{ONE}/train-00-000.arrow"], ["json_offset"], INDEX)
    damage.flip(data / f"shards/{ONE}/train-00-000.tar", index["json_offset"][0].as_py() - 513)


def _a_split_twice(folder: Path) -> None:
    for kind in ("tar", "arrow"):
        damage.write(folder / f"validation-000.{kind}", (folder / f"test-000.{kind}").read_bytes())


def _one_value(column: str, value: float) -> Callable[[Path], None]:
    def mutate(data: Path) -> None:
        for path in sorted((data / "sample" / ONE).glob("*.parquet")):
            tree.edit(path, lambda rows: [row.update({column: value}) for row in rows])

    return mutate


def _weights(**values: object) -> Callable[[Path], None]:
    def mutate(data: Path) -> None:
        path = data / "weights.json"
        writers.write_json(path, files.read_json(path) | values)

    return mutate


def _drifted(table: str, fraction: float) -> Callable[[Path], None]:
    """Increase the fraction of nulls of a column over the accepted one."""

    def mutate(data: Path) -> None:
        path = data / f"profiles/{table}.csv"
        frame = pd.read_csv(path)
        frame["absent"] = frame["absent"].astype(float)
        frame.loc[0, "absent"] += fraction
        frame.to_csv(path, index=False)

    return mutate


# What breaks each expectation that is not in a suite (see test_suites.py), by gate, table and expectation.
MUTATIONS: dict[tuple[str, str, str], Callable[[Path], None]] = {
    ("raw", "items", "exactly the files that the stage writes"): _remove(f"raw/{ONE}/items-001.parquet"),
    ("raw", "reviews", "exactly the files that the stage writes"): _remove(f"raw/{ONE}/reviews-000.parquet"),
    **_funnel("raw", "items"),
    **_funnel("raw", "reviews"),
    ("raw", "rejects", "dropped rows per reason as in report.json"): _set(f"raw/{ONE}/rejects.parquet", reason="other"),
    ("items", "joined", "exactly the files that the stage writes"): _remove(f"items/{ONE}/items-001.parquet"),
    **_funnel("items", "items", "data/raw"),
    **_funnel("items", "reviews", "data/raw"),
    ("groups", "groups", "exactly the files that the stage writes"): _remove(f"groups/{ONE}/groups-001.parquet"),
    ("groups", "groups", "the same items as data/items"): _drop_row(f"groups/{ONE}/groups-000.parquet"),
    **_funnel("groups", "groups", "data/items", category="."),
    ("groups", "groups", "group_size = number of items in the group"): _set(
        f"groups/{ONE}/groups-000.parquet", group_size=9
    ),
    ("sample", "sample", "exactly the files that the stage writes"): _remove(f"sample/{ONE}/train-01.parquet"),
    ("sample", "sample", "split and band as in the part's file name"): _set(f"sample/{ONE}/train-01.parquet", band=0),
    ("sample", "sample", "training bands below 2, or the fewest with 0 items"): _band_above_fraction,
    ("sample", "sample", "the same group as in data/groups"): _set(f"sample/{ONE}/train-01.parquet", group="B0OTHER"),
    **_funnel("sample", "items", "data/items"),
    ("sample", "sample", "items in strata.csv = items that passed the filter"): _strata(population=1),
    ("sample", "sample", "sampled items of each stratum in strata.csv = items in the parts"): _strata(taken=1),
    ("sample", "sample", FRACTION): _strata(taken=3, population=3),
    ("sample", "sample", "each group in only one split"): _group_in_two_splits,
    ("sample", "sample", "each parent_asin in only one split"): _item_in_two_splits,
    **{
        ("sample", "sample", f"no dominant value of {name} (validation.mode_fraction)"): _one_value(name, value)
        for name, value in {"average_rating": 3.0, "rating_number": 7}.items()
    },
    ("images", "images", "the items of the sample, in the same order"): _swap_images,
    ("images", "images", "a JPEG if the outcome is ok, else an empty image"): _set(
        f"images/{ONE}/train-01.parquet", image=b"GIF89a"
    ),
    **_funnel("images", "images", "data/sample"),
    ("images", "images", "dropped rows per reason as in report.json"): _image_lost,
    ("exclusions", "exclusions", "exactly the files that the stage writes"): _remove(
        f"exclusions/{ONE}/train-01.parquet"
    ),
    ("exclusions", "exclusions", "items of the same part of the sample"): lambda data: tree.exclude(
        data, 1, parent_asin="B000000001"
    ),
    ("exclusions", "exclusions", "dropped rows per reason as in report.json"): lambda data: tree.exclude(
        data, 1, reason="same_product_title"
    ),
    **_funnel("exclusions", "samples", "data/sample"),
    **{
        ("exclusions", "exclusions", f"few near duplicates in {split} (validation.near_duplicate_fraction)"): partial(
            _exclude_split, split=split
        )
        for split in ("train", "validation")
    },
    ("exclusions", "exclusions", "no near duplicate of a validation or test item is left"): _repeat_a_test_item,
    ("shards", "shards", LintRule.MANIFEST): _shards(_unchanged, lambda m: m.update(category=OTHER)),
    ("shards", "shards", LintRule.FILES): _remove(f"shards/{ONE}/test-000.arrow"),
    ("shards", "shards", LintRule.BYTES): _flip_padding,
    ("shards", "shards", LintRule.TAR): _shards(lambda f: damage.flip(f / "train-00-000.tar", 0)),
    ("shards", "shards", LintRule.INDEX): _shards(lambda f: damage.set_index(f / "train-00-000.arrow", fields="title")),
    ("shards", "shards", LintRule.COUNT): _shards(_unchanged, lambda m: m["shards"][0].update(samples=1)),
    ("shards", "shards", LintRule.METADATA): _shards(lambda f: damage.set_facts(f / "train-00-000.tar", 0, store=None)),
    ("shards", "shards", LintRule.IMAGE): _shards(_no_jpeg),
    ("shards", "shards", LintRule.MEMBERS): _shards(
        lambda f: damage.set_index(f / "train-00-000.arrow", lambda rows: rows[-1].update(jpg_offset=3073))
    ),
    ("shards", "shards", LintRule.ONCE): _shards(_a_split_twice),
    ("shards", "shards", "the same items as the parts of the sample"): _drop_row(f"sample/{ONE}/train-00.parquet"),
    ("shards", "shards", LintRule.TOKENS): _shards(
        lambda f: damage.set_index(f / "train-00-000.arrow", lambda rows: rows[0]["tokens"].__setitem__(1, 7))
    ),
    ("shards", "shards", "the metadata of the sample"): _shards(_other_label),
    ("shards", "shards", "readable by datasets"): _shards(_other_name_in_json),
    **_funnel("shards", "samples", "data/exclusions"),
    **_funnel("predictions", "predictions", "test and validation that are not excluded", category="."),
    ("predictions", "predictions", "the same items as data/sample"): _drop_row("predictions/test.parquet"),
    ("predictions", "predictions", "the same average_rating as in data/sample"): _set(
        "predictions/test.parquet", average_rating=1.5
    ),
    ("weights", "weights", "count, half_at and clip as in params.yaml"): _weights(clip=9.0),
    ("weights", "weights", "samples = rows of the training parts that are not excluded"): _weights(samples=1),
    ("weights", "weights", "a mean weight of 1 over the training samples before clipping"): _weights(mean=1.0),
    ("weights", "weights", "finite weights of at least 0"): _weights(mean=0.0),
    **{
        ("profiles", t, "a drift from accepted.csv of at most 0.1 in each column"): _drifted(t, 0.2)
        for t in PROFILED_COLUMNS
    },
    **{
        ("profiles", t, "a drift from accepted.csv of at most 1 in each column (validation.drift)"): _drifted(t, 1.5)
        for t in PROFILED_COLUMNS
    },
}  # fmt: skip


def test_every_expectation_has_a_mutation(passed: Path) -> None:
    suites = {c: {t: suite(t, PARAMS, c) for t in SUITES} | {"input": PREDICT_INPUT_SUITE} for c in (ONE, OTHER, "")}
    declared = {(t, rule.name) for of_category in suites.values() for t, s in of_category.items() for rule in s.rules}
    declared |= {(t, f"{' and '.join(s.key)} unique") for t, s in suites[ONE].items() if s.key}
    declared |= {(t, columns.SCHEMA) for t in suites[ONE]}
    checked = set()
    for table in GATES:
        checked |= {(table, e["table"], e["expectation"]) for e in results(passed, table)}
    assert {key for key in checked if key[1:] not in declared} == set(MUTATIONS)
    declared -= {
        key for key in declared if key[0] == "input"
    }  # the input of predictions: tests/effimini/test_predict.py
    assert {(t, name) for t, name in declared if "category one of" not in name} <= {key[1:] for key in checked}


# The other expectations that fail too, for mutations that break several.
STRATA = "sampled items of each stratum in strata.csv = items in the parts"
ALSO: dict[tuple[str, str, str], set[str]] = {
    ("exclusions", "samples", SUM): {"dropped rows per reason as in report.json"},
    ("exclusions", "samples", OUT): {"rows in = rows of data/sample"},
    ("exclusions", "samples", "rows in = rows of data/sample"): {"dropped rows per reason as in report.json"},
    ("raw", "items", "exactly the files that the stage writes"): {OUT},
    ("raw", "reviews", "exactly the files that the stage writes"): {OUT},
    ("raw", "items", SUM): {"dropped rows per reason as in report.json"},
    ("raw", "reviews", SUM): {"dropped rows per reason as in report.json"},
    ("items", "joined", "exactly the files that the stage writes"): {OUT},
    ("items", "items", OUT): {"rows in = rows of data/raw"},
    ("items", "reviews", OUT): {"rows in = rows of data/raw"},
    ("groups", "groups", "exactly the files that the stage writes"): {"the same items as data/items"},
    ("groups", "groups", OUT): {"rows in = rows of data/items"},
    ("sample", "sample", "exactly the files that the stage writes"): {OUT, STRATA},
    ("sample", "sample", "training bands below 2, or the fewest with 0 items"): {
        *("exactly the files that the stage writes", "split and band as in the part's file name"),
        "a fraction 1 of each stratum's training items, to within one item",
    },
    ("sample", "items", OUT): {
        "rows in = rows of data/items",
        "items in strata.csv = items that passed the filter",
    },
    ("sample", "sample", "items in strata.csv = items that passed the filter"): {FRACTION},
    ("sample", "sample", FRACTION): {
        STRATA,
        "items in strata.csv = items that passed the filter",
    },
    ("sample", "sample", "no dominant value of average_rating (validation.mode_fraction)"): {STRATA},
    ("sample", "sample", "no dominant value of rating_number (validation.mode_fraction)"): {STRATA},
    ("images", "images", SUM): {"dropped rows per reason as in report.json"},
    ("images", "images", OUT): {"rows in = rows of data/sample"},
    ("images", "images", "rows in = rows of data/sample"): {"dropped rows per reason as in report.json"},
    ("images", "images", "dropped rows per reason as in report.json"): {OUT},
    ("shards", "shards", LintRule.TAR): {LintRule.MEMBERS, LintRule.COUNT},
    ("shards", "shards", LintRule.METADATA): {LintRule.MEMBERS},
    ("shards", "shards", LintRule.ONCE): {"key unique", "the same items as the parts of the sample"},
    ("shards", "shards", "readable by datasets"): {LintRule.METADATA},
    ("shards", "samples", OUT): {"rows in = rows of data/exclusions"},
    ("predictions", "predictions", OUT): {"rows in = rows of test and validation that are not excluded"},
    ("predictions", "predictions", "the same items as data/sample"): {OUT},
    ("weights", "weights", "finite weights of at least 0"): {
        "a mean weight of 1 over the training samples before clipping"
    },
}


@pytest.mark.parametrize(("table", "shown", "expectation"), MUTATIONS)
def test_wrong_data_fails_and_nothing_else_does(
    table: str, shown: str, expectation: str, passed: Path, tmp_path: Path
) -> None:
    data = tree.copy(passed.parent, tmp_path / "project") / "data"
    MUTATIONS[table, shown, expectation](data)
    before = {
        (e["where"][len(str(passed)) :], e["table"], e["expectation"], e["level"]) for e in results(passed, table)
    }
    only_warns = "validation.drift" not in expectation and shown in PROFILED_COLUMNS and table == "profiles"
    try:
        validate(table, PARAMS, data)
        assert only_warns
    except UserError as error:
        assert not only_warns
        assert f"table {shown}: expected {expectation}, but" in str(error) or f"{shown}: {expectation}" in str(error)
        assert str(data / GATES[table].path or table) in str(error)
        assert "for example" in str(error)
    assert (data / "gates" / table).exists() is only_warns
    now = {(e["where"][len(str(data)) :], e["table"], e["expectation"], e["level"]) for e in results(data, table)}
    worse = {(name, level) for _, _, name, level in now - before if level != "pass"}
    assert (expectation, "warn" if only_warns else "fail") in worse
    assert {name for name, level in worse if level == "fail"} - {expectation} == ALSO.get(
        (table, shown, expectation), set()
    )


def test_the_error_names_table_category_expectation_count_fraction_examples_and_hint(data: Path) -> None:
    path = data / "sample" / ONE / "train-00.parquet"
    tree.edit(path, lambda rows: [row.update(average_rating=7.0) for row in rows[:2]])
    first, second = pq.read_table(path)["parent_asin"].to_pylist()[:2]
    total = sum(pq.read_metadata(part).num_rows for part in path.parent.glob("*.parquet"))
    with pytest.raises(UserError) as error:
        validate("sample", PARAMS, data)
    assert str(error.value) == (
        f"{data}/sample/{ONE}, table sample: expected average_rating between 1 and 5, "
        f"but 2 of {total} ({2 / total:.1%}) do not meet this, "
        f"for example {first} (average_rating 7.0), {second} (average_rating 7.0); "
        "also failed: sample: sampled items of each stratum in strata.csv = items in the parts; "
        "change the named limit if this is acceptable, "
        f"or run the stage again with `dvc repro --force --single-item sample@{ONE}`; "
        "if it fails again, the stage has a bug"
    )


def test_a_band_above_the_fraction_passes_if_min_per_category_needs_it(data: Path) -> None:
    def with_minimum(items: int) -> None:
        rules = dataclasses.replace(PARAMS.sample, fraction=0.25, min_per_category=items)
        validate("sample", dataclasses.replace(PARAMS, sample=rules), data)

    below = min(pq.read_metadata(data / "sample" / c / "train-00.parquet").num_rows for c in (ONE, OTHER))
    most = max(pq.read_metadata(data / "sample" / c / "train-00.parquet").num_rows for c in (ONE, OTHER))
    with_minimum(most + 1)
    with pytest.raises(UserError, match="training bands below 1"):
        with_minimum(below)


@pytest.mark.parametrize("field", [name for name in METADATA_FIELDS if name not in {"parent_asin", "category"}])
def test_every_field_of_the_tars_is_compared_with_the_sample(field: str, clean: Path, tmp_path: Path) -> None:
    data = tree.copy(clean, tmp_path / "data")
    tar = data / f"shards/{ONE}/train-00-000.tar"
    with tarfile.open(tar) as archive:
        value = json.loads(archive.extractfile(archive.getmembers()[1]).read())[field]
    others: dict[type, Callable[[Any], Any]] = {
        str: lambda text: f"{text}x",
        float: lambda _: 1.25,
        int: lambda _: 12345,
        bool: lambda flag: not flag,
        list: lambda values: [0.5, *values[1:]],
    }
    damage.set_facts(tar, 0, **{field: others[type(value)](value)})
    damage.index(tar)
    damage.reseal(tar.parent)
    with pytest.raises(
        UserError, match=f"shards: expected {'JPEGs' if field == 'has_image' else 'the metadata of the'}"
    ):
        validate("shards", PARAMS, data)


def test_a_clone_with_only_the_shards_can_check_them(
    clean: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"
    tree.copy(clean / "shards", data / "shards")
    validate("shards", PARAMS, data)
    missing = f"{data}/sample, and {data}/exclusions"
    assert f"{missing} is missing, so {data}/shards is not compared with it and no gate is written" in caplog.text
    assert not (data / "gates").exists()
    assert {e["expectation"] for e in results(data, "shards")} > {str(LintRule.BYTES), "key unique", SUM}
    damage.flip(data / f"shards/{ONE}/train-00-000.tar", 2000)
    with pytest.raises(UserError, match="shards: expected"):
        validate("shards", PARAMS, data)


@pytest.mark.parametrize("table", [name for name in GATES if GATES[name].check_category])
def test_a_table_without_upstream_tables_is_checked(table: str, clean: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    tree.copy(clean / table, data / table)
    validate(table, PARAMS, data)
    assert {e["level"] for e in results(data, table)} <= {"pass", "warn"}
    assert (data / "gates" / table).exists() is (GATES[table].compared_with == ())


def test_another_limit_does_not_change_a_gate(passed: Path, tmp_path: Path) -> None:
    data = tree.copy(passed.parent, tmp_path / "project") / "data"
    before = gates(data)
    loose = params.Limits(warn_above=0.9, fail_above=1.0)
    run = dataclasses.replace(
        PARAMS, validation=dataclasses.replace(PARAMS.validation, near_duplicate_fraction=loose, mode_fraction=loose)
    )
    validate("images", run, data)
    validate("sample", run, data)
    assert gates(data) == before


def test_a_warning_is_logged_and_written_and_stops_nothing(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    strict = params.Limits(warn_above=0.0, fail_above=1.0)
    nulls = dataclasses.replace(PARAMS.validation.null_fraction, description=strict)
    run = dataclasses.replace(PARAMS, validation=dataclasses.replace(PARAMS.validation, null_fraction=nulls))
    validate("items", run, data)
    name = "description present (validation.null_fraction.description)"
    assert f"warning: {data}/items/{ONE}, table joined: expected {name}, but" in caplog.text
    found = [e for e in results(data, "items") if e["expectation"] == name]
    assert {e["level"] for e in found} == {"warn"}
    page = (data.parent / "results/validation/items.html").read_text()
    assert name in page
    assert found[0]["examples"][0] in page


@pytest.mark.parametrize(("warn_above", "levels"), [(0.0, {"pass", "warn"}), (0.9, {"pass"})])
def test_a_fraction_of_near_duplicates_above_the_first_limit_is_a_warning(
    warn_above: float, levels: set[str], data: Path
) -> None:
    limits = params.Limits(warn_above=warn_above, fail_above=1.0)
    run = dataclasses.replace(PARAMS.validation, near_duplicate_fraction=limits)
    validate("exclusions", dataclasses.replace(PARAMS, validation=run), data)
    few = [e["level"] for e in results(data, "exclusions") if "few near duplicates" in e["expectation"]]
    assert set(few) == levels  # some parts have none


def test_a_sample_without_parts_is_not_that_of_its_strata(data: Path) -> None:
    for part in (data / "sample" / ONE).glob("*.parquet"):
        part.unlink()
    with pytest.raises(FailedError, match=r"sampled items of each stratum in strata.csv = items in the parts"):
        validate("sample", PARAMS, data)


def test_weights_that_level_off_pass(data: Path) -> None:
    run = dataclasses.replace(PARAMS, weights=dataclasses.replace(PARAMS.weights, half_at=50))
    weights(run, data)
    validate("weights", run, data)
    assert {e["level"] for e in results(data, "weights")} == {"pass"}


@pytest.mark.parametrize("table", GATES)
def test_a_missing_table_is_an_error(table: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        validate(table, PARAMS, tmp_path)


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no table pictures; the tables are raw, items"):
        validate("pictures", PARAMS, tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", '{"tables": {"items": {"rows_in": "5"}}}', "{"])
def test_an_invalid_report_is_an_error(text: str, data: Path) -> None:
    (data / "raw" / ONE / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report\.json"):
        validate("raw", PARAMS, data)


@pytest.mark.parametrize("text", ["{}", '{"shards": [{"name": 5}]}', '{"shards": []}', "[]"])
def test_an_invalid_manifest_is_an_error(text: str, data: Path) -> None:
    (data / "shards" / ONE / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest"):
        validate("shards", PARAMS, data)


def test_a_wrong_schema_fails_every_table(data: Path) -> None:
    for table, name in {
        "raw": f"raw/{ONE}/rejects.parquet",
        "items": f"items/{ONE}/items-000.parquet",
        "groups": f"groups/{ONE}/groups-000.parquet",
        "sample": f"sample/{ONE}/test.parquet",
        "images": f"images/{ONE}/test.parquet",
        "predictions": "predictions/test.parquet",
    }.items():
        rows = pq.read_table(data / name)
        tree.write_loose(data / name, rows.append_column("more", pa.nulls(rows.num_rows, pa.int8())))
        with pytest.raises(UserError, match=r"columns missing \[\], unknown \['more'\]"):
            validate(table, PARAMS, data)


def test_neither_torch_nor_great_expectations_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, validation.validate; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'great_expectations', 'datasets')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tree.ROOT)


CORPUS = {"amazon": ("Health_and_Personal_Care",), "movies": ("Animation", "Other")}


@pytest.mark.parametrize("source", CORPUS)
def test_real_rows_pass(source: str, corpus: Path, run_to: Callable[..., None], tmp_path: Path) -> None:
    replace = dataclasses.replace
    kind = {"kind": "mirror", "location": str(corpus / source), "categories": CORPUS[source]}
    run = replace(
        PARAMS,
        source=replace(PARAMS.source, **kind, reviews=source == "movies"),
        sample=replace(PARAMS.sample, require=("title",), min_per_category=100),
    )
    run_to(run, tmp_path, "sample")
    for table in ("raw", "items", "groups", "sample"):
        validate(table, run, tmp_path)
