"""Two real HTTP servers on loopback that implement the hub's protocol and can inject faults.

    python -m benchmarks.rehearsal.hub FOLDER --port 8766 --commit COMMIT    # serves the files of a folder

Input: files by path in the repository. Output: one server is the hub: listings, paths-info, refs, and redirects to
files. The other one, on another port, serves the files, and on its own is a plain mirror. Guarantees: both record their
requests; a fault is the answer to exactly one request.
"""

import argparse
import hashlib
import json
import mmap
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from prep.hub import REPO

COMMIT, NEWEST = "1" * 40, "2" * 40
API, RESOLVE = f"/api/datasets/{REPO}/", f"/datasets/{REPO}/resolve/"


Content = bytes | mmap.mmap  # of a file
Fault = Callable[..., None] | None  # None: the request succeeds


class Asked(NamedTuple):
    """A received request."""

    method: str
    path: str
    range: str
    token: str


class Request(BaseHTTPRequestHandler):
    """A request, with the ways to answer it."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        """Record the request, and let the server answer it."""
        header = self.headers.get
        self.server.asked.append(Asked(self.command, self.path, header("Range", ""), header("Authorization", "")))
        self.server.serve(self)

    def do_HEAD(self) -> None:
        """As GET."""
        self.do_GET()

    def do_POST(self) -> None:
        """As GET."""
        self.do_GET()

    def do_PUT(self) -> None:
        """As GET."""
        self.do_GET()

    def answer(self, status: int, body: bytes | memoryview = b"", **headers: str) -> None:
        """Send a response; an underscore in a header's name stands for a hyphen."""
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

    def file(self, content: Content, etag: str, cut: float = 1) -> None:
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
        body = memoryview(content)[begin:end]
        headers["Content_Length"] = str(len(body))
        self.close_connection = cut < 1
        self.answer(206 if asked else 200, body[: int(len(body) * cut)], **headers)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """A server on loopback that records the requests."""

    daemon_threads = True

    def __init__(self, serve: Callable[[Request], None], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Request)
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

    def __init__(
        self, files: Mapping[str, Content], port: int = 0, commits: Collection[str] = (COMMIT, NEWEST)
    ) -> None:
        self.files = files
        self.commits = commits
        self.announced: dict[str, int] = {}  # wrong sizes, by path
        self.faults: deque[Fault] = deque()
        self.api_faults: deque[Fault] = deque()
        self.hub, self.cdn = Server(self._hub, port), Server(self._cdn)
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

    def sha256(self, path: str) -> str:
        """Return the sha256 of a file."""
        return hashlib.sha256(self.files[path]).hexdigest()

    def _entry(self, path: str) -> dict[str, object]:
        content = self.files[path]
        size, sha = self.announced.get(path, len(content)), self.sha256(path)
        lfs = {"oid": sha, "size": size, "pointerSize": 130}
        return {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(path.encode()).hexdigest(), "lfs": lfs}

    def _hub(self, request: Request) -> None:
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
        elif revision not in self.commits:
            _refuse(request, 404, "RevisionNotFound")
        elif path.startswith(RESOLVE):
            if name not in self.files:
                _refuse(request, 404, "EntryNotFound")
                return
            content = self.files[name]
            request.answer(
                302, Location=f"{self.cdn.url}/{name}?signed=secret", X_Linked_Etag=f'"{self.sha256(name)}"',
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

    def _tree(self, request: Request, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in self.files if path.startswith(prefix)]
        if not inside:
            _refuse(request, 404, "EntryNotFound")
            return
        folders = {prefix + path.removeprefix(prefix).partition("/")[0] for path in inside}
        entries = [self._entry(path) for path in inside if path in folders]
        entries += [{"type": "directory", "path": path, "oid": "3" * 40} for path in folders if path not in self.files]
        _json(request, entries)

    def _cdn(self, request: Request) -> None:
        path = unquote(urlsplit(request.path).path).removeprefix("/")
        if path not in self.files:
            request.answer(404)
            return
        content = self.files[path]
        etag = f"cdn-{self.sha256(path)[:8]}"
        if path in self.announced and request.command == "HEAD":
            request.answer(200, Content_Length=str(self.announced[path]), ETag=etag)
        elif request.command == "GET" and self.faults and (fault := self.faults.popleft()):
            fault(request, content, etag)
        else:
            request.file(content, etag)


def _json(request: Request, content: object) -> None:
    request.answer(200, json.dumps(content).encode(), Content_Type="application/json")


def _refuse(request: Request, status: int, code: str, message: str = "") -> None:
    request.answer(status, X_Error_Code=code, X_Error_Message=message or code)


def refusing(status: int, code: str, message: str = "") -> Callable[[Request], None]:
    """Return a fault of the hub: an error response with the hub's error code."""
    return lambda request: _refuse(request, status, code, message)


def status(code: int, **headers: str) -> Callable[..., None]:
    """Return a fault: a response with this status and no body."""
    return lambda request, *_: request.answer(code, **headers)


def reset(request: Request, *_: object) -> None:
    """Fault: a TCP reset."""
    request.reset()


def cut(request: Request, content: Content, etag: str) -> None:
    """Fault: the connection ends in the middle of the body."""
    request.file(content, etag, cut=0.5)


class Folder(Mapping[str, Content]):
    """The files of a folder with a ``.sha256`` file beside each, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, mmap.mmap] = {}
        self._names = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.sha256")}

    def __getitem__(self, name: str) -> mmap.mmap:
        if name not in self._open:
            with (self._folder / name).open("rb") as file:
                self._open[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def sha256(self, name: str) -> str:
        """Return the sha256 of a file, as it was computed when the file was written."""
        return (self._folder / f"{name}.sha256").read_text()


class FaultyHub(Hub):
    """The hub with the files of a folder; every few requests it is busy or breaks off, as the real one does.

    The faults recur for ever, in this order, so that every file over a few ranges meets each of them.
    """

    def __init__(self, folder: Path, port: int, commit: str) -> None:
        files = Folder(folder)
        super().__init__(files, port, (commit,))
        self.sha256 = files.sha256  # type: ignore[method-assign]
        self.faults = Recurring([None, None, cut, None, None, None, status(429, Retry_After="1"), None, None, reset])
        self.api_faults = Recurring([*[None] * 9, status(429, Retry_After="1")])


class Recurring(deque[Fault]):
    """Faults that begin again when they have all been used."""

    def popleft(self) -> Fault:
        """Return the next fault, and put it at the end."""
        self.rotate(-1)
        return self[-1]


def main() -> None:
    """Serve a folder until the process is terminated."""
    parser = argparse.ArgumentParser("python -m benchmarks.rehearsal.hub", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--commit", default=COMMIT)
    chosen = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # sigwait needs it, in every thread
    with FaultyHub(chosen.folder, chosen.port, chosen.commit) as hub:
        print(hub.url, flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
