"""A file over HTTP, whole: ranges asked one after another, from a mirror or the hub alike.

In: a `Remote`, which says what the file must be. Out: its bytes in order, or the file in a folder. Guaranteed: what
comes out has the announced size, is of one version of the file (its ETag), and has the sha256 that the source tells,
where it tells one; a broken answer is asked again from the byte it broke at; a kept file stands under its name when it
is whole, and what a killed run had of it is not asked again; memory is one block.
"""

import errno
import hashlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx
from filelock import FileLock

from prep.core import files, progress
from prep.core.errors import UserError
from prep.core.retry import DEFAULT_POLICY, RetryPolicy, TransientError, is_transient, requested_wait

RANGE = 32 << 20  # bytes asked at a time
TIMEOUT = 30.0  # seconds of silence that break a request

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Remote(NamedTuple):
    """A file over HTTP, and what is known of it before it is read."""

    url: str
    size: int  # bytes
    version: str  # its ETag (the hub: X-Linked-Etag) or Last-Modified; "" if the server tells none
    sha256: str  # hex; "" if the source tells none
    headers: Callable[[], Mapping[str, str]]  # a function, so that no token is shown where a Remote is
    hint: str  # what to do when it cannot be had


def no_headers() -> Mapping[str, str]:
    """Return no headers, which is what a mirror is sent."""
    return {}


def probe(url: str, hint: str, policy: RetryPolicy = DEFAULT_POLICY) -> Remote:
    """Ask a server for the size and version of a file.

    Args:
        url: the file's.
        hint: what the user can do when it cannot be had.
        policy: how often and how soon it is asked again.

    Raises:
        UserError: the file is not there, the server does not answer or tells no size.
    """

    def ask() -> httpx.Response:
        try:
            with _client() as client:
                answer = client.head(url)
        except httpx.RequestError as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error
        _check_answer(answer, url, hint)
        return answer

    answer = _retried(ask, url, hint, policy)
    size = answer.headers.get("Content-Length", "")
    if not size.isdecimal():
        raise UserError(f"{url} comes without its size (Content-Length); serve it by a server that tells it")
    return Remote(url, int(size), _version(answer), "", no_headers, hint)


def read_ranges(
    remote: Remote, begin: int = 0, digest: "hashlib._Hash | None" = None, policy: RetryPolicy = DEFAULT_POLICY
) -> Iterator[bytes]:
    """Yield the bytes of a file from `begin` on, as they arrive.

    Args:
        remote: the file.
        begin: bytes that are there already.
        digest: a sha256 that has seen them; it sees the others too.
        policy: how often and how soon it is asked again.

    Raises:
        UserError: the bytes cannot be had, or the file changed while it was read.
        CorruptError: the whole has another sha256 than the source tells.
    """
    digest = digest or hashlib.sha256()
    position, started = begin, time.monotonic()
    blocks: Iterator[bytes] = iter(())
    name = remote.url.rpartition("/")[2]

    def block() -> bytes:
        nonlocal blocks
        try:
            return next(blocks)
        except StopIteration:  # the range is read, or broke off
            blocks = _answer(client, remote, position)
            return next(blocks)

    with _client() as client, progress.byte_bar(name, remote.size, begin) as advance:
        while position < remote.size:
            got = _retried(block, remote.url, remote.hint, policy)
            position += len(got)
            digest.update(got)
            advance(len(got))
            yield got
    if remote.sha256 and digest.hexdigest() != remote.sha256:
        raise CorruptError(
            f"{remote.url} came with sha256 {digest.hexdigest()}, which should be {remote.sha256}; run again to read "
            "it anew, and if that is in vain the server or a proxy before it is broken"
        )
    seconds = time.monotonic() - started
    had = position - begin
    _log.info("%s: %d bytes in %.1f s, %.1f MB/s", name, had, seconds, had / 1e6 / max(seconds, 1e-6))


class CorruptError(UserError):
    """What came is not what the source announced."""


