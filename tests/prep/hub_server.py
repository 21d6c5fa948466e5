"""Two real HTTP servers on loopback that implement the hub's protocol and can inject faults.

One is the hub: listings, paths-info, refs, and redirects to files. The other one, on another port, serves the files.
Both record their requests. The second server on its own is a plain mirror.
"""

import email.utils
import hashlib
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from prep.hub import REPO

COMMIT, NEWEST = "1" * 40, "2" * 40
API, RESOLVE = f"/api/datasets/{REPO}/", f"/datasets/{REPO}/resolve/"


class Asked(NamedTuple):
    """A received request."""

    method: str
    path: str
    range: str
    token: str


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        header = self.headers.get
        self.server.asked.append(Asked(self.command, self.path, header("Range", ""), header("Authorization", "")))
        self.server.serve(self)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | given).items():
            if value:  # Content_Length="" omits the header
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        """Close the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def file(self, content: bytes, etag: str, cut: float = 1) -> None:
        """Respond with the requested range; `cut` is the fraction of it that is sent before the connection ends."""
        begin, end = 0, len(content)
        headers = {"ETag": f'"{etag}"'}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(end, int(last) + 1 if last else end)
            if begin >= len(content):
                self.answer(416, Content_Range=f"bytes */{len(content)}")
                return
            headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        body = content[begin:end]
        headers["Content_Length"] = str(len(body))
        self.close_connection = cut < 1
        self.answer(206 if asked else 200, body[: int(len(body) * cut)], **headers)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, serve: Callable[[_Request], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.serve = serve
        self.asked: list[Asked] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close the connection."""


class Hub:
    """The hub with its files, a context manager.

    Each request for the bytes of a file consumes one of `faults`, each other request to the hub one of `api_faults`;
    None is a request that succeeds.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.announced: dict[str, int] = {}  # wrong sizes, by path
        self.faults: deque[Callable[[_Request, bytes, str], None] | None] = deque()
        self.api_faults: deque[Callable[[_Request], None] | None] = deque()
        self.hub, self.cdn = _Server(self._hub), _Server(self._cdn)
        self.url = self.hub.url

    def __enter__(self) -> "Hub":
        for server in (self.hub, self.cdn):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()

    def ranges(self) -> list[str]:
        """Return the requested byte ranges, in order."""
        return [asked.range.removeprefix("bytes=") for asked in self.cdn.asked if asked.method == "GET"]

    def _entry(self, path: str) -> dict[str, object]:
        content = self.files[path]
        size, sha = self.announced.get(path, len(content)), _sha(content)
        lfs = {"oid": sha, "size": size, "pointerSize": 130}
        return {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest(), "lfs": lfs}

    def _hub(self, request: _Request) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(request.path).path)
        if not path.startswith((API, RESOLVE)):
            _refuse(request, 404, "RepoNotFound")
            return
        if self.api_faults and (fault := self.api_faults.popleft()):
            fault(request)
            return
        word, _, rest = path.removeprefix(API).partition("/")
        revision, _, name = (path.removeprefix(RESOLVE) if path.startswith(RESOLVE) else rest).partition("/")
        if word == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": NEWEST}
            _json(request, {"branches": [main], "converts": [], "tags": []})
        elif revision not in {COMMIT, NEWEST}:
            _refuse(request, 404, "RevisionNotFound")
        elif path.startswith(RESOLVE):
            if name not in self.files:
                _refuse(request, 404, "EntryNotFound")
                return
            content = self.files[name]
            request.answer(
                302, Location=f"{self.cdn.url}/{name}?signed=secret", X_Linked_Etag=f'"{_sha(content)}"',
                X_Linked_Size=str(len(content)), X_Repo_Commit=revision, ETag='"of the redirect"',
            )  # fmt: skip
        elif word == "revision":
            _json(request, {"id": REPO, "sha": revision, "siblings": [], "tags": []})
        elif word == "paths-info":
            _json(request, [self._entry(path) for path in parse_qs(body)["paths"] if path in self.files])
        elif word == "tree":
            self._tree(request, name)
        else:
            _refuse(request, 404, "EntryNotFound")

    def _tree(self, request: _Request, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in self.files if path.startswith(prefix)]
        if not inside:
            _refuse(request, 404, "EntryNotFound")
            return
        folders = {prefix + path.removeprefix(prefix).partition("/")[0] for path in inside}
        entries = [self._entry(path) for path in inside if path in folders]
        entries += [{"type": "directory", "path": path, "oid": "3" * 40} for path in folders if path not in self.files]
        _json(request, entries)

    def _cdn(self, request: _Request) -> None:
        path = unquote(urlsplit(request.path).path).removeprefix("/")
        if path not in self.files:
            request.answer(404)
            return
        content = self.files[path]
        etag = f"cdn-{_sha(content)[:8]}"
        if path in self.announced and request.command == "HEAD":
            request.answer(200, Content_Length=str(self.announced[path]), ETag=etag)
        elif request.command == "GET" and self.faults and (fault := self.faults.popleft()):
            fault(request, content, etag)
        else:
            request.file(content, etag)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(request: _Request, content: object) -> None:
    request.answer(200, json.dumps(content).encode(), Content_Type="application/json")


def _refuse(request: _Request, status: int, code: str, message: str = "") -> None:
    request.answer(status, X_Error_Code=code, X_Error_Message=message or code)


def refusing(status: int, code: str, message: str = "") -> Callable[[_Request], None]:
    """Return a fault of the hub: an error response with the hub's error code."""
    return lambda request: _refuse(request, status, code, message)


