"""Validate: the gate behind a table, which wrong data does not pass.

In: ``data/<table>/`` of all categories, and what it was made from. Out:

- ``data/gates/<table>/`` with ``<category>.json`` a category, which depends on that category alone, and ``all.json``
  for the rest: what was checked, by its hashes, and that it passed;
- ``results/validation/<table>.json`` and ``.html``, the Data Docs: every expectation with its counts, its severity and
  example keys, whether the table passed or not;
- ``data/profiles/<table>.csv`` for items, sample and images, and for images ``data/near_duplicates.csv``: the images
  of one split that are near duplicates of another split's.

Guaranteed: a table with an expectation that fails leaves no gate behind, so that no stage behind it runs; a gate says
nothing of what the expectations allow, so that another budget makes nothing behind it anew; the same data gives the
same bytes.
"""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import pandas as pd

from prep.core import files, writers
from prep.core.buckets import bucket_files
from prep.core.errors import UserError
from prep.core.params import Params, narrow
from prep.core.parts import part_files
from prep.core.pipeline import warn_of_strays
from validation import columns, docs, profile
from validation.checks import ACCEPTED, GATES, READS, CategoryTables, Gate, profiles
from validation.stale import earliest_stale
from validation.verdicts import Verdict, require

log = logging.getLogger(__name__)


