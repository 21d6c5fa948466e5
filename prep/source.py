"""Where raw files and images come from: the demo catalogue, a mirror of the hub's layout, or the hub.

In: the parameters' source section. Out: local paths of raw JSONL files, and the base that images are read from.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import httpx
import tenacity

from prep import demo, files
from prep.faults import UserError
from prep.params import Source

Table = Literal["items", "reviews"]
_PATHS: dict[Table, str] = {
    "items": "raw/meta_categories/meta_{}.jsonl",
    "reviews": "raw/review_categories/{}.jsonl",
}


class Location(NamedTuple):
    """A place laid out like the hub repository, with images beside it under ``images/I/``."""

    base: str  # a directory, or an http(s) base URL

    @property
    def is_remote(self) -> bool:
        """Whether it is reached over HTTP."""
        return self.base.startswith(("http://", "https://"))

    @contextmanager
    def raw_file(self, table: Table, category: str) -> Iterator[Path]:
        """Give the path of a raw JSONL file; one that came over HTTP is gone afterwards.

        Raises:
            UserError: the file does not exist there or cannot be had.
        """
        name = _PATHS[table].format(category)
        if self.is_remote:
            with tempfile.TemporaryDirectory(prefix="effimini-") as scratch:
                path = Path(scratch) / Path(name).name
                _download(f"{self.base.rstrip('/')}/{name}", path)
                yield path
        else:
            path = Path(self.base) / name
            if not path.is_file():
                raise UserError(
                    f"source.location {self.base} has no file {name}; check source.location and source.categories"
                )
            yield path


def locate(source: Source) -> Location:
    """Return where the source's files are, making the demo catalogue first if that is the source.

    Raises:
        UserError: the source is the hub, which is not supported yet.
    """
    if source.kind == "hub":
        raise UserError(
            "source.kind is hub, which this version cannot read yet; "
            "download the raw files and set source.kind: mirror and source.location to their folder"
        )
    if source.kind == "mirror":
        return Location(source.location)
    return Location(str(_demo_catalogue(source)))


def _demo_catalogue(source: Source) -> Path:
    """Make the demo catalogue in the local store, once for its parameters."""
    catalogue = files.store() / "demo" / files.fingerprint(demo.FORMAT, source.demo, source.categories)[:16]
    if not catalogue.exists():
        with files.folder(catalogue) as partial:
            demo.write_catalogue(partial, source.categories, source.demo.items, source.demo.seed)
    return catalogue


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(httpx.TransportError),
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=20),
    stop=tenacity.stop_after_attempt(5),
    reraise=True,
)
def _stream(url: str, path: Path) -> None:
    with httpx.stream("GET", url, timeout=30, follow_redirects=True) as answer, path.open("wb") as file:
        answer.raise_for_status()
        # httpx raises a TransportError when the body ends before its Content-Length
        for block in answer.iter_bytes(1 << 20):
            file.write(block)


def _download(url: str, path: Path) -> None:
    try:
        _stream(url, path)
    except httpx.HTTPStatusError as error:
        raise UserError(
            f"{url} answered {error.response.status_code}; check source.location and source.categories"
        ) from error
    except httpx.TransportError as error:
        raise UserError(
            f"{url} cannot be read ({type(error).__name__}: {error}); check source.location and that its server runs"
        ) from error
