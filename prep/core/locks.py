"""Locks: one run at a time writes a file or folder.

Input: the path that a run writes.
Output: a lock on it, held until the block ends.
Guarantees: a lock ends with its process, however that ends and on whichever machine. A second run waits, and says for
whom. Where a file system has no locks, runs on this machine still wait for each other, and a warning says that those on
others do not.
"""

import errno
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from filelock import FileLock, Timeout

from prep.core.errors import UserError

log = logging.getLogger(__name__)

# What flock raises on file systems without locks: exFAT, and some mounts of CIFS, NFS and Lustre.
_NO_LOCKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
_warned: set[int] = set()  # devices


@contextmanager
def lock_file(file: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock file, which is created if needed and stays.

    Args:
        file: the lock file; its folder must exist.
        timeout: how long to wait for another process, seconds; for ever if negative.

    Raises:
        Timeout: another process held it all the time.
    """
    lock, _ = _acquire(file, timeout)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def hold(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Wait until no other run writes `path`, and keep others waiting; yield whether that includes other machines.

    The lock file lies beside `path`, so that it is the same file on every machine and under every name of the folder.
    It is removed at the end, unless the process is killed.

    Args:
        path: the file or folder that this run writes; its folder is created if needed.
        timeout: how long to wait for another run, seconds; for ever if negative.

    Raises:
        UserError: another run wrote it all the time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    try:
        lock, everywhere = _acquire(file, 0)
    except Timeout as first:
        log.warning("%s is in use by another run%s; waiting for it to end", path, _holder(Path(first.lock_file)))
        try:
            lock, everywhere = _acquire(file, timeout)
        except Timeout as last:
            who = _holder(Path(last.lock_file))
            raise UserError(
                f"{path} is in use by another run{who}; wait for it to end or stop it, then run again"
            ) from None
    held = Path(lock.lock_file)
    if not everywhere and not _holder(file):  # no holder has written its name to it
        file.unlink(missing_ok=True)
    try:
        with suppress(OSError):  # it only names the holder
            held.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield everywhere
    finally:
        held.unlink(missing_ok=True)  # before the release; a process that opened it by then sees that it is gone
        lock.release()


def _acquire(file: Path, timeout: float) -> tuple[FileLock, bool]:
    """Return a lock that was acquired, and whether it excludes other machines too."""
    lock = FileLock(file, fallback_to_soft=False)  # the soft lock would outlive a process that is killed
    why = _no_locks(lock, timeout)
    if not why:
        return lock, True
    _warn_once(file.parent, why)
    name = sha256(os.fsencode(os.path.realpath(file))).hexdigest()[:32]
    lock = FileLock(Path(tempfile.gettempdir(), f"effimini-{os.getuid()}-{name}.lock"), fallback_to_soft=False)
    _no_locks(lock, timeout)
    return lock, False


def _no_locks(lock: FileLock, timeout: float) -> str:
    """Acquire a lock; return why the file system has none, or nothing if it has."""
    try:
        lock.acquire(timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return os.strerror(error.errno)
    return ""


def _holder(file: Path) -> str:
    """Return who holds a lock file, in brackets after a space, or nothing if it does not say."""
    try:
        name = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        name = ""
    return name and f" ({name})"


def _warn_once(folder: Path, why: str) -> None:
    device = folder.stat().st_dev
    if device not in _warned:
        _warned.add(device)
        log.warning("warning: the file system of %s has no locks (%s): do not write it from two machines", folder, why)
