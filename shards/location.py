"""The location of shards: a local folder, or a remote one that is read through the cache.

Input: a path, any fsspec URL (``https://host/shards``, ``s3://bucket/shards``), or a DVC project at a git revision,
``dvc+<git URL or path>@<revision>#<folder>``. Output: manifests, and the content of the files that they list.
Guarantees: size and sha256 of a file are verified before it is used; no more than the stated size is read or
downloaded; nothing outside the folder is read; an interrupted transfer is retried; an unreadable file raises
`UserError`.
"""

import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Lock, Thread
from typing import Any, NamedTuple, TypeVar

import fsspec
import pyarrow as pa
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from prep.core import files
from prep.core.errors import UserError, first_sentence
from shards import manifest
from shards.cache import Cache, Damaged, check_file
from shards.index import read_checked, read_index
from shards.manifest import Manifest, Shard

Read = TypeVar("Read")

CACHE_BYTES = 50_000_000_000
CONNECTIONS = 8
TRIES = 5
SILENCE = 30  # seconds without a byte before a transfer is retried
PAUSE = 0.5  # maximal seconds of the random wait before the second attempt; it doubles with each attempt
_HTTP = ("http://", "https://")
_LOCKS = [Lock() for _ in range(64)]  # by file, so that threads do not verify the same one at a time
# a link out of the folder is followed only to where DVC keeps the content of files
_DVC_CACHE = re.compile(r".*/files/md5/[0-9a-f]{2}/[0-9a-f]{30}")
# the URL may start with scheme and user (git@host:...); a revision may contain @ (tags of `dvc artifacts`)
_DVC = re.compile(r"dvc\+(?P<url>([a-z+]+://)?([^@/#]+@)?[^@#]+)@(?P<rev>[^#]+)#(?P<folder>[^#]+)")


class File(NamedTuple):
    """A file that a manifest lists."""

    name: str  # relative to the location
    bytes: int
    sha256: str


