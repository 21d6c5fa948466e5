"""The location of shards: a local folder, or a remote one that is read through the cache.

Input: a path, any fsspec URL (``https://host/shards``, ``s3://bucket/shards``), or a DVC project at a git revision,
``dvc+<git URL or path>@<revision>#<folder>``. Output: bytes, and local files. Guarantees: size and sha256 of a remote
file that a manifest lists are verified; an interrupted transfer is retried; an unreadable file raises `UserError`.
"""

import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from prep.core import files
from prep.core.errors import UserError, first_sentence
from prep.core.tables.shards import INDEX
from shards import manifest
from shards.cache import Cache, check_file
from shards.manifest import Manifest, Shard

Read = TypeVar("Read")

TRIES = 5
SILENCE = 30  # seconds without a byte before a transfer is retried
PAUSE = 0.5  # maximal seconds of the random wait before the second attempt; it doubles with each attempt
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

    def __init__(self, url: str | Path, cache_bytes: int, connections: int) -> None:
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

    def manifest(self, category: str) -> Manifest:
        """Read the manifest of a category.

        Raises:
            UserError: it is missing or invalid.
        """
        name = f"{category}/{manifest.MANIFEST_FILE}"
        return manifest.parse_manifest(self.read(name), self.full(name))

    def categories(self) -> list[str]:
        """List the categories that have a manifest, sorted by name.

        Raises:
            UserError: the location cannot be listed (for example plain HTTP), or has no manifest.
        """
        system, root = _file_system(self.url, os.getpid(), Path.cwd())
        try:
            found = sorted(path.split("/")[-2] for path in system.glob(f"{root}/*/{manifest.MANIFEST_FILE}"))
        except (OSError, NotImplementedError) as error:
            raise UserError(f"{self.url} cannot be listed ({first_sentence(error)}); name its categories") from error
        if not found:
            raise UserError(
                f"{self.url} has no <category>/{manifest.MANIFEST_FILE}; run `dvc repro shard` or `dvc pull`, "
                "or correct the location"
            )
        return found

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            UserError: it cannot be read.
        """
        system, root = _file_system(self.url, os.getpid(), Path.cwd())
        return self._retry(name, lambda: bytes(system.cat_file(f"{root}/{name}")))

    def open(self, file: File, opener: Callable[[Path], Read]) -> Read:
        """Open a file that a manifest lists, downloading it into the cache if it is remote.

        Args:
            file: its name, size and sha256.
            opener: receives a local path and must open it immediately.

        Raises:
            UserError: it cannot be read, or the cache is too small.
            FileNotFoundError: it is a missing local file.
        """
        if self.local_path is not None:
            return opener(self.local_path / file.name)
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

    def index(self, category: str, shard: Shard) -> pa.Table:
        """Return the index of a shard, memory-mapped.

        Raises:
            UserError: it cannot be read, is not an index, or lacks a column.
        """
        file = index_file(category, shard)
        try:
            table = self.open(file, mapped)
            return table.select(INDEX.names).replace_schema_metadata(table.schema.metadata)
        except (FileNotFoundError, KeyError, pa.ArrowException) as error:
            raise UserError(
                f"{self.full(file.name)} cannot be read ({first_sentence(error)}); run `dvc checkout`, or "
                "`effimini lint` to find other damage"
            ) from error

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
        system, root = _file_system(self.url, os.getpid(), Path.cwd())

        def once() -> None:
            system.get_file(f"{root}/{file.name}", str(to))
            check_file(to, file.sha256, file.bytes)

        self._retry(file.name, once)

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
            retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, permanent)),
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


def mapped(path: Path) -> pa.Table:
    """Return an index, memory-mapped from a local file.

    Raises:
        FileNotFoundError: it is missing.
        pyarrow.ArrowInvalid: it is not an Arrow IPC file.
    """
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def open_file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a location, and the path of the location in it.

    Raises:
        UserError: no file system handles the URL, or its package is not installed.
    """
    options: dict[str, Any] = {}
    if dvc := _DVC.fullmatch(url):
        from shards.revision import open_revision  # noqa: PLC0415 -- only a revision needs DVC

        return open_revision(dvc["url"], dvc["rev"], dvc["folder"])
    if url.startswith(("http://", "https://")):
        from aiohttp import ClientTimeout  # noqa: PLC0415 -- only HTTP needs it

        options = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)}}
    elif url.startswith("s3://"):
        options = {"config_kwargs": {"connect_timeout": SILENCE, "read_timeout": SILENCE}}
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
