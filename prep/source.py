"""Locate raw files and images: the demo catalogue, a mirror of the hub's layout, or the hub.

Input: the ``source`` section of the parameters.
Output: raw JSONL files, and the base that images are read from.
Guarantees: the bytes of a file are complete, or there is an error message. With ``source.keep_raw: false`` nothing of a
file that is downloaded over HTTP is kept.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from prep import demo, ranges
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import SourceParams
from prep.core.retry import DEFAULT_POLICY, RetryPolicy
from prep.core.tables.raw import Kind

PATHS: dict[Kind, str] = {  # paths in the dataset's repository, and on a mirror
    "items": "raw/meta_categories/meta_{}.jsonl",
    "reviews": "raw/review_categories/{}.jsonl",
}


class SourceLocation(NamedTuple):
    """A location with the layout of the hub repository, and images in ``images/I/``."""

    base: str  # a directory, or an http(s) base URL

    @property
    def is_remote(self) -> bool:
        """Whether the location is on an HTTP server."""
        return self.base.startswith(("http://", "https://"))


class RawFile(NamedTuple):
    """A raw file of the source."""

    name: str  # path in the layout, for example raw/meta_categories/meta_All_Beauty.jsonl
    size: int  # bytes
    path: Path | None  # where the file is on this machine, None if it is only on the server
    arriving: Callable[[], Iterator[bytes]] | None  # if `path` is None: downloads it with a progress bar


def locate(source: SourceParams, category: str) -> SourceLocation:
    """Return the location of a category's files; generate its demo catalogue first if that is the source.

    The hub has no images. Its base is "", which leaves image URLs unchanged; only public addresses are then fetched.
    """
    if source.kind == "hub":
        return SourceLocation("")
    if source.kind == "mirror":
        return SourceLocation(source.location)
    return SourceLocation(str(_demo_catalogue(source, category)))


def raw_file(source: SourceParams, kind: Kind, category: str, policy: RetryPolicy = DEFAULT_POLICY) -> RawFile:
    """Return a raw file; with ``source.keep_raw``, a file on an HTTP server is first downloaded to the local store.

    Args:
        source: the ``source`` section of the parameters.
        kind: which of the category's two files.
        category: one of ``source.categories``.
        policy: retries of each request.

    Raises:
        UserError: the file does not exist or cannot be fetched, or there is not enough disk space.
    """
    name = PATHS[kind].format(category)
    location = locate(source, category)
    if source.kind != "hub" and not location.is_remote:
        path = Path(location.base) / name
        if not path.is_file():
            raise UserError(
                f"source.location {location.base} has no file {name}; check source.location and source.categories"
            )
        return _local(name, path)
    remote = remote_file(source, name, policy)
    if not source.keep_raw:
        return RawFile(name, remote.size, None, partial(ranges.read_ranges, remote, policy=policy))
    path = files.store() / "raw" / files.fingerprint(remote.url, remote.version, remote.size)[:16] / name
    ranges.download_file(remote, path, policy)
    return _local(name, path)


def remote_file(source: SourceParams, name: str, policy: RetryPolicy = DEFAULT_POLICY) -> ranges.Remote:
    """Return the URL, size and version of a file on the hub or on an http(s) mirror.

    Args:
        source: the ``source`` section of the parameters.
        name: path of the file in the layout.
        policy: retries of the request.

    Raises:
        UserError: the file does not exist, or cannot be fetched.
    """
    if source.kind == "hub":
        from prep import hub  # noqa: PLC0415 -- takes half a second, which other sources need not spend

        return hub.remote(source.revision, name, policy)
    url = f"{source.location.rstrip('/')}/{name}"
    return ranges.probe(url, "check source.location and source.categories, and that the server is running", policy)


def _local(name: str, path: Path) -> RawFile:
    return RawFile(name, path.stat().st_size, path.absolute(), None)


def _demo_catalogue(source: SourceParams, category: str) -> Path:
    """Return the demo catalogue of a category in the local store; generate it if these parameters are new."""
    catalogue = files.store() / "demo" / files.fingerprint(demo.FORMAT, source.demo, [category])[:16]
    if not catalogue.exists():
        with files.atomic_folder(catalogue) as folder:
            demo.write_catalogue(folder, [category], source.demo.items, source.demo.seed)
    return catalogue
