"""Validation of a table, which writes its gate.

Input: ``data/<table>/`` of all categories, and the tables that it was computed from. Output:

- ``data/gates/<table>/``, the gate: the hashes of the files that were checked, and that they passed. It has one
  ``<category>.json`` per category, which depends only on that category, and ``all.json`` for the other files;
- ``results/validation/<table>.json`` and ``.html``, the Data Docs: every expectation with its counts, severity and
  example keys, whether the table passed or failed;
- ``data/profiles/<table>.csv`` for items, sample and images.

Guarantees: if an expectation fails, there is no gate, so that no downstream stage runs; a gate does not contain limits,
so that changing a limit does not rerun downstream stages; the same data gives the same bytes.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pandas as pd

from prep.core import files, locks, writers
from prep.core.buckets import bucket_files
from prep.core.errors import UserError
from prep.core.params import Params, narrow
from prep.core.parts import part_files
from prep.core.pipeline import warn_of_strays
from prep.core.progress import bar
from validation import columns, docs, profile
from validation.checks import ACCEPTED, GATES, READS, CategoryTables, Gate, profiles
from validation.stale import earliest_stale
from validation.verdicts import Verdict, require

log = logging.getLogger(__name__)


class _File(msgspec.Struct, frozen=True, omit_defaults=True):
    """A checked file."""

    sha256: str
    rows: int | None = None  # for parquet files


def validate(table: str, params: Params, data: Path = Path("data")) -> None:
    """Check a table, and write its gate and its Data Docs.

    If a table that it is compared with is missing (for example, in a clone that pulled only the shards), the checks
    that need it are skipped with a warning, and no gate is written.

    Args:
        table: a key of `GATES`.
        params: the parameters of the run; the categories in ``source.categories`` are checked.
        data: the folder of all tables; the Data Docs are written to results/validation next to it.

    Raises:
        UserError: there is no such table, it is missing, or an expectation fails.
    """
    if table not in GATES:
        raise UserError(f"there is no table {table}; the tables are {', '.join(GATES)}")
    gate = GATES[table]
    params = narrow(params, (*READS, *gate.reads))
    path = data / (gate.path or table)
    if not path.exists():
        raise UserError(f"{path} does not exist; run `dvc repro` or `dvc pull` to get it")
    warn_of_strays(data, [table], params.source.categories)
    with locks.hold(data.parent / "results/validation" / table):
        _check(table, gate, params, data)


def present_tables(data: Path) -> list[str]:
    """Return the tables that exist in a data folder, in pipeline order.

    Raises:
        UserError: there is none.
    """
    found = [table for table, gate in GATES.items() if (data / (gate.path or table)).exists()]
    if not found:
        raise UserError(f"{data} contains no table; run `dvc repro` or `dvc pull` to get the tables")
    return found


def accept(data: Path = Path("data")) -> Path:
    """Accept the profiles of the data: write the file that later runs are compared with, and return its path.

    Args:
        data: the folder of all tables; the file is written next to it.

    Raises:
        UserError: there is no profile.
    """
    found = profiles(data)
    if found.empty:
        raise UserError(f"{data / 'profiles'} contains no profile; run `dvc repro` to compute the profiles")
    writers.write_csv(data.parent / ACCEPTED, found)
    return data.parent / ACCEPTED


def _check(table: str, gate: Gate, params: Params, data: Path) -> None:
    """Check a table, and write its Data Docs, and its gate if it passed."""
    path = data / (gate.path or table)
    categories = [CategoryTables(params, data, category) for category in params.source.categories]
    missing = [name for name in gate.compared_with if not all(tables.has(name) for tables in categories)]
    if missing:
        log.warning(
            "warning: %s is missing, so %s is not compared with it and no gate is written",
            ", and ".join(f"{data}/{name}" for name in missing),
            path,
        )
    else:
        shutil.rmtree(data / "gates" / table, ignore_errors=True)  # it may be the gate of other data
    found: list[tuple[str, list[Verdict]]] = []  # the verdicts by folder or file
    counted: dict[str, dict[str, pd.Series]] = {}  # values of the profiled columns by category
    try:
        if gate.check_category:
            for tables in bar(categories, f"validate {table}: categories"):
                if not tables.has(table):
                    raise UserError(f"{tables.folder(table)} does not exist; run `dvc repro` or `dvc pull` to get it")
                unit = gate.stage if table in {"groups", "exclusions"} else f"{gate.stage}@{tables.category}"
                found.append((str(tables.folder(table)), gate.check_category(tables)))
                require(*found[-1], partial(_hint, table, unit, data))
        found.append((str(path), gate.check_all(params, data)))
        require(*found[-1], partial(_hint, table, gate.stage, data))
        if table in profile.PROFILED_COLUMNS:
            counted = _write_profile(table, params, data)
    finally:
        if found:
            _write_docs(table, found, counted, params, data)
    if not missing:
        _write_gate(table, gate, params, data)


def _hint(table: str, stage: str, data: Path) -> str:
    """Return what to do about a failed table that a stage wrote."""
    own_data = data.resolve() == Path("data").resolve()  # DVC's status here does not apply to other data folders
    if own_data and (stale := earliest_stale(stage)):
        return f"{stale} is stale: run `dvc repro {stage}`"
    rerun = f"run the stage again with `dvc repro --force --single-item {stage}`"
    if table == "exclusions":
        return f"see {data}/exclusions; raise validation.near_duplicate_fraction if this is acceptable, or {rerun}"
    if table == "raw":
        return (
            f"check these rows in the source files; raise download.max_bad_fraction if they are acceptable, or {rerun}"
        )
    if table == "profiles":
        return f"if this change of the data is correct, run `effimini accept` and commit {ACCEPTED}"
    return f"change the named limit if this is acceptable, or {rerun}; if it fails again, the stage has a bug"


def _write_gate(table: str, gate: Gate, params: Params, data: Path) -> None:
    with files.atomic_folder(data / "gates" / table) as out:
        for category in params.source.categories if gate.check_category else ():
            content = {"table": table, "category": category, "files": _files(data / table / category, data)}
            writers.write_json(out / f"{category}.json", content | {"passed": True})
        content = {"table": table, "categories": params.source.categories}
        if not gate.check_category and gate.hash_files:
            content["files"] = _files(data / (gate.path or table), data)
        writers.write_json(out / "all.json", content | {"passed": True})


def _files(path: Path, data: Path) -> dict[str, _File]:
    """Return the hashes and row counts of the checked files; for shards of the manifest, which has their hashes."""
    paths = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in {".parquet", ".json"})
    return {
        file.relative_to(data).as_posix(): _File(
            files.sha256(file), columns.rows_of(file) if file.suffix == ".parquet" else None
        )
        for file in paths
    }


def _write_profile(table: str, params: Params, data: Path) -> dict[str, dict[str, pd.Series]]:
    """Write the profile of a table's categories; return the counts of the values by category and column."""
    list_files = partial(bucket_files, table=table) if table == "items" else part_files
    counted, found = {}, []
    for category in params.source.categories:
        paths = list_files(data / table / category)
        counted[category] = profile.value_counts(table, paths)
        found.append(profile.profile_of(table, category, sum(map(columns.rows_of, paths)), counted[category]))
    writers.write_csv(data / "profiles" / f"{table}.csv", pd.concat(found))
    return counted


def _write_docs(
    table: str,
    found: Sequence[tuple[str, list[Verdict]]],
    counted: Mapping[str, Mapping[str, pd.Series]],
    params: Params,
    data: Path,
) -> None:
    """Write the Data Docs of a table; `counted` is the result of `_write_profile`, empty if there is no profile."""
    own: pd.DataFrame | None = None
    drift: pd.DataFrame | None = None
    added: Sequence[str] = ()
    if table == "profiles":
        now, accepted = profiles(data), profile.read_profile(data.parent / ACCEPTED)
        drift, added = profile.compare_profiles(now, accepted), profile.new_columns(now, accepted)
    elif counted:
        own = profile.read_profile(data / "profiles" / f"{table}.csv")
    folder = data.parent / "results/validation"
    rows = [
        {"where": where, "level": verdict.level} | msgspec.to_builtins(verdict)
        for where, verdicts in found
        for verdict in verdicts
    ]
    writers.write_json(folder / f"{table}.json", rows)
    demo = params.source.kind == "demo"
    with files.atomic_write(folder / f"{table}.html") as out:
        page = docs.docs_page(
            table, list(GATES), found, demo=demo, profile=own, counted=counted, drift=drift, added=added
        )
        out.write_text(page, encoding="utf-8")
