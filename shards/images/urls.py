"""Which URL is asked for an image, and where it is read from. Pure: no network, no disk.

In: the URLs of an item as they stand in its metadata, best first. Out: the URLs to ask, which name an image whoever
serves it, and for each the place that serves it here: the host itself, an HTTP mirror or a file of a directory.
Guaranteed: only http and https, and never a file outside the directory.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

# Reference: /images/W/<token>/images/I/<id> is the same picture as /images/I/<id>.
_TOKEN = re.compile(r"/images/W/[^/]+/images/I/")
# /images/I/<id>[._STYLE_].<extension>; a style holds its own dots and commas, as in ._CR0,0,300,300_SX38_
_NAME = re.compile(r"^(?P<id>.*/images/I/[^/.]+)(?:\._[^/]*_)?(?P<extension>\.[A-Za-z0-9]+)$")


def is_remote(base: str) -> bool:
    """Return whether images come over HTTP, from a mirror or from the host itself (""), and not from a directory."""
    return not base or base.startswith(("http://", "https://"))


def normalise(url: str, side: int) -> str | None:
    """Return the URL to ask, or None if it is not an absolute http(s) URL.

    Args:
        url: as in the metadata.
        side: longest side asked of the host by ``._SLn_``, px, in place of any style; 0 leaves the style as it is.
    """
    try:
        scheme, host, path, query, _ = urlsplit(url.strip())
        _ = urlsplit(url.strip()).port  # raises on a port that is no number
    except ValueError:
        return None
    # Credentials in a product's metadata would be sent to whom it names.
    if scheme not in {"http", "https"} or not host or "@" in host:
        return None
    path = _TOKEN.sub("/images/I/", path)
    if side:
        path = _NAME.sub(rf"\g<id>._SL{side}_\g<extension>", path)
    return urlunsplit((scheme, host, path, query, ""))


def candidates(image_urls: Iterable[str], side: int) -> list[str]:
    """Return the URLs to ask of an item, best first, each once; those that cannot be asked are left out."""
    asked = (normalise(url, side) for url in image_urls)
    return list(dict.fromkeys(url for url in asked if url))


def on_mirror(url: str, base: str) -> str | None:
    """Return the URL that serves `url` at an http(s) mirror, or None if its path would leave the mirror's.

    Args:
        url: as `normalise` returns it.
        base: such as ``http://127.0.0.1:8000/corpus``; "" is the host itself.
    """
    if not base:
        return url
    parts = urlsplit(url)
    if ".." in _segments(parts.path):
        return None
    return base.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")


def in_directory(url: str, base: str) -> Path | None:
    """Return the file below the directory `base` that holds `url`, or None if its path would leave the directory."""
    segments = _segments(urlsplit(url).path)
    if not segments or any(part == ".." or "\0" in part or "\\" in part for part in segments):
        return None
    return Path(base).joinpath(*segments)


def _segments(path: str) -> list[str]:
    """Return the names of a URL's path, unquoted before they are split, because %2F is a slash to a file system."""
    return [part for part in unquote(path).split("/") if part not in {"", "."}]
