"""A cache of remote files: bounded, verified, safe for many processes.

In: a file's sha256 and size, and what downloads it. Out: its path on this machine. Guaranteed: a file stands under its
sha256 only when it has it; one process downloads it while the others wait; the files are never more than the limit, the
least recently asked for going first. A file that another process has open stays readable to it when it goes.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prep.core import files
from prep.core.errors import UserError


class Damaged(Exception):  # noqa: N818 -- a reason to try again, not yet an error
    """What was downloaded is not the file asked for."""


class Cache:
    """A folder of files named by their sha256, of `limit` bytes at most."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):  # of a killed process, unless its lock is held
            try:
                with self._lock(partial.name, timeout=0):
                    partial.unlink(missing_ok=True)
            except Timeout:
                continue

    def get(self, sha256: str, size: int, download: Callable[[Path], None]) -> Path:
        """Return the path of a file, downloading it first where it is absent.

        The path may be taken by another process's download before it is opened; ask again then.

        Args:
            sha256: hex, of the content.
            size: bytes.
            download: writes the file to the path it is given and raises `Damaged` or its own error if it cannot.

        Raises:
            UserError: the limit leaves no room for it.
        """
        path = self.folder / sha256
        if _touched(path):
            return path
        with self._lock(sha256):
            if _touched(path):  # by the process that held the lock
                return path
            partial = self.folder / f"{sha256}.{size}.partial"
            self._reserve(partial, size)
            try:
                download(partial)
                check_file(partial, sha256, size)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def _lock(self, name: str, timeout: float = -1) -> FileLock:
        # a fixed number of lock files: one a file would outlive the files
        return FileLock(self.folder / f"{name[:3]}.lock", timeout=timeout)

    def _reserve(self, partial: Path, size: int) -> None:
        """Make room for a file of `size` bytes, and take it by a partial file whose name tells the size."""
        with FileLock(self.folder / "room.lock"):
            there = _cached_sizes(self.folder)
            total = sum(each for _, each, _ in there) + size
            for _, each, path in there:
                if total > self.limit and path.suffix != ".partial":
                    path.unlink(missing_ok=True)
                    total -= each
            if total > self.limit:
                raise UserError(
                    f"the cache {self.folder} of {self.limit / 1e9:g} GB has no room for the files being read; "
                    "raise stream.cache_gb"
                )
            partial.touch()


def check_file(path: Path, sha256: str, size: int) -> None:
    """Check that a file is the one asked for.

    Raises:
        Damaged: it has another size or another sha256.
    """
    if (found := path.stat().st_size) != size:
        raise Damaged(f"{found} bytes came for {size}")
    if files.sha256(path) != sha256:
        raise Damaged("its sha256 is not the one in the manifest")


def _touched(path: Path) -> bool:
    """Tell whether a file is there, and mark it as just asked for."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _cached_sizes(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (time of last use, bytes held or reserved, path) of each file, in the order of their use.

    A download that becomes whole while the folder is listed may stand in the list by both its names, or by the first
    alone; it counts once.
    """
    found: dict[str, tuple[int, int, Path]] = {}
    for path in folder.iterdir():
        sha256, _, rest = path.name.partition(".")
        if path.suffix == ".partial":
            found.setdefault(sha256, (0, int(rest.partition(".")[0]), path))
        elif path.suffix != ".lock":
            with suppress(FileNotFoundError):  # it was given up for another's room
                state = path.stat()
                found[sha256] = (state.st_mtime_ns, state.st_size, path)
    return sorted(found.values())
