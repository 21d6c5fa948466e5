"""Items that were removed: no file holds them, they do not come back, and nothing else moves."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from effimini import search
from effimini.remove import holding, remove
from prep import removed
from prep.core import pipeline, writers
from prep.core.errors import UserError
from prep.core.keys import item_key
from prep.core.params import Params
from shards.images import journal
from tests.clone import ROOT, SMALL, commit_project
from tests.prep.catalogue.test_convert import COLUMNS, PRODUCTS, csv_file, png
from validation.validate import validate

Digests = Callable[[Path], dict[str, str]]
CHANGES = {
    "sample.fraction": 1.0,
    "sample.bands": 2,
    "shards.samples_per_shard": 7,
    "source.demo.items": 120,
    "decontaminate.reasons": ["same_product_title"],
}


def places(data: Path) -> dict[str, str]:
    """Return the tar of each item."""
    return {
        key: str(path.relative_to(data / "shards").with_suffix(".tar"))
        for path in (data / "shards").rglob("*.arrow")
        for key in pa.ipc.open_file(path.read_bytes()).read_all()["key"].to_pylist()
    }


def groups_of(data: Path) -> dict[str, str]:
    tables = [pq.read_table(path) for path in (data / "groups").rglob("*.parquet")]
    return {row["parent_asin"]: row["group"] for table in tables for row in table.to_pylist()}


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> tuple[Path, Params]:
    """A project before a removal: data and store."""
    folder = tmp_path_factory.mktemp("whole")
    params = make_params(**CHANGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder / ".effimini"))
        run_to(params, folder / "data")
    return folder, params


@pytest.fixture
def project(whole: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Params]:
    """A copy of the project, in which the test works."""
    folder = tmp_path / "project"
    shutil.copytree(whole[0], folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EFFIMINI_STORE", ".effimini")
    return folder / "data", whole[1]


def chosen(data: Path) -> list[str]:
    """Return an item of train, one of test, one that is the first of its group, and one that is in no tar."""
    where, group = places(data), groups_of(data)
    repeated = {
        other
        for path in (data / "exclusions").rglob("*.parquet")
        for other in pq.read_table(path)["other_asin"].to_pylist()
    }
    heads = [one for one in where if one in group.values() and sum(g == one for g in group.values()) > 1]
    alone = sorted(where.keys() - set(heads) - repeated)
    train = next(one for one in alone if "train-00-000" in where[one])
    test = next(one for one in alone if "test" in where[one])
    head = next(one for one in sorted(heads) if one not in repeated)
    return [train, test, head, next(one for one in sorted(group) if one not in where and one not in repeated)]


def strata_of(data: Path, category: str) -> pd.DataFrame:
    """Return the strata of a category, by split, rating and count."""
    table = pd.read_csv(data / f"sample/{category}/strata.csv")
    return table.set_index(["split", "average_rating", "rating_number_from"])


def test_a_removed_item_is_in_no_file_after_the_next_run_and_only_its_tars_change(
    project: tuple[Path, Params], digests: Digests, run_to: Callable[..., None]
) -> None:
    data, params = project
    ids, before, old = chosen(data), places(data), digests(data / "shards")
    populations = {category: strata_of(data, category) for category in params.source.categories}
    held = {path for path, _ in holding(ids, params, data)}
    assert {path.relative_to(data).parts[0] for path in held if path.is_relative_to(data)} >= {
        *("raw", "items", "groups", "sample", "images", "shards")
    }
    assert any(path.suffix == ".journal" for path in held)
    steps = remove(ids, params, data).next
    commits = [f"dvc commit --force download@{category}" for category in params.source.categories]
    assert steps[:3] == [*commits, "dvc repro"]  # of all: the first removal gives each a list
    assert steps[-1] == f"effimini remove --verify {' '.join(ids)}"
    assert not [path for path, _ in holding(ids, params, data) if not path.is_relative_to(data)]  # the store is clean
    raw = digests(data / "raw")
    run_to(params, data)
    assert digests(data / "raw") == raw  # what `remove` wrote is what the stage writes
    assert list(holding(ids, params, data)) == []
    now = places(data)
    assert now == {key: tar for key, tar in before.items() if key not in ids}
    affected = {before[one] for one in ids if one in before}
    assert len(affected) >= 2
    tars = {name for name in old if name.endswith(".tar")}
    new = digests(data / "shards")
    assert {name for name in tars if new.get(name) != old[name]} == affected
    for table in ("raw", "items", "groups", "sample", "images", "exclusions", "shards", "weights"):
        validate(table, params, data)
    reports = [json.loads(path.read_text()) for path in (data / "raw").rglob("report.json")]
    assert sum(report["tables"]["items"]["dropped"].get("removed", 0) for report in reports) == len(ids)
    for name, had in populations.items():
        now_has = strata_of(data, name)
        fewer = had["population"].reindex(now_has.index) - now_has["population"]
        assert fewer.tolist() == now_has.get("removed", 0 * fewer).tolist()


@pytest.mark.slow
def test_another_item_is_removed_later_and_the_first_stays_away(
    project: tuple[Path, Params], digests: Digests, run_to: Callable[..., None]
) -> None:
    data, params = project
    first, second, head, _ = chosen(data)
    before = places(data)
    remove([first], params, data)
    run_to(params, data)
    remove([second, head], params, data)
    assert remove([first, second], params, data).next[0] == "dvc repro"  # again
    shutil.rmtree(Path(".effimini/shards"))
    Path(".effimini/shards").mkdir()
    Path(".effimini/shards/late.tar").write_text(first)
    shutil.copytree(data, data.parent / "few/data", ignore=shutil.ignore_patterns("raw"))
    shutil.copytree("removed", data.parent / "few/removed")
    remove([first], params, data.parent / "few/data")  # a clone without raw tables cleans up
    assert not Path(".effimini/shards/late.tar").exists()
    with pytest.raises(UserError, match="few/data/raw/Demo_Kitchen has no items; run `dvc pull data/raw/Demo_Kitchen`"):
        remove(["another"], params, data.parent / "few/data")
    shutil.rmtree("few")
    run_to(params, data)
    assert list(holding([first, second, head], params, data)) == []
    assert places(data) == {key: tar for key, tar in before.items() if key not in {first, second, head}}


def test_what_a_killed_removal_left_is_gone_after_the_next_one(project: tuple[Path, Params]) -> None:
    data, params = project
    item = chosen(data)[0]
    before = {category: data / f"raw/.{category}.old-01234567.partial" for category in params.source.categories}
    for category, left in before.items():
        shutil.copytree(data / "raw" / category, left)
        remove([item], params, data)
        assert not left.exists()


def test_a_table_that_a_killed_removal_had_moved_away_is_back_after_the_next_one(project: tuple[Path, Params]) -> None:
    data, params = project
    item = chosen(data)[0]
    remove([item], params, data)
    tables = {category: data / "raw" / category for category in params.source.categories}
    before = {category: sorted(path.name for path in table.iterdir()) for category, table in tables.items()}
    for category, table in tables.items():
        table.rename(data / f"raw/.{category}.old-01234567.partial")
        remove([item], params, data)
        assert sorted(path.name for path in table.iterdir()) == before[category]


def test_the_list_names_no_item_and_an_unknown_id_changes_nothing(project: tuple[Path, Params]) -> None:
    data, params = project
    with pytest.raises(UserError, match="B000NOTHERE is in no category of .*raw, and was not removed before"):
        remove(["B000NOTHERE"], params, data)
    assert not (data.parent / removed.FOLDER).exists()
    ids = chosen(data)
    remove(ids, params, data)
    lists = sorted((data.parent / removed.FOLDER).iterdir())
    assert [path.stem for path in lists] == list(params.source.categories)
    assert list(search.find(lists, ids)) == []
    lists[0].write_text("item\nnothing\n")
    with pytest.raises(UserError, match="is not a list of removed items .*; restore it with git"):
        removed.read_removed(data, lists[0].stem)


def test_the_image_that_another_item_has_is_kept(project: tuple[Path, Params]) -> None:
    data, params = project
    rows = [row for path in (data / "raw").rglob("items-*.parquet") for row in pq.read_table(path).to_pylist()]
    owners: dict[str, set[str]] = {}
    for row in rows:
        for url in filter(None, (row["hi_res"], row["large"])):
            owners.setdefault(url, set()).add(row["parent_asin"])
    stores = sorted(Path(".effimini/images").rglob("*.journal"))
    stored = {url for path in stores for url in journal.urls(path)}
    shared, asins = next((url, asins) for url, asins in owners.items() if len(asins) > 1 and url in stored)
    remove([min(asins)], params, data)
    assert shared in {url for path in stores for url in journal.urls(path)}
    remove(sorted(asins), params, data)
    assert shared not in {url for path in stores for url in journal.urls(path)}


def test_every_kind_of_file_is_searched(tmp_path: Path) -> None:
    texts = ["B000000001", "B000000002"]
    for path in (tmp_path / "cache/ab/c", tmp_path / "venv/x", tmp_path / ".git/x"):
        path.parent.mkdir(parents=True)
    table = pa.table({"a": ["x" * 30, "B000000001"], "b": [[], ["B000000002"]], "n": [1, 2], "c": [b"", b"\xff"]})
    pq.write_table(pa.table({"a": pa.array(texts).dictionary_encode()}), tmp_path / "categorical")
    writers.write_table(tmp_path / "cache/ab/c", table)  # as in DVC's cache, without a suffix
    (tmp_path / "lines").write_bytes(gzip.compress(b"." * 100 + b"B000000001"))
    (tmp_path / "edge").write_bytes(b"." * ((1 << 24) - 5) + b"B000000002")
    (tmp_path / "link").hardlink_to(tmp_path / "edge")
    (tmp_path / "none.txt").write_text("B00000000")
    (tmp_path / "damaged").write_bytes(b"PAR1 B000000001")
    (tmp_path / "venv/pyvenv.cfg").touch()
    for skipped in ("venv/x", ".git/x", "ids.txt"):
        (tmp_path / skipped).write_text(texts[0])
    paths = search.all_files([tmp_path, tmp_path / "cache"], [tmp_path / "ids.txt"])
    found = {path.relative_to(tmp_path).as_posix(): held for path, held in search.find(paths, texts)}
    assert found == {
        "cache/ab/c": texts, "lines": texts[:1], "edge": texts[1:], "link": texts[1:], "damaged": texts[:1],
        "categorical": texts
    }  # fmt: skip


def test_the_lists_are_dependencies(tmp_path: Path, project: tuple[Path, Params]) -> None:
    data, params = project
    shutil.copyfile(ROOT / "dvc.yaml", "dvc.yaml")
    pipeline.update_dvc_yaml(params)
    text = Path("dvc.yaml").read_text()
    remove(chosen(data)[:1], params, data)
    stages = YAML(typ="safe", pure=True).load(Path("dvc.yaml").read_text())["stages"]
    listed = [name for name, stage in stages.items() if "removed/${item.category}.csv" in stage["deps"]]
    assert listed == ["download", "sample"]
    pipeline.check_dvc_yaml(params)
    shutil.rmtree("removed")
    pipeline.update_dvc_yaml(params)
    assert Path("dvc.yaml").read_text() == text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_team_removes_an_item_with_dvc(tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the encoder is that the parameters name
    clone = commit_project(tmp_path / "one", SMALL | {"shards.samples_per_shard": 4})
    clone.run("dvc", "repro", "-q", "validate_shards", "weights")
    clone.run("git", "add", "-A")
    clone.run("git", "commit", "-qm", "before")
    data = clone.folder / "data"
    before, old = places(data), digests(data / "shards")
    one = next(key for key in sorted(before) if "train" in before[key])
    (clone.folder / "ids.txt").write_text(f"{one}\n")
    said = clone.run("effimini", "remove", "--file", "ids.txt").stderr
    assert "    dvc commit --force download@Demo_Toys\n    dvc repro\n" in said
    clone.run("dvc", "commit", "-q", "--force", "download@Demo_Toys")
    done = clone.run("dvc", "repro", "validate_shards", "weights").stdout
    assert "> effimini join Demo_Toys" in done
    assert "> effimini download Demo_Toys" not in done
    new = digests(data / "shards")
    assert {name for name in old if name.endswith(".tar") and new.get(name) != old[name]} == {before[one]}
    verified = clone.run("effimini", "remove", "--verify", "--file", "ids.txt", check=False)
    assert verified.returncode == 1
    assert all(line.startswith(str(clone.folder / ".dvc/cache")) for line in verified.stdout.splitlines())
    clone.run("git", "add", "removed", "dvc.yaml", "dvc.lock")
    clone.run("git", "commit", "-qm", "Remove items")
    clone.run("dvc", "gc", "-q", "--workspace", "--force")
    assert clone.run("effimini", "remove", "--verify", "--file", "ids.txt").stdout == ""
    clone.run("dvc", "repro", "-q", "--force", "download")  # from the source, which still has it
    assert digests(data / "shards") == new
    assert "up to date" in clone.run("dvc", "status", "validate_shards").stdout


def test_a_product_of_a_table_is_removed_by_its_own_id(
    tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    (folder / "photos").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EFFIMINI_STORE", ".effimini")
    for n in range(len(PRODUCTS)):
        (folder / f"photos/{n}.png").write_bytes(png(4 * n))
    table = csv_file(folder / "products.csv", ",")
    params = make_params(
        **{
            "source.kind": "table",
            "source.location": str(table),
            "source.reviews": False,
            "source.categories": ["Lamps"],
            "source.table": {"columns": COLUMNS, "rating_scale": [1, 5], "image_folder": ""},
            "sample.require": ["title"],
            "sample.min_chars": 0,
            "sample.fraction": 1.0,
            "decontaminate.reasons": [],
        }
    )
    run_to(params, folder / "data")
    before = places(folder / "data")
    name = "SKU-003/ä.1"
    assert remove([name], params, folder / "data").next[-1] == f"effimini remove --verify '{name}'"
    run_to(params, folder / "data")
    after = places(folder / "data")
    assert before.keys() - after.keys() == {item_key(name)}
    assert all(before[key] == place for key, place in after.items())
    holders = [path.name for path, _ in holding([name], params, folder / "data")]
    assert holders == ["products.csv", "meta_Lamps.jsonl"]  # the source, and what it is converted to
    csv_file(table, ",", [row for row in PRODUCTS if row["sku"] != name])
    shutil.rmtree(folder / ".effimini/table")
    run_to(params, folder / "data")
    assert places(folder / "data") == after
    assert list(holding([name], params, folder / "data")) == []
