"""Choose the URLs of an item's image and map them to a mirror. Pure: no network, no disk.

Input: the URLs of an item as in its metadata, best first. Output: the normalised URLs, which identify an image
independently of the server, and for each its source: the host itself, an HTTP mirror or a file of a directory.
Guarantees: only http and https; never a file outside the directory;
characters that may not be in a URL are quoted as a browser does, and a valid URL is unchanged.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from yarl import URL

# /images/W/<token>/images/I/<id> is the same image as /images/I/<id>.
_TOKEN = re.compile(r"/images/W/[^/]+/images/I/")
# /images/I/<id>[._STYLE_].<extension>; a style may contain dots and commas, as in ._CR0,0,300,300_SX38_
_NAME = re.compile(r"^(?P<id>.*/images/I/[^/.]+)(?:\._[^/]*_)?(?P<extension>\.[A-Za-z0-9]+)$")
# Characters that a browser quotes. Source: WHATWG URL, path and query percent-encode sets. An apostrophe in a query,
# which it quotes too, is valid and stays.
_IN_PATH = re.compile(r"[\x00-\x20\"#<>?^`{}\x7f-\U0010ffff]+")
_IN_QUERY = re.compile(r"[\x00-\x20\"#<>\x7f-\U0010ffff]+")


def is_remote(base: str) -> bool:
    """Return whether images come over HTTP, from a mirror or the host itself (""), rather than from a directory."""
    return not base or base.startswith(("http://", "https://"))


def normalise(url: str, side: int) -> str | None:
    """Return the URL to request, or None if it is not an absolute http(s) URL.

    Args:
        url: as in the metadata.
        side: longest side to request from the host, px; replaces any style by ``._SL<side>_``. 0 keeps the style.
    """
    try:
        scheme, host, path, query, _ = _split(url)
    except ValueError:
        return None
    path = _TOKEN.sub("/images/I/", path)
    if side:
        path = _NAME.sub(rf"\g<id>._SL{side}_\g<extension>", path)
    return urlunsplit((scheme, host, path, query, ""))


def quoted(url: str) -> str:
    """Return an absolute http(s) URL without fragment, its characters quoted as a browser does.

    Raises:
        ValueError: it is not an absolute http(s) URL, or contains a password.
    """
    return urlunsplit(_split(url)._replace(fragment=""))


def _split(url: str) -> SplitResult:
    """Return the components of an absolute http(s) URL, with all that needs it quoted.

    Raises:
        ValueError: it is not such a URL, or has a user or a password: they would be sent to any host that the metadata
            names.
    """
    head, mark, query = url.strip().partition("?")
    parts = urlsplit(head.replace("\\", "/") + mark + query)  # browsers take a backslash for a slash
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise ValueError("no absolute http(s) URL without a password")
    port = parts.port  # raises if it is invalid
    host = parts.netloc
    if not host.isascii():
        host = URL.build(scheme=parts.scheme, host=parts.hostname, port=port).raw_authority
    return parts._replace(netloc=host, path=_quote(_IN_PATH, parts.path), query=_quote(_IN_QUERY, parts.query))


def _quote(pattern: re.Pattern[str], text: str) -> str:
    """Quote what matches; bytes of a header that are not UTF-8 stay what they are."""
    return pattern.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape")), text
    )


def candidates(image_urls: Iterable[str], side: int) -> list[str]:
    """Return the URLs to request for an item, best first, without duplicates and invalid URLs."""
    normalised = (normalise(url, side) for url in image_urls)
    return list(dict.fromkeys(url for url in normalised if url))


def on_mirror(url: str, base: str) -> str | None:
    """Return the URL of `url` on an http(s) mirror, or None if its path would leave the mirror's path.

    Args:
        url: as `normalise` returns it.
        base: such as ``http://127.0.0.1:8000/corpus``; "" is the host itself.
    """
    if not base:
        return url
    components = urlsplit(url)
    if ".." in _segments(components.path):
        return None
    return base.rstrip("/") + components.path + (f"?{components.query}" if components.query else "")


def in_directory(url: str, base: str) -> Path | None:
    """Return the file of `url` below the directory `base`, or None if its path would leave the directory."""
    segments = _segments(urlsplit(url).path)
    if not segments or any(segment == ".." or "\0" in segment or "\\" in segment for segment in segments):
        return None
    return Path(base).joinpath(*segments)


def _segments(path: str) -> list[str]:
    """Return the segments of a URL's path; unquoted before splitting, because %2F is a slash to a file system."""
    return [segment for segment in unquote(path).split("/") if segment not in {"", "."}]
