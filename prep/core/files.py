"""Atomic writes, hashes, and the local store.

Input: a path and content.
Output: files and folders, hashes, and a local store of cached files.
Guarantees: everything is written under a temporary name, flushed to disk and renamed. A killed process leaves the old
content or the new content under a name, and leftovers only in ``*.partial``. A file of the local store is used only
after its sha256 was verified; one that was changed is made again.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from prep.core import locks
from prep.core.errors import UserError

log = logging.getLogger(__name__)

_CANNOT_SYNC = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP})  # by folders of CIFS and others


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_SYNC):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an error of the system that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; it is renamed to `path` when the block ends without an error.

    Args:
        path: the final path; its folder is created if needed.
        durable: whether to flush to disk before renaming. Not needed for files that a killed run writes again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # process ids repeat on other machines
    try:
        with naming(path):
            yield partial
            if durable:
                commit(partial, path)
            else:
                partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def commit(partial: Path, path: Path) -> None:
    """Flush the finished file `partial`, in the same folder as `path`, to disk and rename it to `path`."""
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; it replaces `path` when the block ends without an error.

    Another run that writes `path` is waited for. Leftovers of a killed run are removed, so `path` contains only what
    this run wrote.
    """
    with locks.hold(path) as alone:
        _remove_leftovers(path, alone)
        token = secrets.token_hex(4)
        new, old = (path.with_name(f".{path.name}.{state}-{token}.partial") for state in ("new", "old"))
        try:
            with naming(path):
                new.mkdir()
                yield new
                _publish(new, path, old)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary folders of killed runs that wrote the folder `path`; another run that does is waited for.

    If a run was killed after it had moved the old folder away and before it had put the new one there, the old one is
    moved back.
    """
    with locks.hold(path) as alone:
        _remove_leftovers(path, alone)


def _remove_leftovers(path: Path, alone: bool) -> None:
    name = re.compile(rf"\.{re.escape(path.name)}\.(new|old)(-[0-9a-f]{{8}})?\.partial")
    for other in list(path.parent.iterdir()) if alone else ():  # otherwise they may be of a run on another machine
        found = name.fullmatch(other.name)
        if found and found[1] == "old" and not path.exists():
            other.replace(path)
        elif found:
            shutil.rmtree(other, ignore_errors=True)


def _publish(new: Path, path: Path, old: Path) -> None:
    """Flush the finished folder `new` to disk and rename it to `path`; rename what is there to `old`."""
    for pattern in (".*.partial", ".*.lock"):  # of a killed worker, whose call was repeated on another one
        for leftover in new.rglob(pattern):
            leftover.unlink()
    for file in sorted(new.rglob("*")):
        _sync(file)
    _sync(new)
    try:
        if path.exists():
            path.replace(old)  # not removed in place: a kill during removal would leave half a folder at `path`
        new.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    _sync(path.parent)


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where that is not possible; both must only ever be replaced as a whole."""
    try:
        os.link(source, target)
    except OSError:  # on another file system, or on one without hard links
        shutil.copyfile(source, target)


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage wrote.

    Raises:
        UserError: the file does not exist or is not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `dvc repro` to create it, or `dvc pull` to download it") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); remove it and run `dvc repro`") from error


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*values: Any) -> str:
    """Return the hex sha256 of `values`, JSON-serializable values, in a canonical form."""
    text = json.dumps(msgspec.to_builtins(values), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def project() -> Path:
    """Return the root of the DVC project that the working folder is in, or the working folder if there is none.

    `dvc exp run --temp` and `--queue` run in a copy below the project's ``.dvc/tmp/exps``: it belongs to that project.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
    return next((folder for folder in root.parents if root.is_relative_to(folder / ".dvc/tmp/exps")), root)


def store() -> Path:
    """Return the local store, a folder outside DVC's outputs: ``$EFFIMINI_STORE``, or ``.effimini`` of the project.

    A relative ``$EFFIMINI_STORE`` is relative to the project.
    """
    return project() / (os.environ.get("EFFIMINI_STORE") or ".effimini")


def ensure_home() -> None:
    """Set HOME to a folder of the local store if this user has none, as in a container with a numeric user."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(store() / "home")


def digest(path: Path) -> str:
    """Return the hex sha256 of a file, or of the names and contents of all files in a folder."""
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file())
        return fingerprint([(file.relative_to(path).as_posix(), sha256(file)) for file in found])
    return sha256(path)


def seal(path: Path, content: str) -> str:
    """Record beside a file or folder of the local store the `digest` of its content, and return it."""
    with atomic_write(_seal_of(path), durable=False) as partial:  # a seal that is lost makes the content anew
        partial.write_text(content, encoding="ascii")
    return content


def intact(path: Path) -> str:
    """Return the `digest` of a file or folder of the local store if it is as it was sealed, otherwise "".

    It is read each time: another process, a hard link in an output folder or the disk may have changed it since.
    """
    try:
        sealed = _seal_of(path).read_text(encoding="ascii", errors="replace")
        found = digest(path)
    except FileNotFoundError:  # absent, or from before there were seals
        return ""
    if found != sealed:
        log.warning("warning: %s was changed or damaged; it is made again", path)
        return ""
    return found


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def cached(name: str, make: Callable[[Path], None], target: Path) -> tuple[str, bool]:
    """Link (or copy) a cached file from the local store to `target`, after creating it if it is not cached.

    Args:
        name: path in the store; must contain the fingerprint of everything that the bytes depend on.
        make: writes the file to the path that it is given.
        target: where to put the file.

    Returns:
        The hex sha256 of its content, which was verified, and whether it was not cached intact and had to be created.
    """
    stored = store() / name
    content = intact(stored)
    absent = not content
    if absent:
        with atomic_write(stored) as partial:
            make(partial)
            content = seal(stored, digest(partial))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of a worker that died; its call is repeated
    link(stored, target)
    return content, absent
