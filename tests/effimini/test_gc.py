"""`effimini gc`: what no version needs is freed, and nothing that one needs."""

import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from effimini.gc import Collection, gc, gc_table
from prep.core import files, locks
from prep.core.errors import UserError
from prep.core.params import Params
from tests.clone import Clone

Digests = Callable[[Path], dict[str, str]]


def freed(found: Collection) -> set[str]:
    return {entry.folder for entry in found.entries if not entry.kept}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> tuple[Path, Params, Params]:
    """A store with what two runs needed, and the parameters of both; the second one's shards are here."""
    folder = tmp_path_factory.mktemp("made")
    small = {"source.categories": ["Demo_Toys"], "source.demo.items": 60}
    first, second = make_params(**small), make_params(**small | {"images.resolution": 16, "source.demo.seed": 8})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(folder / ".effimini"))
        run_to(first, folder / "data", "shard")
        run_to(second, folder / "data", "shard")
    return folder, first, second


@pytest.fixture
def project(made: tuple[Path, Params, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder in which the test works; the store stays in its place, which names images of a catalogue."""
    folder = tmp_path / "project"
    shutil.copytree(made[0], folder)
    monkeypatch.chdir(folder)
    (made[0] / ".effimini").rename(made[0] / "away")
    monkeypatch.setenv("EFFIMINI_STORE", str(made[0] / ".effimini"))
    shutil.move(folder / ".effimini", made[0] / ".effimini")
    yield folder
    shutil.rmtree(made[0] / ".effimini")
    (made[0] / "away").rename(made[0] / ".effimini")


def test_what_the_parameters_do_not_need_is_freed_and_the_rest_is_as_it_was(
    project: Path, made: tuple[Path, Params, Params], run_to: Callable[..., None], digests: Digests
) -> None:
    store, second = files.store(), made[2]
    before = digests(store)
    listed = gc(second)
    assert digests(store) == before
    assert not listed.forced
    places = freed(listed)
    assert {place.partition("/")[0] for place in places} == {"demo", "images", "shards"}
    assert len(places) == 3
    done = gc(second, force=True)
    assert freed(done) == places
    after = digests(store)
    assert after.items() < before.items()
    assert sum(entry.bytes for entry in gc(second).entries) == sum(entry.bytes for entry in done.entries if entry.kept)
    shards = digests(project / "data/shards")
    run_to(second, project / "data", "shard")
    assert digests(project / "data/shards") == shards
    assert digests(store) == after  # nothing was made again
    assert freed(gc(second, force=True)) == set()
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(gc_table(listed))
    text = console.export_text()
    assert "to free them, repeat this with --force" in text
    assert "dvc gc --workspace --dry" in text


def test_only_as_much_is_freed_as_the_limit_asks_for_the_oldest_first(
    project: Path, made: tuple[Path, Params, Params]
) -> None:
    second = made[2]
    listed = gc(second)
    total = sum(entry.bytes for entry in listed.entries)
    assert freed(gc(second, max_gb=total / 1e9)) == set()
    (catalogue,) = (entry for entry in listed.entries if not entry.kept and entry.content == "demo catalogue")
    for path in (files.store() / catalogue.folder).rglob("*"):
        os.utime(path, (1, 1))
    os.utime(files.store() / f"{catalogue.folder}.sha256", (1, 1))
    done = gc(second, max_gb=(total - 1) / 1e9, force=True)
    assert freed(done) == {catalogue.folder}
    assert freed(gc(second, max_gb=0)) == freed(listed) - {catalogue.folder}  # what is needed stays


def test_nothing_is_freed_while_a_run_writes(
    project: Path, made: tuple[Path, Params, Params], digests: Digests
) -> None:
    before = digests(files.store())
    with (
        locks.hold(Path("data/images/Demo_Toys")),
        pytest.raises(UserError, match="data/images/Demo_Toys is in use by a run of this project; wait"),
    ):
        gc(made[2], force=True)
    after = {name: digest for name, digest in digests(files.store()).items() if not name.endswith(".lock")}
    assert after == {name: digest for name, digest in before.items() if not name.endswith(".lock")}


def test_other_things_in_the_store(project: Path, made: tuple[Path, Params, Params]) -> None:
    second = made[2]
    hub = dataclasses.replace(second.source, kind="hub", revision="1" * 40)
    of_hub = dataclasses.replace(second, source=hub)
    store = files.store()
    for name, age in {"aaaa": 2000, "bbbb": 1000}.items():
        for category in ("Demo_Toys", "Books"):
            path = store / "raw" / name / f"raw/review_categories/{category}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            for file in (path, path.with_name(f"{path.name}.sha256")):
                file.write_text(name)
                os.utime(file, (age, age))
    for name in ("cache/0", "features/a.npy", "train/x/y", "mine/z", "tokens/0.1.arrow", "tmpold/a"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("x")
    os.utime(store / "features/a.npy", (1, 1))
    os.utime(store / "tmpold", (1, 1))
    found = {entry.folder: entry.kept for entry in gc(of_hub).entries}
    assert {name: kept for name, kept in found.items() if name.split("/")[0] not in {"demo", "images", "shards"}} == {
        **{f"raw/{name}/raw/review_categories/Books.jsonl": False for name in ("aaaa", "bbbb")},
        "raw/aaaa/raw/review_categories/Demo_Toys.jsonl": True,
        "raw/bbbb/raw/review_categories/Demo_Toys.jsonl": False,
        "cache": False,
        "features": False,
        "train": True,
        "mine": True,
        "tokens": False,
        "tmpold": False,
        "near_duplicates": True,
    }
    gc(of_hub, force=True)
    assert not (store / "raw/bbbb/raw/review_categories/Demo_Toys.jsonl.sha256").exists()
    assert (store / "raw/aaaa/raw/review_categories/Demo_Toys.jsonl.sha256").exists()


def test_a_tag_keeps_what_its_parameters_need(project: Path, made: tuple[Path, Params, Params]) -> None:
    clone, second = Clone(project), made[2]
    with pytest.raises(UserError, match="git for-each-ref fails .*; run this in a git repository with commits"):
        gc(second, tags=True)
    clone.run("git", "init", "-q")
    text = (Path(__file__).parents[2] / "params.yaml").read_text()
    text = text.replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[Demo_Toys]").replace("items: 500", "items: 60")
    (project / "params.yaml").write_text(text.replace("resolution: 64", "resolution: 32"))
    clone.run("git", "add", "params.yaml")
    clone.run("git", "commit", "-qm", "first")
    clone.run("git", "tag", "v1")
    (project / "params.yaml").write_text("train: {}\n")
    clone.run("git", "commit", "-qam", "another program's")
    clone.run("git", "tag", "v0")
    with pytest.raises(UserError, match="params.yaml of v0 cannot be read by this version of EffiMini"):
        gc(second, tags=True)
    clone.run("git", "tag", "-d", "v0")
    found = gc(second, tags=True)
    assert found.dvc == "dvc gc --workspace --all-tags"
    assert found.versions == ["working folder", "v1"]
    needed = {entry.content for entry in found.entries if entry.kept and entry.why == "v1 needs it"}
    assert needed == {"demo catalogue", "images of a category"}
    assert freed(found) == {"shards"}  # v1's manifest was not committed with DVC
