"""A cache of remote files: bounded, verified, safe for many processes.

Input: a file's sha256 and size, and a function that downloads it. Output: its local path. Guarantees: a file is stored
under its sha256 only after the sha256 was verified, and a process uses it only after it verified that once itself; one
process downloads it while the others wait; the files never take more than the limit, and the least recently used are
evicted first. A file that another process has open stays readable to that process after eviction.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from filelock import Timeout

from prep.core import files, locks
from prep.core.errors import UserError


class Damaged(Exception):  # noqa: N818 -- a reason to retry, not yet an error
    """The downloaded content is not the requested file."""


class Cache:
    """A folder of files named by their sha256, at most `limit` bytes in total."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._verified: set[str] = set()  # in this process
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):  # of a killed process, unless its lock is held
            try:
                with self._lock(partial.name, timeout=0):
                    partial.unlink(missing_ok=True)
            except Timeout:
                continue

    def get(self, sha256: str, size: int, download: Callable[[Path], None]) -> Path:
        """Return the path of a file; download it first if it is not cached.

        Another process may evict the file before the caller opens it; call again in that case.

        Args:
            sha256: of the content, hex.
            size: of the content, bytes.
            download: writes the file to the path it is given; raises `Damaged` or its own error on failure.

        Raises:
            UserError: the limit leaves no space for it.
        """
        path = self.folder / sha256
        if sha256 in self._verified and _touched(path):
            return path
        with self._lock(sha256):
            if self._is_intact(path, sha256, size):  # else no process has downloaded it
                return path
            partial = self.folder / f"{sha256}.{size}.partial"
            self._reserve(partial, size)
            try:
                download(partial)
                check_file(partial, sha256, size)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
                self._verified.add(sha256)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def _is_intact(self, path: Path, sha256: str, size: int) -> bool:
        """Return whether a file is cached as it was downloaded, and mark it as just used."""
        if not _touched(path):
            return False
        try:
            if sha256 not in self._verified:
                check_file(path, sha256, size)
        except (FileNotFoundError, Damaged):  # evicted in the meantime, or changed on disk
            path.unlink(missing_ok=True)
            return False
        self._verified.add(sha256)
        return True

    def _lock(self, name: str, timeout: float = -1) -> AbstractContextManager[None]:
        # a fixed number of lock files: one lock per cached file would outlive the file
        return locks.lock_file(self.folder / f"{name[:3]}.lock", timeout)

    def _reserve(self, partial: Path, size: int) -> None:
        """Evict files to free `size` bytes, and reserve them with a partial file whose name contains the size."""
        with locks.lock_file(self.folder / "room.lock"):
            entries = _cached_sizes(self.folder)
            total = sum(length for _, length, _ in entries) + size
            for _, length, path in entries:
                if total > self.limit and path.suffix != ".partial":
                    path.unlink(missing_ok=True)
                    total -= length
            if total > self.limit:
                raise UserError(
                    f"the cache {self.folder} of {self.limit / 1e9:g} GB has no space for the files being read; "
                    "raise stream.cache_gb"
                )
            partial.touch()


def check_file(path: Path, sha256: str, size: int) -> None:
    """Check the size and sha256 of a file.

    Raises:
        Damaged: the size or the sha256 differs.
    """
    if (found := path.stat().st_size) != size:
        raise Damaged(f"received {found} bytes, expected {size}")
    if files.sha256(path) != sha256:
        raise Damaged("its sha256 differs from the manifest")


def _touched(path: Path) -> bool:
    """Return whether a file exists, and mark it as just used."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _cached_sizes(folder: Path) -> list[tuple[int, int, Path]]:
    """Return (time of last use, bytes used or reserved, path) of each file, least recently used first.

    A download that completes while the folder is listed may be listed under both its names, or only under the partial
    one; it counts once.
    """
    found: dict[str, tuple[int, int, Path]] = {}
    for path in folder.iterdir():
        sha256, _, rest = path.name.partition(".")
        if path.suffix == ".partial":
            found.setdefault(sha256, (0, int(rest.partition(".")[0]), path))
        elif path.suffix != ".lock":
            with suppress(FileNotFoundError):  # evicted by another process in the meantime
                state = path.stat()
                found[sha256] = (state.st_mtime_ns, state.st_size, path)
    return sorted(found.values())