class ShardLocation:
    """A folder of shards: ``<category>/manifest.json`` and the files it lists.

    Attributes:
        url: as given.
        local_path: the folder, or None if the location is remote.
    """

    def __init__(self, url: str | Path, cache_bytes: int = CACHE_BYTES, connections: int = CONNECTIONS) -> None:
        """Set the location; nothing is read yet.

        Args:
            url: see the module.
            cache_bytes: size limit of the cache of remote files.
            connections: concurrent downloads per process.
        """
        self.url, self.connections = str(url), connections
        self.cache_bytes = cache_bytes
        is_local = isinstance(_file_system(self.url, os.getpid(), Path.cwd())[0], LocalFileSystem)
        self.local_path = Path(self.url.removeprefix("file://")) if is_local else None
        self._verified: dict[File, tuple[int, ...]] = {}  # local files, with what tells whether they were replaced
        self._checked: set[tuple[File, int, int | None, int | None]] = set()  # indexes

    def manifest(self, category: str) -> Manifest:
        """Read the manifest of a category.

        Raises:
            UserError: it is missing or invalid.
        """
        about = self.parse(category)
        for problem in manifest.problems(about, category):
            name = self.full(f"{category}/{manifest.MANIFEST_FILE}")
            raise UserError(f"{name} {problem}; run `dvc checkout` or `dvc repro shard`")
        return about

    def parse(self, category: str) -> Manifest:
        """Read the manifest of a category, whatever `shards.manifest.problems` it has.

        Raises:
            UserError: it is missing or not a manifest.
        """
        if not re.fullmatch(manifest.CATEGORY, category):
            raise UserError(f"{category!r} is not the name of a category; name a folder in {self.url}")
        name = f"{category}/{manifest.MANIFEST_FILE}"
        return manifest.parse_manifest(self.read(name), self.full(name))

    def categories(self) -> list[str]:
        """List the categories that have a manifest, sorted by name.

        Raises:
            UserError: the location cannot be listed (for example plain HTTP), or has no manifest.
        """
        if self.url.startswith(_HTTP):
            raise UserError(f"{self.url} cannot be listed (HTTP has no folders); name its categories")
        system, root = _file_system(self.url, os.getpid(), Path.cwd())
        try:
            found = sorted(path.split("/")[-2] for path in system.glob(f"{root}/*/{manifest.MANIFEST_FILE}"))
        except Exception as error:  # each storage has errors of its own, for example for missing credentials
            raise UserError(
                f"{self.url} cannot be listed ({first_sentence(error)}); check your access, or name its categories"
            ) from error
        if not found:
            raise UserError(
                f"{self.url} has no <category>/{manifest.MANIFEST_FILE}; run `dvc repro shard` or `dvc pull`, "
                "or correct the location"
            )
        return found

    def read(self, name: str) -> bytes:
        """Return the content of a small file, of at most `shards.manifest.LIMIT` bytes.

        Raises:
            UserError: it cannot be read, or is larger.
        """
        too_large = UserError(
            f"{self.full(name)} has more than {manifest.LIMIT:,} bytes, the limit of a manifest; correct the location"
        )

        def once() -> bytes:
            if self.local_path is not None:
                with self._local(name).open("rb") as file:
                    content = file.read(manifest.LIMIT + 1)
            else:
                with TemporaryDirectory() as folder:
                    self._transfer(name, Path(folder, "file"), manifest.LIMIT, too_large)
                    content = Path(folder, "file").read_bytes()
            if len(content) > manifest.LIMIT:
                raise too_large
            return content

        return self._retry(name, once)

    def open(self, file: File, opener: Callable[[Path], Read]) -> Read:
        """Open a file that a manifest lists, downloading it into the cache if it is remote.

        What was downloaded is verified, what is in a local folder is not.

        Args:
            file: its name, size and sha256.
            opener: receives a local path and must open it immediately.

        Raises:
            UserError: it cannot be read, or the cache is too small.
            FileNotFoundError: it is a missing local file.
        """
        if self.local_path is not None:
            return opener(self._local(file.name))
        for _ in range(TRIES):
            cache = _cache(files.store() / "cache", self.cache_bytes, os.getpid())
            path = cache.get(file.sha256, file.bytes, lambda to: self._download(file, to))
            try:
                return opener(path)
            except FileNotFoundError:
                continue  # another process evicted it in the meantime
        raise UserError(
            f"{file.name} was evicted from the cache {TRIES} times before it was opened; raise stream.cache_gb"
        )

    def content(self, file: File) -> pa.Buffer:
        """Return the content of a file that a manifest lists, memory-mapped, so that reading needs no system call.

        No descriptor stays open. The file may be replaced or removed later, not truncated. Its size and sha256 are
        verified when this process reads it for the first time, and again if it was replaced.

        Raises:
            UserError: it cannot be read, or is not the file that the manifest lists.
        """
        try:
            if self.local_path is None:
                return self.open(file, mapped)
            with _LOCKS[hash(file) % len(_LOCKS)]:
                found, version = self.open(file, partial(_mapped_whole, file))
                if self._verified.get(file) != version and hashlib.sha256(found).hexdigest() != file.sha256:
                    raise Damaged("its sha256 differs from the manifest")
                self._verified[file] = version
                return found
        except FileNotFoundError:
            raise UserError(f"{self.full(file.name)} does not exist; run `dvc checkout` or `dvc repro shard`") from None
        except (Damaged, OSError) as error:
            raise self._unusable(file, error) from error

    def index(
        self,
        category: str,
        shard: Shard,
        max_tokens: int = sys.maxsize,
        vocabulary: int | None = None,
        tabular: int | None = None,
    ) -> pa.Table:
        """Return the index of a shard, memory-mapped; see `read_index`, which checks it for the first time.

        Raises:
            UserError: it cannot be read, or is not the index of this shard.
        """
        file = index_file(category, shard)
        content, check = self.content(file), (file, max_tokens, vocabulary, tabular)
        if check in self._checked:  # the sha256 says that the bytes are the same
            return read_checked(content, tabular)
        try:
            table = read_index(content, shard, max_tokens, vocabulary, tabular)
        except ValueError as error:
            raise self._unusable(file, error) from error
        self._checked.add(check)
        return table

    def _unusable(self, file: File, error: Exception) -> UserError:
        return UserError(
            f"{self.full(file.name)} cannot be read ({first_sentence(error)}); run `dvc checkout`, or `effimini lint` "
            "to find other damage"
        )

    def _local(self, name: str) -> Path:
        """Return the path of a file in the local folder, with links resolved.

        Raises:
            UserError: it is a link that leads out of the folder, or not a regular file.
            FileNotFoundError: it does not exist.
        """
        assert self.local_path is not None
        path = Path(os.path.realpath(self.local_path / name))
        inside = path.is_relative_to(os.path.realpath(self.local_path))
        if not inside and not _DVC_CACHE.fullmatch(str(path)):
            raise UserError(f"{self.full(name)} is a link out of the folder, to {path}; replace it by the file")
        try:
            kind = path.stat().st_mode
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{self.full(name)} cannot be read ({error.strerror}); correct the location") from error
        if not stat.S_ISREG(kind):
            raise UserError(f"{self.full(name)} is not a regular file; replace it by the file")
        return path

    def prefetch(self, wanted: Iterable[File]) -> None:
        """Start downloading files into the cache, in this order; does nothing for a local folder."""
        if self.local_path is None:
            queue = _downloads(self.connections, os.getpid())
            for file in wanted:
                queue.put((self, file))

    def full(self, name: str) -> str:
        """Return the full name of a file, for messages."""
        return f"{self.url.rstrip('/')}/{name}"

    def _download(self, file: File, to: Path) -> None:
        too_large = Damaged(f"received more than {file.bytes:,} bytes, its size in the manifest")

        def once() -> None:
            self._transfer(file.name, to, file.bytes, too_large)
            check_file(to, file.sha256, file.bytes)

        self._retry(file.name, once)

    def _transfer(self, name: str, to: Path, most: int, too_large: Exception) -> None:
        """Download a file, and raise `too_large` as soon as more than `most` bytes are received."""
        system, root = _file_system(self.url, os.getpid(), Path.cwd())
        system.get_file(f"{root}/{name}", str(to), callback=_Bound(most, too_large))

    def _retry(self, name: str, read: Callable[[], Read]) -> Read:
        """Call `read` until it succeeds, at most `TRIES` times with exponential backoff.

        Raises:
            UserError: the last attempt failed, or the error is permanent.
        """
        permanent = (FileNotFoundError, IsADirectoryError, PermissionError)
        retrying = Retrying(
            stop=stop_after_attempt(1 if self.local_path is not None else TRIES),
            wait=wait_random_exponential(PAUSE, max=20),
            # a KeyboardInterrupt is not an Exception and ends the read
            retry=retry_if_exception(
                lambda error: isinstance(error, Exception) and not isinstance(error, (*permanent, UserError))
            ),
            retry_error_callback=lambda state: self._give_up(name, state),
        )
        try:
            return retrying(read)
        except FileNotFoundError:
            raise UserError(
                f"{self.full(name)} does not exist; run `dvc repro` or `dvc pull`, or correct the location"
            ) from None
        except permanent as error:
            raise UserError(f"{self.full(name)} cannot be read ({first_sentence(error)})") from error

    def _give_up(self, name: str, state: RetryCallState) -> Any:
        assert state.outcome is not None
        error = state.outcome.exception()
        if isinstance(error, UserError):
            raise error
        reason = f"{type(error).__name__}: {first_sentence(error)}" if isinstance(error, Exception) else str(error)
        raise UserError(
            f"{self.full(name)} cannot be read after {state.attempt_number} attempts ({reason}); try again later"
        ) from error


