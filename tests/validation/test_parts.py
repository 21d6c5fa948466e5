"""Comparing keys in parts gives the same verdicts as comparing all at once."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from validation import columns, links
from validation.suites import PREDICT_INPUT_SUITE, Suite
from validation.verdicts import FailedError, Verdict, judge, require

ITEMS = 200
GROUPS = pa.table(
    {
        "parent_asin": [f"B{n:09d}" for n in range(ITEMS)],
        "group": [f"B{n - n % 3:09d}" for n in range(ITEMS)],
        "group_size": pa.array(
            [5 if n in {30, 31, 32} else min(3, ITEMS - n + n % 3) for n in range(ITEMS)], pa.int32()
        ),
    }
)
SAMPLES = GROUPS.slice(0, 150).append_column("split", [["test" if n in {40, 77} else "train" for n in range(150)]])
OTHER_GROUPS = GROUPS.set_column(1, "group", [["B" if n in {3, 140} else f"B{n - n % 3:09d}" for n in range(ITEMS)]])
KEYED = Suite(pa.schema([("parent_asin", pa.string())]), ("parent_asin",), PREDICT_INPUT_SUITE.key, ())
REPEATED = pa.concat_tables([GROUPS, GROUPS.slice(11, 1), GROUPS.slice(5, 1), GROUPS.slice(5, 1)]).select(
    ["parent_asin"]
)

CHECKS: dict[str, tuple[Callable[[], Verdict], int]] = {
    "group_sizes": (lambda: links.group_sizes(GROUPS), 1),
    "groups_of": (lambda: links.groups_of(SAMPLES, OTHER_GROUPS), 2),
    "one_split": (lambda: links.one_split(SAMPLES, "group"), 2),
    "same_items": (lambda: links.same_items("a", "b", GROUPS["parent_asin"], SAMPLES["parent_asin"]), 50),
    "unique": (lambda: columns.check_columns("keys", KEYED, [REPEATED])[-1], 3),
}


@pytest.mark.parametrize("name", CHECKS)
def test_parts_of_any_size_give_the_same_verdict(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, wrong = CHECKS[name]
    at_once = check()
    assert at_once.unexpected == wrong
    monkeypatch.setattr(columns, "ROWS_PER_PART", 7)
    in_parts = check()
    if name == "same_items":  # which five of the 50 missing keys are shown depends on the parts
        assert {*at_once.examples, *in_parts.examples} <= {f"B{n:09d} (missing)" for n in range(150, ITEMS)}
        at_once, in_parts = (Verdict(v.table, v.expectation, v.rows, v.unexpected) for v in (at_once, in_parts))
    assert in_parts == at_once


def test_equal_keys_are_in_the_same_part_of_each_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "ROWS_PER_PART", 30)
    parts = list(columns.by_key("parent_asin", GROUPS, SAMPLES))
    assert len(parts) == 7
    assert max(one.num_rows for one, _ in parts) < 60
    ours = [{*one["parent_asin"].to_pylist()} for one, _ in parts]
    assert [{*other["parent_asin"].to_pylist()} <= mine for mine, (_, other) in zip(ours, parts, strict=True)] == [
        True
    ] * 7
    assert sum(map(len, ours)) == ITEMS


def test_the_first_check_that_fails_is_described_and_the_others_are_named() -> None:
    checks = [judge("items", name, 9, ["a row"] * wrong) for name, wrong in [("a", 0), ("b", 2), ("c", 1), ("d", 1)]]
    with pytest.raises(FailedError, match=r"^here, .*\bb\b.*; also failed: items: c, items: d; do this$"):
        require("here", checks, lambda: "do this")
    require("here", checks[:1], lambda: pytest.fail("it is called only if a check failed"))


def test_parts_of_only_one_table_are_named(tmp_path: Path) -> None:
    found = links.aligned([tmp_path / "train-00.parquet"], [tmp_path / "train-01.parquet"])
    assert found.examples == ("train-00.parquet (missing)", "train-01.parquet (unknown)")
