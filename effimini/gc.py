"""Free what no kept version needs in the local store.

Input: the parameters of the kept versions, the manifests of their shards, and the local store. Output: what is in the
store, by folder, with its size and why it is kept or not; with ``force`` the rest is removed. Guarantees: nothing that
a kept version needs is removed, and nothing at all while a run of this project writes; what cannot be told is kept. Of
a raw file, the newest versions are taken for those of the kept revisions.
"""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from filelock import FileLock, Timeout

from effimini.git import git
from prep.catalogue.convert import images_of, place_of
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params, load_params
from prep.source import PATHS, demo_place
from shards import fetch
from shards.location import ShardLocation
from shards.manifest import Manifest

_DAY = 24 * 3600  # seconds
# Folders of the store with one answer for all that they have: what it is, whether it is kept, and why.
_AS_A_WHOLE = {
    "cache": ("remote shards", False, "they can be read again"),
    "near_duplicates": ("searches", True, "they are small, and take long to make again"),
    "rejects": ("rejected lines", True, "they are small"),
    "train": ("interrupted trainings", True, "they can be resumed"),
}


class Version(NamedTuple):
    """A kept version."""

    name: str  # "" for the working folder, else a tag or a branch
    params: Params
    shards: str  # folder or URL of its shards


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Files of the local store that are kept or freed together."""

    folder: str  # in the store
    content: str  # what it is, in words
    files: int
    bytes: int
    own_bytes: int  # of files that no output and no other version links to: what removing them frees
    changed: float  # when the last of them was written, seconds since 1970
    kept: bool
    why: str
    paths: list[str] = []  # not in the result, since they are many


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the local store."""

    store: str
    entries: list[Entry]
    freed_bytes: int  # or would be, without `force`
    forced: bool
    versions: list[str]
    dvc: str  # the command for DVC's cache


class Needs(NamedTuple):
    """What the kept versions need of the local store."""

    folders: dict[str, str]  # names of folders, such as images/0123456789abcdef, and the version that needs each
    tars: dict[str, str]  # sha256 of tars and indexes, likewise
    raw: dict[str, set[tuple[str, str]]]  # places and revisions of raw files, by name without ending


def gc(
    params: Params,
    data: Path = Path("data"),
    *,
    force: bool = False,
    tags: bool = False,
    branches: bool = False,
    max_gb: float | None = None,
) -> Collection:
    """List the local store, and free what no kept version needs.

    Args:
        params: the parameters of the working folder, whose version is always kept.
        data: the folder of the stages' tables.
        force: whether to remove anything.
        tags: whether the versions of all git tags are kept too.
        branches: whether those of all git branches are.
        max_gb: free only as much as the store has above this, the oldest first; None: everything that is not needed.

    Raises:
        UserError: a version cannot be read, or a run of this project writes.
    """
    store = files.store()
    versions = [Version("", params, str(data / "shards")), *_other_versions(tags, branches)]
    entries = sorted(
        _entries(store, data, _needs(versions)), key=lambda entry: (entry.folder, entry.content, entry.kept)
    )
    surplus = sum(entry.bytes for entry in entries) - max_gb * 1e9 if max_gb is not None else float("inf")
    freed = 0
    chosen = []
    for entry in sorted(entries, key=lambda entry: entry.changed):
        if not entry.kept and freed < surplus:
            chosen.append(entry)
            freed += entry.bytes
    if force and chosen:
        if running := next(_held([store, data, Path("models"), Path("results")]), ""):
            raise UserError(f"{running} is in use by a run of this project; wait for it to end, then run again")
        for path in [Path(path) for entry in chosen for path in entry.paths]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    within = [
        entry
        if entry.kept or entry in chosen
        else msgspec.structs.replace(entry, kept=True, why=f"{entry.why}; the store is within --max-gb without it")
        for entry in entries
    ]
    return Collection(
        store=str(store),
        entries=[msgspec.structs.replace(entry, paths=[]) for entry in within],
        freed_bytes=sum(entry.own_bytes for entry in chosen),
        forced=force,
        versions=[version.name or "working folder" for version in versions],
        dvc=" ".join(["dvc gc --workspace", *["--all-tags"] * tags, *["--all-branches"] * branches]),
    )


