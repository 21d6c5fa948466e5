"""Each expectation in validation/suites.py, and only it, fails on a table that is corrupted to break it."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.validation import tree
from validation import columns
from validation.suites import PREDICT_INPUT_SUITE, Rule, Suite, suite
from validation.suites import SUITES as DECLARED

SUITES = {name: suite(name, tree.small_params(), tree.ONE) for name in DECLARED} | {"input": PREDICT_INPUT_SUITE}
# A file of each table in the valid data/ folder; the largest if there are several.
FILES = {
    "items": f"raw/{tree.ONE}/items-000.parquet",
    "reviews": f"raw/{tree.ONE}/reviews-000.parquet",
    "rejects": f"raw/{tree.ONE}/rejects.parquet",
    "joined": f"items/{tree.ONE}/items-000.parquet",
    "groups": f"groups/{tree.ONE}/groups-000.parquet",
    "sample": f"sample/{tree.ONE}/train-00.parquet",
    "images": f"images/{tree.ONE}/train-00.parquet",
    "exclusions": f"exclusions/{tree.ONE}/train-00.parquet",
    "index": f"shards/{tree.ONE}/train-00-000.arrow",
    "predictions": "predictions/test.parquet",
    "input": "input.parquet",
}
EMPTY = {"None", "", "[]", "{}"}  # how a missing value prints
BY_TABLE = pytest.mark.parametrize("table", SUITES)


def _set(row: dict[str, Any], column: str, value: float) -> None:
    """Set a column, or the source columns of a size to texts or lists of that size."""
    if not column.startswith(columns.SIZE):
        row[column] = value
        return
    for part in columns.source_columns(column):
        row[part] = (row[part][:1] if isinstance(row[part], list) else "x") * int(value)


def _outside(row: dict[str, Any], rule: Rule) -> None:
    low, high = rule.arguments["min_value"], rule.arguments["max_value"]
    _set(row, rule.arguments["column"], low - 1 if low is not None else high + 1)


def _put(value: object) -> Callable[[dict[str, Any], Rule], None]:
    return lambda row, rule: row.update({rule.arguments["column"]: value})


def _swap(row: dict[str, Any], rule: Rule) -> None:
    row[rule.arguments["column_B"]] = row[rule.arguments["column_A"]] + 1


# What breaks a rule of each kind; a new kind without an entry fails the tests below.
CORRUPT: dict[str, Callable[[dict[str, Any], Rule], None]] = {
    "ExpectColumnValuesToNotBeNull": _put(None),
    "ExpectColumnValuesToBeNull": _put("x"),
    "ExpectColumnValuesToBeBetween": _outside,
    "ExpectColumnValuesToBeInSet": _put("nowhere"),
    "ExpectColumnValuesToMatchRegex": _put("../a b"),
    "ExpectColumnPairValuesAToBeGreaterThanB": _swap,
}


def copied(path: Path, folder: Path) -> Path:
    return Path(shutil.copyfile(path, folder / path.name))


def failed(table: str, path: Path) -> list[str]:
    return [v.expectation for v in columns.check_columns(table, SUITES[table], [path]) if not v.passed]


def broken(table: str, path: Path, rules: Sequence[Rule], corrupt: Callable[[dict[str, Any], Rule], None]) -> None:
    """Break each rule in a separate row, and assert that it fails for that row and that nothing else fails."""

    def change(rows: list[dict[str, Any]]) -> None:
        used = [
            columns.source_columns(column)
            for rule in SUITES[table].rules
            for column in rule.columns
            if "ToBeNull" not in rule.kind and ("ToBeBetween" not in rule.kind or column.startswith(columns.SIZE))
        ]
        whole = [row for row in rows if all(any(str(row[name]) not in EMPTY for name in parts) for parts in used)]
        rows[:] = [dict(whole[i % len(whole)]) for i in range(len(rules))]
        for row, rule in zip(rows, rules, strict=True):
            corrupt(row, rule)

    tree.edit(path, change)
    found = {verdict.expectation: verdict for verdict in columns.check_columns(table, SUITES[table], [path])}
    rows = read(table, path).to_pylist()
    for row, rule in zip(rows, rules, strict=True):
        too = sum(of_null(other, rule) for other in rules)
        assert found[rule.name].unexpected == 1 + too, rule.name
        key = " ".join(str(row[name]) for name in SUITES[table].label if row[name] is not None)
        assert key in " ".join(found[rule.name].examples)
        level = (
            "fail"
            if rule.fail_above * len(rows) < 1 + too
            else "warn"
            if rule.warn_above * len(rows) < 1 + too
            else "pass"
        )
        assert found[rule.name].level == level
    others = {rule.name for rule in SUITES[table].rules} - {rule.name for rule in rules}
    assert [name for name in sorted(others) if found[name].unexpected] == []


def of_null(other: Rule, rule: Rule) -> bool:
    """Return whether the null that breaks `other` is a text or list of size 0 for `rule`."""
    missing = {other.arguments.get("column")} if other.kind == "ExpectColumnValuesToNotBeNull" else set()
    (column,) = rule.columns[:1]
    return (
        column.startswith(columns.SIZE)
        and {*columns.source_columns(column)} == missing
        and rule.arguments["min_value"] == 1
    )


@BY_TABLE
def test_a_row_that_breaks_a_rule_fails_only_that_rule(table: str, clean: Path, tmp_path: Path) -> None:
    path = copied(clean / FILES[table], tmp_path)
    broken(table, path, SUITES[table].rules, lambda row, rule: CORRUPT[rule.kind](row, rule))


@pytest.mark.parametrize("table", [t for t in SUITES if any("max_value" in r.arguments for r in SUITES[t].rules)])
def test_a_value_above_a_range_fails_only_that_range(table: str, clean: Path, tmp_path: Path) -> None:
    ranges = [rule for rule in SUITES[table].rules if rule.arguments.get("max_value") is not None]

    def above(row: dict[str, Any], rule: Rule) -> None:
        _set(row, rule.arguments["column"], rule.arguments["max_value"] + 1)

    broken(table, copied(clean / FILES[table], tmp_path), ranges, above)


@BY_TABLE
def test_a_missing_column_fails_only_the_schema(table: str, clean: Path, tmp_path: Path) -> None:
    path = copied(clean / FILES[table], tmp_path)
    tree.write_loose(path, read(table, path).drop_columns(SUITES[table].schema.names[-1:]))
    (verdict,) = columns.check_columns(table, SUITES[table], [path])
    assert not verdict.passed
    assert f"columns missing ['{SUITES[table].schema.names[-1]}']" in verdict.examples[0]


@BY_TABLE
def test_columns_in_another_order_fail_the_schema(table: str, clean: Path, tmp_path: Path) -> None:
    path = copied(clean / FILES[table], tmp_path)
    tree.write_loose(path, read(table, path).select(SUITES[table].schema.names[::-1]))
    (verdict,) = columns.check_columns(table, SUITES[table], [path])
    assert "columns in order" in verdict.examples[0]


@BY_TABLE
def test_a_column_of_another_type_fails_the_schema(table: str, clean: Path, tmp_path: Path) -> None:
    path = copied(clean / FILES[table], tmp_path)
    rows = read(table, path)
    rows = rows.set_column(0, rows.column_names[0], pa.array(range(rows.num_rows), pa.int32()))
    tree.write_loose(path, rows)
    (verdict,) = columns.check_columns(table, SUITES[table], [path])
    assert verdict.examples == (f"{path.name}: {rows.column_names[0]} is int32, not string",)


@pytest.mark.parametrize("table", [table for table, suite in SUITES.items() if suite.key])
def test_a_repeated_key_fails_across_files(table: str, clean: Path, tmp_path: Path) -> None:
    path, other = clean / FILES[table], tmp_path / f"other{Path(FILES[table]).suffix}"
    tree.write_loose(other, read(table, path).slice(0, 1))
    suite = SUITES[table]
    wrong = [v for v in columns.check_columns(table, suite, [path, other]) if not v.passed]
    assert [(v.expectation, v.unexpected) for v in wrong] == [(f"{' and '.join(suite.key)} unique", 1)]
    assert "(2 times)" in wrong[0].examples[0]


def test_a_fraction_of_bad_raw_values_within_the_limit_passes(clean: Path, tmp_path: Path) -> None:
    path = copied(clean / FILES["reviews"], tmp_path)
    rule = next(rule for rule in SUITES["reviews"].rules if rule.name == "rating between 0 and 5")
    allowed = int(rule.fail_above * columns.rows_of(path))
    assert allowed > 0

    def spoil(count: int) -> list[str]:
        tree.edit(path, lambda rows: [row.update(rating=7.0) for row in rows[:count]])
        return failed("reviews", path)

    assert spoil(allowed) == []
    assert spoil(allowed + 1) == [rule.name]


def test_batches_of_any_size_give_the_same_verdicts(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(clean / FILES["reviews"], tmp_path)
    tree.edit(path, lambda rows: [row.update(rating=7.0, timestamp=None) for row in rows[3:40:6]])
    whole = columns.check_columns("reviews", SUITES["reviews"], [path])
    monkeypatch.setattr(columns, "ROWS_PER_BATCH", 50)
    monkeypatch.setattr(columns, "_CHUNK", 20)
    assert columns.check_columns("reviews", SUITES["reviews"], [path]) == whole


def test_an_empty_table_and_one_without_files_pass(tmp_path: Path) -> None:
    for table, declared in SUITES.items():
        path = tmp_path / f"{table}{Path(FILES[table]).suffix}"
        tree.write_loose(path, declared.schema.empty_table())
        assert all(
            verdict.passed for paths in ([path], []) for verdict in columns.check_columns(table, declared, paths)
        )


def test_the_checks_write_nothing_to_the_terminal(clean: Path) -> None:
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO); "
        "from pathlib import Path; from validation import columns; from validation.suites import suite; "
        "from tests.validation.tree import small_params, ONE; "
        "columns.check_columns('reviews', suite('reviews', small_params(), ONE), [Path(sys.argv[1])])"
    )
    command = [sys.executable, "-c", code, str(clean / FILES["reviews"])]
    done = subprocess.run(command, cwd=tree.ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_rule_that_cannot_be_evaluated_is_an_error(clean: Path) -> None:
    suite = SUITES["reviews"]
    rule = Rule("x", "ExpectColumnValuesToMatchRegex", {"column": "rating", "regex": "("})
    broken = Suite(suite.schema, suite.label, suite.key, (rule,))
    with pytest.raises(RuntimeError, match="x"):
        columns.check_columns("reviews", broken, [clean / FILES["reviews"]])


def read(table: str, path: Path) -> pa.Table:
    return columns.read_columns([path], SUITES[table].schema.names, SUITES[table].schema)
