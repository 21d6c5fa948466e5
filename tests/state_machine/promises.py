"""What holds in every folder of tables and shards, computed from the files alone and not with the package's functions.

Input: a folder `data`. Output: an AssertionError for what does not hold: a product in two splits, rows that are not
accounted for, samples that are not those of the tables; and of two fractions, files of the smaller that are not in the
larger one as they are.
"""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TABLES = {"items": ("items", "items"), "sample": ("items", ""), "images": ("images", ""), "raw": ("items", "items")}


def check_promises(data: Path, max_items_per_key: int) -> None:
    """Check the tables that exist; a stage may have failed, and those after it are absent."""
    check_one_split_per_product(data, max_items_per_key)
    for table, (name, files) in TABLES.items():
        for folder in _folders(data / table):
            check_rows(folder, name, files)
    for folder in _folders(data / "shards"):
        check_samples(data, folder)


def check_one_split_per_product(data: Path, max_items_per_key: int) -> None:
    """No group is in two splits, and neither are two items with one title and store."""
    items = defaultdict(set)
    for row in _rows(data / "items", "items"):
        if (row["title"] or "").strip():
            items[row["title"].casefold(), (row["store"] or "").casefold()].add(row["parent_asin"])
    splits, of_group = {}, defaultdict(set)
    for row in _rows(data / "sample", ""):
        splits[row["parent_asin"]] = row["split"]
        of_group[row["group"]].add(row["split"])
    assert all(len(found) == 1 for found in of_group.values())
    for same in items.values():
        assert len(same) > max_items_per_key or len({splits[asin] for asin in same if asin in splits}) <= 1


def check_rows(folder: Path, name: str, files: str) -> None:
    """The rows of a table are those of its report, and the report adds up."""
    report = json.loads((folder / "report.json").read_text())
    for counts in report["tables"].values():
        assert counts["rows_in"] == counts["rows_out"] + sum(counts["dropped"].values())
    counts = report["tables"][name]
    rows = sum(pq.read_metadata(path).num_rows for path in folder.glob(f"{files}*.parquet"))
    assert rows == counts["rows_in" if name == "images" else "rows_out"]  # of every item there is an outcome
    before = {stage["stage"]: stage["tables"] for stage in report.get("before", [])}
    if "join" in before and "sample" not in before:
        assert counts["rows_in"] == before["join"]["items"]["rows_out"]


def check_samples(data: Path, folder: Path) -> None:
    """A category's tars have the items of its sample that are not excluded, each once, in its split."""
    excluded = {row["parent_asin"] for row in _rows(data / "exclusions", "", folder.name)}
    wanted = {
        (row["parent_asin"], row["split"])
        for row in _rows(data / "sample", "", folder.name)
        if row["parent_asin"] not in excluded
    }
    found = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            names = [name for name in tar.getnames() if name.endswith(".json")]
        found += [(name.removesuffix(".json"), path.name.partition("-")[0]) for name in names]
    assert sorted(found) == sorted(wanted)


def check_nested(smaller: Mapping[str, str], larger: Mapping[str, str]) -> None:
    """Every file of a table of a smaller fraction is in the larger one, with the same bytes."""
    tables = {Path(name).parent for name in larger}
    for name, digest in smaller.items():
        if re.fullmatch(r"data/(sample|images|shards)/.*\.(parquet|tar)", name) and Path(name).parent in tables:
            assert larger.get(name) == digest, f"{name} is another one in a larger fraction"


def _folders(table: Path) -> list[Path]:
    return [path for path in sorted(table.glob("[!.]*")) if path.is_dir()]


def _rows(table: Path, files: str, category: str = "*") -> Iterator[dict[str, Any]]:
    for path in sorted(table.glob(f"{category}/{files}*.parquet")):
        if path.name != "rejects.parquet":
            yield from pq.read_table(path).to_pylist()
