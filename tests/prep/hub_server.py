"""The hub of benchmarks/rehearsal, and further faults of its file server."""

import email.utils
import time

from benchmarks.rehearsal.hub import (
    API,
    COMMIT,
    NEWEST,
    RESOLVE,
    Asked,
    Content,
    Hub,
    Request,
    cut,
    refusing,
    reset,
    status,
)

__all__ = ["API", "COMMIT", "NEWEST", "RESOLVE", "Asked", "Hub", "cut", "refusing", "reset", "status"]


def closed_for(hub: "Hub", seconds: float, **headers: str) -> None:
    """Make the file server respond with 429 for a number of seconds, and serve files after that."""
    end = time.time() + seconds

    def fault(request: Request, content: Content, etag: str) -> None:
        if time.time() < end:
            hub.faults.appendleft(fault)
            request.answer(429, **headers)
        else:
            request.file(content, etag)

    hub.faults.appendleft(fault)


def http_date(seconds: float) -> str:
    """Return a time from now as an HTTP date."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def short(request: Request, content: Content, etag: str) -> None:
    """Fault: fewer bytes than requested, with the correct Content-Length."""
    request.answer(206, content[:10], ETag=etag, Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")


def elsewhere(request: Request, content: Content, etag: str) -> None:
    """Fault: another range than the requested one, without Content-Length."""
    request.close_connection = True
    request.answer(206, content[1:9], ETag=etag, Content_Length="", Content_Range=f"bytes 1-8/{len(content)}")


def faint(request: Request, content: Content, etag: str) -> None:
    """Fault: the connection ends early, without a Content-Length that would show it."""
    request.close_connection = True
    begin = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0])
    given = f"bytes {begin}-{begin + 99}/{len(content)}"
    request.answer(206, content[begin : begin + 50], ETag=etag, Content_Length="", Content_Range=given)


def page(request: Request, *_: object) -> None:
    """Fault: an error page with status 200."""
    request.answer(200, b"<html>come back later</html>", Content_Type="text/html")


def whole(request: Request, content: Content, etag: str) -> None:
    """Fault: the Range header is ignored."""
    request.answer(200, content, ETag=f'"{etag}"')


def corrupt(request: Request, content: Content, etag: str) -> None:
    """Fault: other bytes of the right length."""
    request.file(bytes(len(content)), etag)


def grown(request: Request, content: Content, etag: str) -> None:
    """Fault: the file has become longer, with the same ETag."""
    request.file(content + b"more", etag)


def changed(request: Request, content: Content, _: str) -> None:
    """Fault: the file has changed."""
    request.file(content, "another")
