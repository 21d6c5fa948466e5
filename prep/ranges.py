"""Download a file over HTTP with range requests, from a mirror or the hub.

Input: a `Remote` with the expected size, version and sha256 of the file.
Output: the bytes of the file in order, or the file on disk.
Guarantees: the bytes have the announced size, are from one version of the file (its ETag), and have the source's sha256
if it publishes one. An interrupted response is resumed at the byte where it stopped. A file has its final name only
when it is complete, and ranges that a killed run downloaded are not requested again, except the last one: if the power
failed, it may not be on disk. A file that was changed on disk is downloaded again; one whose sha256 the store has under
another revision is not. Memory is bounded by one block.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import httpx

from prep.core import files, locks, progress
from prep.core.errors import UserError
from prep.core.retry import (
    CONNECT_TIMEOUT,
    DEFAULT_POLICY,
    FIRST_TIMEOUT,
    RequestFailedError,
    RetryPolicy,
    TransientError,
    is_transient,
    proxy_refusal,
    refused,
    unanswered,
    usable_proxies,
)

RANGE = 32 << 20  # bytes per request
TIMEOUT = 30.0  # seconds without data before a request fails

_NO_ANSWER = (httpx.RequestError, httpx.InvalidURL, UnicodeError)  # the last one is of a name that cannot be encoded

T = TypeVar("T")

log = logging.getLogger(__name__)


class Remote(NamedTuple):
    """A file on an HTTP server, and what is known about it before the download."""

    url: str
    size: int  # bytes
    version: str  # ETag (on the hub X-Linked-Etag) or Last-Modified; "" if the server sends none
    sha256: str  # hex; "" if the source does not publish it
    headers: Callable[[], Mapping[str, str]]  # a function, so that the repr of a Remote shows no token
    hint: str  # what the user can do if the download fails


def no_headers() -> Mapping[str, str]:
    """Return no headers: a mirror needs none."""
    return {}


def probe(url: str, hint: str, policy: RetryPolicy = DEFAULT_POLICY) -> Remote:
    """Request the size and version of a file from its server.

    Args:
        url: URL of the file.
        hint: what the user can do if the request fails.
        policy: retries of the request.

    Raises:
        UserError: the file does not exist, or the server does not respond or does not send the size.
    """

    def ask() -> httpx.Response:
        try:
            answer = client.head(url)
        except _NO_ANSWER as error:
            raise unanswered(error, url) from error
        _check_answer(answer, url, hint)
        return answer

    with _client(FIRST_TIMEOUT) as client:
        answer = _retried(ask, url, hint, policy)
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise _page(url, "is text/html", hint)
    size = answer.headers.get("Content-Length", "")
    if not size.isdecimal():
        raise UserError(f"{url} is sent without its size (Content-Length); use a server that sends this header")
    return Remote(url, int(size), _version(answer), "", no_headers, hint)


def read_ranges(
    remote: Remote, begin: int = 0, digest: "hashlib._Hash | None" = None, policy: RetryPolicy = DEFAULT_POLICY
) -> Iterator[bytes]:
    """Yield the bytes of a file from offset `begin` to its end, as they arrive.

    Args:
        remote: the file.
        begin: number of bytes that are downloaded already.
        digest: sha256 object that was updated with these bytes; it is updated with the others too.
        policy: retries of each request.

    Raises:
        UserError: the bytes cannot be fetched, or the file changed during the download.
        CorruptError: the sha256 of the file differs from the source's.
    """
    digest = digest or hashlib.sha256()
    position, started = begin, time.monotonic()
    blocks: Iterator[bytes] = iter(())
    name = remote.url.rpartition("/")[2]

    def block() -> bytes:
        nonlocal blocks
        try:
            return next(blocks)
        except StopIteration:  # the range is complete, or was interrupted
            blocks = _answer(client, remote, position)
            return next(blocks)

    with _client() as client, progress.byte_bar(name, remote.size, begin) as advance:
        while position < remote.size:
            got = _retried(block, remote.url, remote.hint, policy)
            if position == 0 and (start := got.lstrip(b"\xef\xbb\xbf \t\r\n")).startswith(b"<"):
                raise _page(remote.url, f"begins with {start[:40]!r}", remote.hint)
            position += len(got)
            digest.update(got)
            advance(len(got))
            yield got
    if remote.sha256 and digest.hexdigest() != remote.sha256:
        raise CorruptError(
            f"{remote.url} has sha256 {digest.hexdigest()}, expected {remote.sha256}; run again to download it again; "
            "if the error persists, the server or a proxy in front of it is faulty"
        )
    seconds = time.monotonic() - started
    fetched = position - begin
    log.info("%s: %d bytes in %.1f s, %.1f MB/s", name, fetched, seconds, fetched / 1e6 / max(seconds, 1e-6))


class MissingError(UserError):
    """The server has no such file, or does not tell."""


class CorruptError(UserError):
    """The downloaded bytes are not those that the source announced."""


def download_file(remote: Remote, path: Path, policy: RetryPolicy = DEFAULT_POLICY) -> None:
    """Download a file to `path`, and resume where an earlier run was stopped or killed.

    Args:
        remote: the file.
        path: the final path; it must contain everything that the bytes depend on, the version for example.
        policy: retries of each request.

    Raises:
        UserError: there is not enough disk space, or as in `read_ranges`.
    """
    # The partial file has the same name in every run, so that the next run can resume. hf_hub_download does not do
    # this: in huggingface_hub 2.4 its partial file has a random name (`_download_to_tmp_and_move`), so each run starts
    # from the beginning.
    partial = path.with_name(f".{path.name}.partial")
    with locks.hold(path):  # another run may download the same file
        if files.intact(path) or _is_known(remote, path) or _is_linked(remote, path):
            return
        size = partial.stat().st_size if partial.exists() else 0
        _check_disk_space(remote, size, path.parent)
        done = max(0, size - 1) // RANGE * RANGE  # the bytes before it were flushed; others may be zeros by now
        try:
            with partial.open("a+b") as file:
                file.truncate(done)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256")
                for got in read_ranges(remote, done, digest, policy):
                    _append(file, got)
        except CorruptError:
            partial.unlink()  # otherwise the next run would resume it
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _check_disk_space(remote, partial.stat().st_size, path.parent)
            raise
        files.seal(path, digest.hexdigest())
        files.commit(partial, path)


def _append(file: BinaryIO, got: bytes) -> None:
    """Append bytes to a partial file, so that they survive a kill; flush each whole range to disk before the next."""
    rest = memoryview(got)
    while rest:
        room = RANGE - file.tell() % RANGE
        file.write(rest[:room])
        file.flush()
        if len(rest) >= room:
            os.fsync(file.fileno())
        rest = rest[room:]


def _is_known(remote: Remote, path: Path) -> bool:
    """Return whether a file that has no seal is the one whose sha256 the source publishes; seal it if so."""
    known = bool(remote.sha256) and path.exists() and files.digest(path) == remote.sha256
    if known:
        files.seal(path, remote.sha256)
    return known


def _is_linked(remote: Remote, path: Path) -> bool:
    """Return whether the local store has the same bytes under another revision; link them to `path` if so."""
    root = files.store() / "raw"
    if not (remote.sha256 and path.is_relative_to(root)):
        return False
    for other in sorted(root.glob(str(Path("*", *path.relative_to(root).parts[1:])))):
        if other != path and other.stat().st_size == remote.size and files.intact(other) == remote.sha256:
            files.link(other, path)
            files.seal(path, remote.sha256)
            log.info("%s: as in another revision, so it is not downloaded again", path.name)
            return True
    return False


def _check_disk_space(remote: Remote, done: int, folder: Path) -> None:
    """Raise if `folder` has too little disk space for the rest of a file, of which `done` bytes are downloaded."""
    needed, free = remote.size - done, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{remote.url} needs {needed:,} bytes more in {folder}, where {free:,} are free; free up disk space, set "
            "EFFIMINI_STORE to a folder on a larger disk, or set source.keep_raw: false to keep no raw files"
        )


def _client(timeout: float = TIMEOUT) -> httpx.Client:
    """Return a client; httpx removes the Authorization header on a redirect to another host."""
    limits = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)
    with usable_proxies(httpx.InvalidURL):
        return httpx.Client(timeout=limits, follow_redirects=True, headers={"Accept-Encoding": "identity"})


def _retried(ask: Callable[[], T], url: str, hint: str, policy: RetryPolicy) -> T:
    try:
        return policy.call(ask, url)
    except RequestFailedError as fault:
        raise UserError(f"{url} cannot be fetched {fault.summary}; {hint}") from fault


def _answer(client: httpx.Client, remote: Remote, begin: int) -> Iterator[bytes]:
    """Yield the bytes of one response, from `begin` on: a range, or all if the server does not support ranges.

    Raises:
        TransientError: the response is incomplete, or is not the requested range.
        UserError: the request fails permanently, or the response is another version of the file.
    """
    end = min(begin + RANGE, remote.size)
    headers = {**remote.headers(), "Range": f"bytes={begin}-{end - 1}"}
    try:
        with client.stream("GET", remote.url, headers=headers) as answer:
            if answer.status_code == 416:
                raise _changed_on_server(remote, "is shorter now")
            _check_answer(answer, remote.url, remote.hint)
            at, end = _span(answer, remote, begin, end)
            for block in answer.iter_raw():
                wanted = block[max(0, begin - at) : max(0, end - at)]
                at += len(block)
                if wanted:
                    begin += len(wanted)
                    yield wanted
                if at > end:  # more than was announced, perhaps without end
                    break
    except _NO_ANSWER as error:
        raise unanswered(error, remote.url) from error
    if begin < end:
        raise TransientError(f"the response ended {end - begin} bytes early", status=answer.status_code)


def _check_answer(answer: httpx.Response, url: str, hint: str) -> None:
    """Check that a response contains the file.

    Raises:
        TransientError: it does not, and a retry may succeed.
        UserError: it does not, and a retry would fail too.
    """
    status = answer.status_code
    if is_transient(status):
        raise refused(status, answer.headers)
    if status == 407:
        raise proxy_refusal(url)
    if status not in {200, 206}:
        reason = answer.headers.get("X-Error-Message", "")  # sent by the hub
        failure = MissingError if status in {403, 404, 410} else UserError
        raise failure(f"{url} responded with HTTP {status}{reason and f' ({reason[:200]})'}; {hint}")
    plain = {"identity", "gzip", "x-gzip"} if url.endswith(".gz") else {"identity"}  # servers label .gz files so
    if answer.headers.get("Content-Encoding", "identity") not in plain:
        raise UserError(
            f"{url} is sent compressed ({answer.headers['Content-Encoding']}); use a server that sends the plain file"
        )


def _span(answer: httpx.Response, remote: Remote, begin: int, end: int) -> tuple[int, int]:
    """Return the begin and end of the bytes of the file that a response contains.

    Args:
        answer: response to a range request.
        remote: the file.
        begin: begin of the requested range.
        end: end of the requested range, exclusive.

    Raises:
        TransientError: the response is not the requested range.
        UserError: the response is another version of the file.
    """
    version = _version(answer)
    if version and remote.version and version != remote.version:
        raise _changed_on_server(remote, f"was {remote.version} and is {version} now")
    length = answer.headers.get("Content-Length")
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != begin or int(found[2]) >= end:
            raise TransientError(
                f"requested bytes {begin}-{end - 1}, received {answer.headers.get('Content-Range', 'no range')}"
            )
        if found[3] not in {"*", str(remote.size)}:
            raise _changed_on_server(remote, f"had {remote.size} bytes and has {found[3]} now")
        at, end = begin, int(found[2]) + 1
    else:
        at, end = 0, remote.size
    # An error page with status 200 has another Content-Length, or none.
    if length != str(end - at) and (length is not None or answer.status_code == 200):
        raise TransientError(
            f"received {length or 'an unknown number of'} bytes of {answer.headers.get('Content-Type', '?')}, "
            f"expected {end - at}"
        )
    return at, end


def _page(url: str, how: str, hint: str) -> UserError:
    return UserError(f"{url} {how}: it is a page, perhaps of a login, and not a file of JSON lines; {hint}")


def _changed_on_server(remote: Remote, how: str) -> UserError:
    return UserError(f"{remote.url} changed while it was read: it {how}; run again to read the new version")


def _version(answer: httpx.Response) -> str:
    """Return the version of a file: the hub's tag, which is in its redirect, or the server's ETag or Last-Modified."""
    linked = (one.headers.get("X-Linked-Etag") for one in (*answer.history, answer))
    tag = next(filter(None, linked), "") or answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
    return str(tag).removeprefix("W/").strip('"')
