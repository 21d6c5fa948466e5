"""Where shards are: a folder here, or one behind a URL, read through the cache.

In: a path, any fsspec URL (``https://host/shards``, ``s3://bucket/shards``), or a DVC project at a git revision,
``dvc+<git URL or path>@<revision>#<folder>``. Out: bytes, and files on this machine. Guaranteed: a remote file that is
named in a manifest has its size and sha256; a broken transfer is tried again; what cannot be had is a sentence.
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
SILENCE = 30  # seconds without a byte before a transfer is tried again
PAUSE = 0.5  # seconds before the second try, at random up to that; it doubles with each
# the URL may begin with scheme and user (git@host:...); a revision may hold @, as the tags of `dvc artifacts` do
_DVC = re.compile(r"dvc\+(?P<url>([a-z+]+://)?([^@/#]+@)?[^@#]+)@(?P<rev>[^#]+)#(?P<folder>[^#]+)")


class File(NamedTuple):
    """A file named in a manifest."""

    name: str  # relative to the location
    bytes: int
    sha256: str


class ShardLocation:
    """A folder of shards, ``<category>/manifest.json`` and what it names.

    Attributes:
        url: as it was given.
        here: the folder, if it is one of this machine; None behind a URL.
    """

    def __init__(self, url: str | Path, cache_bytes: int, connections: int) -> None:
        """Name the location.

        Args:
            url: see the module.
            cache_bytes: that remote files may take on disk.
            connections: downloads at once, of one process.
        """
        self.url, self.connections = str(url), connections
        self.cache_bytes = cache_bytes
        is_local = isinstance(_file_system(self.url, os.getpid(), Path.cwd())[0], LocalFileSystem)
        self.local_path = Path(self.url.removeprefix("file://")) if is_local else None

    def manifest(self, category: str) -> Manifest:
        """Read the manifest of a category.

        Raises:
            UserError: it is absent, or is none.
        """
        name = f"{category}/{manifest.MANIFEST_FILE}"
        return manifest.parse_manifest(self.read(name), self.full(name))

    def categories(self) -> list[str]:
        """List the categories that have a manifest, by name.

        Raises:
            UserError: the location cannot be listed (plain HTTP cannot), or holds none.
        """
        system, root = _file_system(self.url, os.getpid(), Path.cwd())
        try:
            found = sorted(path.split("/")[-2] for path in system.glob(f"{root}/*/{manifest.MANIFEST_FILE}"))
        except (OSError, NotImplementedError) as error:
            raise UserError(f"{self.url} cannot be listed ({first_sentence(error)}); name its categories") from error
        if not found:
            raise UserError(
                f"{self.url} holds no <category>/{manifest.MANIFEST_FILE}; run `dvc repro shard` or `dvc pull`, "
                "or correct the location"
            )
        return found

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            UserError: it cannot be had.
        """
        system, root = _file_system(self.url, os.getpid(), Path.cwd())
        return self._tried(name, lambda: bytes(system.cat_file(f"{root}/{name}")))

    def open(self, file: File, opener: Callable[[Path], Read]) -> Read:
        """Open a file named in a manifest, downloading it into the cache if it is remote.

        Args:
            file: its name, size and sha256.
            opener: is given a path on this machine and must open it at once.

        Raises:
            UserError: it cannot be had, or the cache is too small.
            FileNotFoundError: it is a local file and absent.
        """
        if self.local_path is not None:
            return opener(self.local_path / file.name)
        for _ in range(TRIES):
            cache = _cache(files.store() / "cache", self.cache_bytes, os.getpid())
            path = cache.get(file.sha256, file.bytes, lambda to: self._download(file, to))
            try:
                return opener(path)
            except FileNotFoundError:
                continue  # another process's download took its room in this moment
        raise UserError(f"the cache loses {file.name} before it is opened; raise stream.cache_gb")

    def index(self, category: str, shard: Shard) -> pa.Table:
        """Return the index of a shard, mapped from its file.

        Raises:
            UserError: it cannot be had, is no index, or lacks a column of one.
        """
        file = index_file(category, shard)
        try:
            table = self.open(file, mapped)
            return table.select(INDEX.names).replace_schema_metadata(table.schema.metadata)
        except (FileNotFoundError, KeyError, pa.ArrowException) as error:
            raise UserError(
                f"{self.full(file.name)} cannot be read ({first_sentence(error)}); run `dvc checkout`, or "
                "`effimini lint` to know what else is wrong"
            ) from error

    def prefetch(self, wanted: Iterable[File]) -> None:
        """Begin to download files into the cache, in this order; nothing for a local folder."""
        if self.local_path is None:
            queue = _downloads(self.connections, os.getpid())
            for file in wanted:
                queue.put((self, file))

    def full(self, name: str) -> str:
        """Return what a file is called in a sentence."""
        return f"{self.url.rstrip('/')}/{name}"

    def _download(self, file: File, to: Path) -> None:
        system, root = _file_system(self.url, os.getpid(), Path.cwd())

        def once() -> None:
            system.get_file(f"{root}/{file.name}", str(to))
            check_file(to, file.sha256, file.bytes)

        self._tried(file.name, once)

    def _tried(self, name: str, read: Callable[[], Read]) -> Read:
        """Call `read` until it succeeds, at most `TRIES` times with a growing pause; its last error as a sentence."""
        final = (FileNotFoundError, IsADirectoryError, PermissionError)
        tries = Retrying(
            stop=stop_after_attempt(1 if self.local_path is not None else TRIES),
            wait=wait_random_exponential(PAUSE, max=20),
            # an interrupt is no Exception and ends the read
            retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, final)),
            retry_error_callback=lambda state: self._give_up(name, state),
        )
        try:
            return tries(read)
        except FileNotFoundError:
            raise UserError(
                f"{self.full(name)} does not exist; run `dvc repro`, or `dvc pull`, to have it, or correct the location"
            ) from None
        except final as error:
            raise UserError(f"{self.full(name)} cannot be read ({first_sentence(error)})") from error

    def _give_up(self, name: str, state: RetryCallState) -> Any:
        assert state.outcome is not None
        error = state.outcome.exception()
        if isinstance(error, UserError):
            raise error
        why = f"{type(error).__name__}: {first_sentence(error)}" if isinstance(error, Exception) else str(error)
        raise UserError(
            f"{self.full(name)} could not be had in {state.attempt_number} tries ({why}); try again later"
        ) from error