def download_file(remote: Remote, path: Path, policy: RetryPolicy = DEFAULT_POLICY) -> None:
    """Bring a file to `path`, going on where an earlier run was stopped or killed.

    Args:
        remote: the file.
        path: where it stands when it is whole; the name must hold what the bytes depend on.
        policy: how often and how soon it is asked again.

    Raises:
        UserError: there is no room for it, or as `read_ranges`.
    """
    # One name for all runs, so that the next one finds it. The hub's own hf_hub_download is not used for that: in
    # huggingface_hub 2.4 its partial file has a random name (`_download_to_tmp_and_move`), so each run starts anew.
    partial = path.with_name(f".{path.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(partial.with_suffix(".lock")):  # another run may want the same file
        if path.exists():
            return
        had = partial.stat().st_size if partial.exists() else 0
        _check_disk_space(remote, had, path.parent)
        try:
            with partial.open("a+b") as file:
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256")
                for got in read_ranges(remote, had, digest, policy):
                    file.write(got)
                    file.flush()  # what came stays through a kill
        except CorruptError:
            partial.unlink()  # or the next run would go on with it
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _check_disk_space(remote, partial.stat().st_size, path.parent)
            raise
        files.commit(partial, path)


def _check_disk_space(remote: Remote, had: int, folder: Path) -> None:
    """Refuse a file that the disk has no room for; `had` bytes of it are there."""
    needed, free = remote.size - had, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{remote.url} needs {needed:,} bytes more in {folder}, where {free:,} are free; make room there, set "
            "EFFIMINI_STORE to a folder of a larger disk, or set source.keep_raw: false to keep no raw file"
        )


def _client() -> httpx.Client:
    """Return a client; at a redirect to another host it leaves the Authorization header out."""
    return httpx.Client(timeout=TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"})


def _retried(ask: Callable[[], T], url: str, hint: str, policy: RetryPolicy) -> T:
    try:
        return policy.retrying()(ask)
    except TransientError as fault:
        raise UserError(f"{url} cannot be read after {policy.max_attempts} tries ({fault}); {hint}") from fault


def _answer(client: httpx.Client, remote: Remote, begin: int) -> Iterator[bytes]:
    """Yield what one request brings from `begin` on: a range, or all where the server knows no ranges.

    Raises:
        TransientError: the answer breaks off or is not the one asked for.
        UserError: there is no answer to be had, or it is of another version.
    """
    end = min(begin + RANGE, remote.size)
    headers = {**remote.headers(), "Range": f"bytes={begin}-{end - 1}"}
    try:
        with client.stream("GET", remote.url, headers=headers) as answer:
            if answer.status_code == 416:
                raise _changed_on_server(remote, "is shorter")
            _check_answer(answer, remote.url, remote.hint)
            at, end = _span(answer, remote, begin, end)
            for block in answer.iter_raw():
                wanted = block[max(0, begin - at) : end - at]
                at += len(block)
                if wanted:
                    begin += len(wanted)
                    yield wanted
    except httpx.RequestError as error:
        raise TransientError(f"{type(error).__name__}: {error}") from error
    if begin < end:
        raise TransientError(f"the answer ended {end - begin} bytes early")


def _check_answer(answer: httpx.Response, url: str, hint: str) -> None:
    """Refuse an answer that brings no file.

    Raises:
        TransientError: a later one may.
        UserError: none will.
    """
    status = answer.status_code
    if is_transient(status):
        raise TransientError(f"HTTP {status}", wait=requested_wait(answer.headers))
    if status not in {200, 206}:
        said = answer.headers.get("X-Error-Message", "")  # the hub's
        raise UserError(f"{url} answered {status}{said and f' ({said[:200]})'}; {hint}")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{url} comes compressed ({answer.headers['Content-Encoding']}); serve the file as it is")


def _span(answer: httpx.Response, remote: Remote, begin: int, end: int) -> tuple[int, int]:
    """Return the first byte that an answer brings and the end of what it brings of the file.

    Args:
        answer: to a request for a range.
        remote: the file.
        begin: the first byte asked for.
        end: the end of the range asked for.
    """
    version = _version(answer)
    if version and remote.version and version != remote.version:
        raise _changed_on_server(remote, f"was {remote.version} and is {version} now")
    length = answer.headers.get("Content-Length")
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != begin or int(found[2]) >= end:
            raise TransientError(
                f"asked for bytes {begin}-{end - 1}, got {answer.headers.get('Content-Range', 'no range')}"
            )
        if found[3] not in {"*", str(remote.size)}:
            raise _changed_on_server(remote, f"had {remote.size} bytes and has {found[3]} now")
        at, end = begin, int(found[2]) + 1
    else:
        at, end = 0, remote.size
    # An error page with status 200 has another length, or none.
    if length != str(end - at) and (length is not None or answer.status_code == 200):
        raise TransientError(
            f"{length or 'an unknown number of'} bytes of {answer.headers.get('Content-Type', '?')} came"
        )
    return at, end


def _changed_on_server(remote: Remote, how: str) -> UserError:
    return UserError(f"{remote.url} changed while it was read: it {how}; run again to read the new one")


def _version(answer: httpx.Response) -> str:
    """Return what names the version of a file: the hub's tag, which stands in its redirect, or the server's."""
    linked = (one.headers.get("X-Linked-Etag") for one in (*answer.history, answer))
    tag = next(filter(None, linked), "") or answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
    return str(tag).removeprefix("W/").strip('"')
