"""Where raw files and images come from: the demo catalogue, a mirror of the hub's layout, or the hub.

In: the parameters' source section. Out: raw JSONL files, and the base that images are read from. Guaranteed: a file's
bytes are all that the source announced, or there is a sentence; with ``source.keep_raw: false`` nothing of a file that
comes over HTTP is kept here.
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

PATHS: dict[Kind, str] = {  # of the dataset's repository, and of a mirror
    "items": "raw/meta_categories/meta_{}.jsonl",
    "reviews": "raw/review_categories/{}.jsonl",
}


class SourceLocation(NamedTuple):
    """A place laid out like the hub repository, with images beside it under ``images/I/``."""

    base: str  # a directory, or an http(s) base URL

    @property
    def is_remote(self) -> bool:
        """Whether it is reached over HTTP."""
        return self.base.startswith(("http://", "https://"))


class RawFile(NamedTuple):
    """A raw file of the source."""

    name: str  # its path in the layout, raw/meta_categories/meta_All_Beauty.jsonl for example
    size: int  # bytes
    path: Path | None  # where it stands on this machine, if it does
    arriving: Callable[[], Iterator[bytes]] | None  # else gives its bytes in order, with a bar; or a UserError


def locate(source: SourceParams, category: str) -> SourceLocation:
    """Return where the files of a category are, making the demo catalogue of it first if that is the source.

    The hub holds no images: its base is "", which leaves an image's URL as it is, for public addresses only.
    """
    if source.kind == "hub":
        return SourceLocation("")
    if source.kind == "mirror":
        return SourceLocation(source.location)
    return SourceLocation(str(_demo_catalogue(source, category)))


def raw_file(source: SourceParams, kind: Kind, category: str, policy: RetryPolicy = DEFAULT_POLICY) -> RawFile:
    """Find a raw file; over HTTP and with ``source.keep_raw``, bring it into the local store first.

    Args:
        source: of the parameters.
        kind: which of the category's two files.
        category: a name of ``source.categories``.
        policy: how often and how soon the server is asked again.

    Raises:
        UserError: the file is not there, cannot be had, or has no room here.
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
    """Return what a file of the hub or of an http(s) mirror is.

    Args:
        source: of the parameters.
        name: the file's path in the layout.
        policy: how often and how soon the server is asked again.

    Raises:
        UserError: it is not there, or cannot be had.
    """
    if source.kind == "hub":
        from prep import hub  # noqa: PLC0415 -- half a second that every worker of another source would pay

        return hub.remote(source.revision, name, policy)
    url = f"{source.location.rstrip('/')}/{name}"
    return ranges.probe(url, "check source.location and source.categories, and that its server runs", policy)


def _local(name: str, path: Path) -> RawFile:
    return RawFile(name, path.stat().st_size, path.absolute(), None)


def _demo_catalogue(source: SourceParams, category: str) -> Path:
    """Make the demo catalogue of a category in the local store, once for its parameters."""
    catalogue = files.store() / "demo" / files.fingerprint(demo.FORMAT, source.demo, [category])[:16]
    if not catalogue.exists():
        with files.atomic_folder(catalogue) as folder:
            demo.write_catalogue(folder, [category], source.demo.items, source.demo.seed)
    return catalogue
