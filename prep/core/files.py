"""Files that appear whole or not at all.

In: a path and content. Out: files, hashes, and a local store of what was made once. Guaranteed (promise 7):
whatever is written here is written aside, flushed to disk and renamed, so a killed process leaves either the old
state or the new one under a name, and leftovers only under ``*.partial``.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from prep.core.errors import UserError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give a path to write `path`'s content to; on leaving without an error it becomes `path`.

    Without `durable` it is not flushed to disk, for what a killed run starts anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            commit(partial, path)
        else:
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def commit(partial: Path, path: Path) -> None:
    """Let the whole file `partial`, in the folder of `path`, become `path`: flushed to disk, then renamed."""
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on leaving without an error it becomes `path`, replacing what was there.

    Leftovers of a killed run are cleared first. The content of `path` is thus what this run made, nothing else.
    """
    partial, old = (path.with_name(f".{path.name}.{state}.partial") for state in ("new", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for leftover in partial.rglob(".*.partial"):  # of a worker that was killed and whose call was made again
        leftover.unlink()
    for file in sorted(partial.rglob("*")):
        _sync(file)
    if path.exists():
        path.replace(old)  # not removed in place: a kill in mid-removal would leave half of it under its name
    partial.replace(path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        UserError: the file is absent or is not JSON; the sentence names the stage to run.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `dvc repro`, or `dvc pull`, to have it") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); remove it and run `dvc repro`") from error


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Return the hex sha256 of JSON-able `parts` in a canonical form: equal inputs, equal name."""
    text = json.dumps(msgspec.to_builtins(parts), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def store() -> Path:
    """Return the folder of what was made once, outside DVC's outs: ``$EFFIMINI_STORE``, or ``.effimini``."""
    return Path(os.environ.get("EFFIMINI_STORE", ".effimini")).absolute()


def cached(name: str, make: Callable[[Path], None], target: Path) -> bool:
    """Put the file stored as `name` at `target` by hardlink (or copy), making it first if it is not stored.

    Args:
        name: a path below the store that holds the fingerprint of everything the bytes depend on.
        make: writes the file to the path it is given.
        target: where the stage wants it.

    Returns:
        True if the file had to be made.
    """
    stored = store() / name
    absent = not stored.exists()
    if absent:
        with atomic_write(stored) as partial:
            make(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(stored, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(stored, target)
    return absent