def index_file(category: str, shard: Shard) -> File:
    """Return the file of a shard's index."""
    return File(f"{category}/{shard.index}", shard.index_bytes, shard.index_sha256)


def mapped(path: Path) -> pa.Buffer:
    """Return the content of a local file, memory-mapped.

    Raises:
        FileNotFoundError: it is missing.
    """
    with pa.memory_map(str(path)) as source:  # unlike mmap.mmap it keeps no descriptor open
        return source.read_buffer()


def _mapped_whole(file: File, path: Path) -> tuple[pa.Buffer, tuple[int, ...]]:
    """Return the content of a file of the expected size, and what tells whether it was replaced."""
    state = path.stat()
    if state.st_size != file.bytes:
        raise Damaged(f"it has {state.st_size:,} bytes, expected {file.bytes:,}")
    return mapped(path), (state.st_dev, state.st_ino, state.st_mtime_ns)


class _Bound(Callback):  # type: ignore[misc]  # fsspec ships no types
    """Ends a transfer that delivers too many bytes."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self._most, self._error = most, error

    def call(self, *_: Any, **__: Any) -> None:
        if self.value > self._most:  # not when a size is announced: s3fs would not close that connection
            raise self._error


def open_file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a location, and the path of the location in it.

    Raises:
        UserError: no file system handles the URL, or its package is not installed.
    """
    options: dict[str, Any] = {}
    if dvc := _DVC.fullmatch(url):
        from shards.revision import open_revision  # noqa: PLC0415 -- only a revision needs DVC

        return open_revision(dvc["url"], dvc["rev"], dvc["folder"])
    if url.startswith(_HTTP):
        from shards.http_client import options_of  # noqa: PLC0415 -- only HTTP needs its client

        options = options_of(url, SILENCE)
    elif url.startswith("s3://"):
        # one request per file, so that a file of any size is noticed with its first bytes; files are read concurrently
        options = {"config_kwargs": {"connect_timeout": SILENCE, "read_timeout": SILENCE}, "max_concurrency": 1}
    try:
        if url.startswith("dvc+"):
            raise ValueError("the URL has no revision and folder")
        system, root = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{url} cannot be opened ({first_sentence(error)}); give a folder, an http(s) or s3 URL "
            "(`pip install effimini[s3]`), or dvc+<git URL or path>@<revision>#<folder>"
        ) from error
    return system, root.rstrip("/")


@lru_cache
def _file_system(url: str, process: int, folder: Path) -> tuple[Any, str]:
    """Call `open_file_system` once per process, because file systems with threads do not survive a fork.

    A relative path depends on the working directory, `folder`.
    """
    return open_file_system(url)


@lru_cache
def _cache(folder: Path, limit: int, process: int) -> Cache:
    return Cache(folder, limit)


@lru_cache
def _downloads(connections: int, process: int) -> "SimpleQueue[tuple[ShardLocation, File]]":
    """Return a queue of files to download, processed by daemon threads that end with the process."""
    queue: SimpleQueue[tuple[ShardLocation, File]] = SimpleQueue()

    def work() -> None:
        while True:
            location, file = queue.get()
            with suppress(UserError):  # the reader that needs the file retries and reports the error
                location.open(file, lambda path: None)

    for _ in range(connections):
        Thread(target=work, daemon=True).start()
    return queue