def status(code: int, **headers: str) -> Callable[..., None]:
    """Return a fault: a response with this status and no body."""
    return lambda request, *_: request.answer(code, **headers)


def closed_for(hub: "Hub", seconds: float, **headers: str) -> None:
    """Make the file server respond with 429 for a number of seconds, and serve files after that."""
    end = time.time() + seconds

    def fault(request: _Request, content: bytes, etag: str) -> None:
        if time.time() < end:
            hub.faults.appendleft(fault)
            request.answer(429, **headers)
        else:
            request.file(content, etag)

    hub.faults.appendleft(fault)


def http_date(seconds: float) -> str:
    """Return a time from now as an HTTP date."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def reset(request: _Request, *_: object) -> None:
    """Fault: a TCP reset."""
    request.reset()


def cut(request: _Request, content: bytes, etag: str) -> None:
    """Fault: the connection ends in the middle of the body."""
    request.file(content, etag, cut=0.5)


def short(request: _Request, content: bytes, etag: str) -> None:
    """Fault: fewer bytes than requested, with the correct Content-Length."""
    request.answer(206, content[:10], ETag=etag, Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")


def elsewhere(request: _Request, content: bytes, etag: str) -> None:
    """Fault: another range than the requested one, without Content-Length."""
    request.close_connection = True
    request.answer(206, content[1:9], ETag=etag, Content_Length="", Content_Range=f"bytes 1-8/{len(content)}")


def faint(request: _Request, content: bytes, etag: str) -> None:
    """Fault: the connection ends early, without a Content-Length that would show it."""
    request.close_connection = True
    begin = int(request.headers["Range"].removeprefix("bytes=").partition("-")[0])
    given = f"bytes {begin}-{begin + 99}/{len(content)}"
    request.answer(206, content[begin : begin + 50], ETag=etag, Content_Length="", Content_Range=given)


def page(request: _Request, *_: object) -> None:
    """Fault: an error page with status 200."""
    request.answer(200, b"<html>come back later</html>", Content_Type="text/html")


def whole(request: _Request, content: bytes, etag: str) -> None:
    """Fault: the Range header is ignored."""
    request.answer(200, content, ETag=f'"{etag}"')


def corrupt(request: _Request, content: bytes, etag: str) -> None:
    """Fault: other bytes of the right length."""
    request.file(bytes(len(content)), etag)


def grown(request: _Request, content: bytes, etag: str) -> None:
    """Fault: the file has become longer, with the same ETag."""
    request.file(content + b"more", etag)


def changed(request: _Request, content: bytes, _: str) -> None:
    """Fault: the file has changed."""
    request.file(content, "another")
