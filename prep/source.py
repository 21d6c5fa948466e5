"""Locate raw files and images: the demo catalogue, a mirror of the hub's layout, the hub, or a table of any layout.

Input: the ``source`` section of the parameters.
Output: raw files of JSON lines, on a mirror also compressed or parquet, and the base that images are read from.
Guarantees: the bytes of a file are complete, or there is an error message. With ``source.keep_raw: false`` nothing of a
file that is downloaded over HTTP is kept.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from prep import demo, ranges, variants
from prep.core import files, locks
from prep.core.errors import UserError
from prep.core.params import SourceParams
from prep.core.retry import DEFAULT_POLICY, RetryPolicy
from prep.core.tables.raw import Kind

PATHS: dict[Kind, str] = {  # paths in the dataset's repository, and on a mirror
    "items": "raw/meta_categories/meta_{}.jsonl",
    "reviews": "raw/review_categories/{}.jsonl",
}


class SourceLocation(NamedTuple):
    """A location with the layout of the hub repository."""

    base: str  # a directory, or an http(s) base URL
    images: str  # the same for images, whose URLs' paths are below it; "" leaves the URLs unchanged

    @property
    def is_remote(self) -> bool:
        """Whether the location is on an HTTP server."""
        return self.base.startswith(("http://", "https://"))


class RawFile(NamedTuple):
    """A raw file of the source."""

    name: str  # path in the layout, for example raw/meta_categories/meta_All_Beauty.jsonl
    size: int  # bytes
    path: Path | None  # where its JSON lines are on this machine, None if they only arrive
    arriving: Callable[[], Iterator[bytes]] | None  # if `path` is None: yields them with a progress bar


def locate(source: SourceParams, category: str) -> SourceLocation:
    """Return the location of a category's files; generate its demo catalogue or convert the table first.

    The hub has no images: they are fetched from the hosts that it names, if their addresses are public.
    """
    if source.kind == "hub":
        return SourceLocation("", "")
    if source.kind == "mirror":
        return SourceLocation(source.location, source.location)
    if source.kind == "table":
        from prep.catalogue.convert import convert  # noqa: PLC0415 -- other sources need none of its libraries

        folder, images = convert(source, category)
        return SourceLocation(str(folder), images)
    return SourceLocation(*[str(_demo_catalogue(source, category))] * 2)


def raw_file(source: SourceParams, kind: Kind, category: str, policy: RetryPolicy = DEFAULT_POLICY) -> RawFile:
    """Return a raw file; with ``source.keep_raw``, a file on an HTTP server is first downloaded to the local store.

    On a mirror it may be compressed or parquet (`prep.variants`); its lines then arrive like those of a download.

    Args:
        source: the ``source`` section of the parameters.
        kind: which of the category's two files.
        category: one of ``source.categories``.
        policy: retries of each request.

    Raises:
        UserError: the file does not exist or cannot be fetched, or there is not enough disk space.
    """
    if source.kind != "hub" and not (location := locate(source, category)).is_remote:
        name, path = local_file(location, kind, category)
        return _local(kind, name, path)
    name, remote = remote_file(source, kind, category, policy)
    if not source.keep_raw:
        chunks = partial(ranges.read_ranges, remote, policy=policy)
        if name.endswith(variants.PLAIN):
            return RawFile(name, remote.size, None, chunks)
        if name.endswith(variants.PARQUET):
            return RawFile(name, remote.size, None, lambda: _arriving_parquet(kind, name, remote, policy))
        return RawFile(name, remote.size, None, lambda: variants.decompressed(name, chunks()))
    path = files.store() / "raw" / files.fingerprint(remote.url, remote.version, remote.size)[:16] / name
    ranges.download_file(remote, path, policy)
    return _local(kind, name, path)


def local_file(location: SourceLocation, kind: Kind, category: str) -> tuple[str, Path]:
    """Return the name in the layout and the path of a raw file at a location on this machine.

    Raises:
        UserError: the file does not exist.
    """
    plain = PATHS[kind].format(category)
    for name in variants.names(plain):
        if (path := Path(location.base) / name).is_file():
            return name, path
    raise UserError(
        f"source.location {location.base} has no file {plain} (nor {', '.join(variants.SUFFIXES[1:])}); check "
        "source.location and source.categories"
    )


def remote_file(
    source: SourceParams, kind: Kind, category: str, policy: RetryPolicy = DEFAULT_POLICY
) -> tuple[str, ranges.Remote]:
    """Return the name in the layout, and the URL, size and version of a file on the hub or on an http(s) mirror.

    Args:
        source: the ``source`` section of the parameters.
        kind: which of the category's two files.
        category: one of ``source.categories``.
        policy: retries of the request.

    Raises:
        UserError: the file does not exist, or cannot be fetched.
    """
    plain = PATHS[kind].format(category)
    if source.kind == "hub":
        from prep import hub  # noqa: PLC0415 -- takes half a second, which other sources need not spend

        return plain, hub.remote(source.revision, plain, policy)
    hint = "check source.location and source.categories, and that the server is running"
    missing = []
    for name in variants.names(plain):
        try:
            return name, ranges.probe(f"{source.location.rstrip('/')}/{name}", hint, policy)
        except ranges.MissingError as error:
            missing.append(error)
    raise missing[0]


def _local(kind: Kind, name: str, path: Path) -> RawFile:
    path = path.absolute()
    size = path.stat().st_size
    if name.endswith(variants.PLAIN):
        return RawFile(name, size, path, None)
    if name.endswith(variants.PARQUET):
        return RawFile(name, size, None, partial(variants.parquet_lines, kind, path))
    return RawFile(name, size, None, lambda: variants.decompressed(path.name, variants.file_chunks(path)))


def _arriving_parquet(kind: Kind, name: str, remote: ranges.Remote, policy: RetryPolicy) -> Iterator[bytes]:
    """Yield the lines of a parquet file, which has to be on this machine meanwhile: its index is at its end."""
    files.store().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=files.store()) as folder:
        path = Path(folder) / Path(name).name
        ranges.download_file(remote, path, policy)
        yield from variants.parquet_lines(kind, path)


def demo_place(source: SourceParams, category: str) -> Path:
    """Return the folder of the demo catalogue of a category, which may not exist yet."""
    return files.store() / "demo" / files.fingerprint(demo.FORMAT, source.demo, [category])[:16]


def _demo_catalogue(source: SourceParams, category: str) -> Path:
    """Return the demo catalogue of a category in the local store; generate it if these parameters are new."""
    catalogue = demo_place(source, category)
    if not files.intact(catalogue):
        with locks.hold(catalogue.with_suffix(".made")):
            if not files.intact(catalogue):  # another run made it, and reads it
                with files.atomic_folder(catalogue) as folder:
                    demo.write_catalogue(folder, [category], source.demo.items, source.demo.seed)
                    files.seal(catalogue, files.digest(folder))
    return catalogue