def index_file(category: str, shard: Shard) -> File:
    """Return the file of a shard's index."""
    return File(f"{category}/{shard.index}", shard.index_bytes, shard.index_sha256)


def mapped(path: Path) -> pa.Table:
    """Return an index, mapped from a file on this machine.

    Raises:
        FileNotFoundError: it is absent.
        pyarrow.ArrowInvalid: it is no Arrow IPC file.
    """
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def open_file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system behind a location and the path of the location in it.

    Raises:
        UserError: no file system knows the URL, or what reads it is not installed.
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
            raise ValueError("it names no revision and folder")
        system, root = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{url} cannot be opened ({first_sentence(error)}); give a folder, an http(s) or s3 URL "
            "(`pip install effimini[s3]`), or dvc+<git URL or path>@<revision>#<folder>"
        ) from error
    return system, root.rstrip("/")


@lru_cache
def _file_system(url: str, process: int, folder: Path) -> tuple[Any, str]:
    """Return `open_file_system`, made anew in each process: file systems with threads do not survive a fork.

    A relative path is one of the working directory, `folder`.
    """
    return open_file_system(url)


@lru_cache
def _cache(folder: Path, limit: int, process: int) -> Cache:
    return Cache(folder, limit)


@lru_cache
def _downloads(connections: int, process: int) -> "SimpleQueue[tuple[ShardLocation, File]]":
    """Return a queue of files to download, worked off by threads that end with the process, whatever is left in it."""
    queue: SimpleQueue[tuple[ShardLocation, File]] = SimpleQueue()

    def work() -> None:
        while True:
            location, file = queue.get()
            with suppress(UserError):  # who needs the file asks for it again and says what is wrong
                location.open(file, lambda path: None)

    for _ in range(connections):
        Thread(target=work, daemon=True).start()
    return queue