def gc_table(found: Collection) -> Any:
    """Return the result of `gc` as a table to print."""
    from rich.console import Group  # noqa: PLC0415 -- only for people
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    shown = Table("folder", "content", title=f"{found.store}, for {', '.join(map(escape, found.versions))}")
    for name in ("files", "MB", "days old"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    shown.add_column("because")
    for entry in found.entries:
        age = f"{max(time.time() - entry.changed, 0) / _DAY:,.0f}"
        state = "kept" if entry.kept else "freed" if found.forced else "not needed"
        cells = escape(entry.folder), entry.content, f"{entry.files:,}", f"{entry.bytes / 1e6:,.1f}"
        shown.add_row(*cells, age, state, escape(entry.why))
    freed = f"{found.freed_bytes / 1e6:,.1f} MB"
    verb = f"{freed} were freed" if found.forced else f"{freed} would be freed; to free them, repeat this with --force"
    return Group(shown, f"{verb}. DVC's cache is DVC's: {found.dvc} --dry lists what it would remove.")


def _other_versions(tags: bool, branches: bool) -> Iterator[Version]:
    """Yield the versions of git tags and branches that have a params.yaml.

    Raises:
        UserError: there is no git repository, or the parameters of a version cannot be read.
    """
    kinds = ["refs/tags"] * tags + ["refs/heads"] * branches
    for name in git(files.project(), "for-each-ref", "--format=%(refname:short)", *kinds).splitlines() if kinds else ():
        if not git(files.project(), "ls-tree", name, "params.yaml"):
            continue
        path = files.store() / "params.yaml"  # for messages, and read at once
        try:
            with files.atomic_write(path, durable=False) as partial:
                partial.write_text(git(files.project(), "show", f"{name}:params.yaml"), encoding="utf-8")
            params = load_params(path)
        except UserError as error:
            raise UserError(
                f"params.yaml of {name} cannot be read by this version of EffiMini ({error}), so what it needs is not "
                "known; remove the tag or branch, or leave it out"
            ) from None
        finally:
            path.unlink(missing_ok=True)
        yield Version(name, params, f"dvc+{files.project()}@{name}#data/shards")


def _needs(versions: Sequence[Version]) -> Needs:
    needs = Needs({}, {}, {})
    for version in versions:
        params, name = version.params, version.name or "params.yaml"
        for category in params.source.categories:
            source = params.source
            base = source.location if source.kind == "mirror" else ""
            if source.kind == "demo":
                catalogue = demo_place(source, category)
                needs.folders.setdefault(str(catalogue.relative_to(files.store())), name)
                base = str(catalogue)
            if source.kind == "table":
                root, _ = place_of(source, category)
                needs.folders.setdefault(str(root.relative_to(files.store())), name)
                base = images_of(root, category)
            journal = fetch.store_of(category, params, params.fetch.mirror or base).relative_to(files.store())
            needs.folders.setdefault(str(journal.with_suffix("")), name)
            for path in PATHS.values() if source.kind in {"mirror", "hub"} else ():
                of_file = needs.raw.setdefault(path.format(category).removesuffix("jsonl"), set())
                of_file.add((source.location, source.revision))
        for about in _manifests(version):
            for shard in about.shards:
                needs.tars.setdefault(shard.sha256, name)
                needs.tars.setdefault(shard.index_sha256, name)
    return needs


def _manifests(version: Version) -> Iterator[Manifest]:
    for category in version.params.source.categories:
        try:
            yield ShardLocation(version.shards).manifest(category)
        except UserError:  # not made, or neither in DVC's cache nor in its remote: it needs no tar
            continue


def _entries(store: Path, data: Path, needs: Needs) -> Iterator[Entry]:
    for folder in sorted(path for path in store.glob("*") if path.is_dir()):
        match folder.name:
            case "images":
                yield from _by_name(folder.glob("*/*"), needs, store, "images of a category")
            case "table":
                yield from _by_name(folder.glob("*"), needs, store, "converted table")
            case "demo":
                yield from _by_name(folder.glob("*"), needs, store, "demo catalogue")
            case "shards" | "tokens":
                yield from _tars(folder, needs)
            case "raw":
                yield from _raw(folder, needs)
            case "features":
                yield from _features(folder, data)
            case name if name in _AS_A_WHOLE:
                yield _entry(folder, folder.glob("*"), *_AS_A_WHOLE[name])
            case _:
                yield _unknown(folder)


def _features(folder: Path, data: Path) -> Iterator[Entry]:
    """Yield an entry for the features that are newer than the shards that are here, and one for the others."""
    since = max((path.stat().st_mtime for path in (data / "shards").glob("*/manifest.json")), default=0.0)
    for newer in (True, False):
        paths = [path for path in folder.glob("*") if (path.stat().st_mtime >= since) == newer]
        if paths:
            why = f"{'newer' if newer else 'older'} than the shards that are here"
            yield _entry(folder, paths, "features of encoders", newer, why)


def _unknown(folder: Path) -> Entry:
    if not folder.name.startswith("tmp"):
        return _entry(folder, [folder], "unknown", True, "EffiMini did not make it")
    new = time.time() - folder.stat().st_mtime < _DAY
    return _entry(folder, [folder], "of a killed run", new, "of the last day" if new else "older than a day")


def _by_name(places: Iterable[Path], needs: Needs, store: Path, content: str) -> Iterator[Entry]:
    """Yield an entry for each file or folder whose name in the store says what it is of."""
    together: dict[str, list[Path]] = {}
    for path in places:
        if not path.name.endswith(".lock"):
            name = path.name.partition(".")[0] if not path.name.startswith(".") else path.name
            together.setdefault(str(path.parent.relative_to(store) / name), []).append(path)
    for name, paths in sorted(together.items()):
        by = needs.folders.get(name, "")
        why = f"{by} needs it" if by else "of other parameters"
        yield _entry(store / name, paths, content, bool(by), why)


def _tars(folder: Path, needs: Needs) -> Iterator[Entry]:
    """Yield an entry for the tars, indexes and token ids of a folder that a version has, and one for the others."""
    sides: dict[str, list[Path]] = {}
    for path in folder.glob("*"):
        if path.suffix not in {".tar", ".arrow"}:
            continue
        seal = path.with_name(f"{path.name}.sha256")
        sha256 = path.name.partition(".")[0] if folder.name == "tokens" else seal.read_text() if seal.exists() else ""
        sides.setdefault(needs.tars.get(sha256, ""), []).extend(_with_seal(path))
    content = "tars and indexes" if folder.name == "shards" else "token ids"
    for by, paths in sorted(sides.items()):
        yield _entry(folder, paths, content, bool(by), f"{by} needs it" if by else "in data/shards of no version")


def _raw(folder: Path, needs: Needs) -> Iterator[Entry]:
    """Yield an entry for each raw file; as many of the newest are kept as there are revisions of kept versions."""
    versions: dict[str, list[Path]] = {}
    for path in folder.glob("*/raw/*/*"):
        if not path.name.endswith((".sha256", ".lock")):
            name = str(path.relative_to(folder / path.relative_to(folder).parts[0])).replace("/.", "/")
            versions.setdefault(name.removesuffix(".partial"), []).append(path)
    for name, paths in sorted(versions.items()):
        kept = len(next((sources for wanted, sources in needs.raw.items() if name.startswith(wanted)), ()))
        for age, path in enumerate(sorted(paths, key=lambda path: -path.stat().st_mtime)):
            rank = "one of the newest" if age < kept else "an older one"
            yield _entry(
                path, _with_seal(path), "raw file", age < kept, rank if kept else "of no category of a version"
            )


def _with_seal(path: Path) -> list[Path]:
    return [one for one in (path, path.with_name(f"{path.name}.sha256")) if one.exists()]


def _entry(place: Path, paths: Iterable[Path], content: str, kept: bool, why: str) -> Entry:
    paths = sorted(paths)
    found = [one.stat() for path in paths for one in ([path] if path.is_file() else path.rglob("*")) if one.is_file()]
    return Entry(
        folder=str(place.relative_to(files.store())),
        content=content,
        files=len(found),
        bytes=sum(state.st_size for state in found),
        own_bytes=sum(state.st_size for state in found if state.st_nlink == 1),
        changed=max((state.st_mtime for state in found), default=0.0),
        kept=kept,
        why=why,
        paths=[str(path) for path in paths],
    )


def _held(places: Iterable[Path]) -> Iterator[str]:
    """Yield the paths that a run of this project writes: those whose lock is held."""
    for place in places:
        for file in place.rglob(".*.lock"):
            lock = FileLock(file, fallback_to_soft=False)
            try:
                lock.acquire(timeout=0)
                lock.release()
            except Timeout:
                yield str(file.with_name(file.name.removeprefix(".").removesuffix(".lock")))
            except OSError:  # a file system without locks
                continue