class _File(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that was checked."""

    sha256: str
    rows: int | None = None  # of a table


def validate(table: str, params: Params, data: Path = Path("data")) -> None:
    """Check a table, and write its gate and its Data Docs.

    Where the tables that it is compared with are not there (a clone that pulled the shards alone), what does not need
    them is checked, a warning says so, and no gate is written.

    Args:
        table: a key of `GATES`.
        params: of the run; ``source.categories`` are checked.
        data: the folder of all tables; the Data Docs go to results/validation beside it.

    Raises:
        UserError: there is no such table, it is absent, or an expectation fails.
    """
    if table not in GATES:
        raise UserError(f"{table} is no table; the tables are {', '.join(GATES)}")
    gate = GATES[table]
    params = narrow(params, (*READS, *gate.reads))
    held = data / (gate.path or table)
    if not held.exists():
        raise UserError(f"{held} does not exist; run `dvc repro`, or `dvc pull`, to have it")
    warn_of_strays(data, [table], params.source.categories)
    places = [CategoryTables(params, data, category) for category in params.source.categories]
    absent = [name for name in gate.compared_with if not all(tables.has(name) for tables in places)]
    if absent:
        log.warning(
            "warning: %s is not here, so %s is not compared with it, and no gate is written",
            " and ".join(f"{data}/{name}" for name in absent),
            held,
        )
    else:
        shutil.rmtree(data / "gates" / table, ignore_errors=True)  # a gate of other data must not stand
    found: list[tuple[str, list[Verdict]]] = []  # where, and what was found
    try:
        if gate.check_category:
            for tables in places:
                if not tables.has(table):
                    raise UserError(
                        f"{tables.folder(table)} does not exist; run `dvc repro`, or `dvc pull`, to have it"
                    )
                unit = gate.stage if table == "groups" else f"{gate.stage}@{tables.category}"
                found.append((str(tables.folder(table)), gate.check_category(tables)))
                require(*found[-1], partial(_hint, table, unit, data))
        found.append((str(held), gate.check_all(params, data)))
        require(*found[-1], partial(_hint, table, gate.stage, data, of_all=True))
        if table in profile.PROFILED_COLUMNS:
            _write_profile(table, params, data)
    finally:
        if found:
            _write_docs(table, found, params, data)
    if not absent:
        _write_gate(table, gate, params, data)


def present_tables(data: Path) -> list[str]:
    """Return the tables that are in a folder of tables, in the order of the stages.

    Raises:
        UserError: there is none.
    """
    found = [table for table, gate in GATES.items() if (data / (gate.path or table)).exists()]
    if not found:
        raise UserError(f"{data} holds no table; run `dvc repro`, or `dvc pull`, to have one")
    return found


def accept(data: Path = Path("data")) -> Path:
    """Take the profiles of the data as those that later runs are compared with; return the file written.

    Args:
        data: the folder of all tables; the file is beside it.

    Raises:
        UserError: there is no profile.
    """
    found = profiles(data)
    if found.empty:
        raise UserError(f"{data / 'profiles'} holds no profile; run `dvc repro` to have them")
    with files.atomic_write(data.parent / ACCEPTED) as out:
        _write_csv(found, out)
    return data.parent / ACCEPTED


def _hint(table: str, stage: str, data: Path, *, of_all: bool = False) -> str:
    """Return what can be done about a table that a stage made."""
    here = data.resolve() == Path("data").resolve()  # what DVC says here says nothing of another clone's tables
    if here and (stale := earliest_stale(stage)):
        return f"{stale} is stale: run `dvc repro {stage}`"
    again = f"make it again with `dvc repro --force --single-item {stage}`"
    if table == "images" and of_all:
        return f"see data/near_duplicates.csv; set validation.near_duplicate_fraction to what you accept, or {again}"
    if table == "raw":
        return f"look at these rows in the source's files, set download.max_bad_fraction to what you accept, or {again}"
    if table == "profiles":
        return f"if the data should be like this now, run `effimini accept` and commit {ACCEPTED}"
    return (
        f"set the parameter named to what you accept, or {again}; if that fails too, the rows show a fault of the stage"
    )


def _write_gate(table: str, gate: Gate, params: Params, data: Path) -> None:
    with files.atomic_folder(data / "gates" / table) as out:
        for category in params.source.categories if gate.check_category else ():
            about = {"table": table, "category": category, "files": _files(data / table / category, data)}
            writers.write_json(out / f"{category}.json", about | {"passed": True})
        about = {"table": table, "categories": params.source.categories}
        if not gate.check_category and gate.hash_files:
            about["files"] = _files(data / (gate.path or table), data)
        writers.write_json(out / "all.json", about | {"passed": True})


def _files(held: Path, data: Path) -> dict[str, _File]:
    """Return hash and rows of the files checked; for shards the manifest, which holds the hashes."""
    paths = [held] if held.is_file() else sorted(p for p in held.iterdir() if p.suffix in {".parquet", ".json"})
    return {
        path.relative_to(data).as_posix(): _File(
            files.sha256(path), columns.rows_of(path) if path.suffix == ".parquet" else None
        )
        for path in paths
    }


def _write_profile(table: str, params: Params, data: Path) -> None:
    """Write the profile of a table's categories."""
    list_files = partial(bucket_files, table=table) if table == "items" else part_files
    found = pd.concat(
        [profile.profile(table, category, list_files(data / table / category)) for category in params.source.categories]
    )
    with files.atomic_write(data / "profiles" / f"{table}.csv") as out:
        _write_csv(found, out)


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def _write_docs(table: str, found: Sequence[tuple[str, list[Verdict]]], params: Params, data: Path) -> None:
    """Write the Data Docs of a table."""
    about: pd.DataFrame | None = None
    moved: pd.DataFrame | None = None
    fresh: Sequence[str] = ()
    if table == "profiles":
        now, accepted = profiles(data), profile.read_profile(data.parent / ACCEPTED)
        moved, fresh = profile.compare_profiles(now, accepted), profile.new_columns(now, accepted)
    elif (path := data / "profiles" / f"{table}.csv").exists():
        about = profile.read_profile(path)
    folder = data.parent / "results/validation"
    rows = [
        {"where": where, "level": verdict.level} | msgspec.to_builtins(verdict)
        for where, verdicts in found
        for verdict in verdicts
    ]
    writers.write_json(folder / f"{table}.json", rows)
    demo = params.source.kind == "demo"
    with files.atomic_write(folder / f"{table}.html") as out:
        page = docs.docs_page(table, list(GATES), found, demo=demo, profile=about, moved=moved, fresh=fresh)
        out.write_text(page, encoding="utf-8")
