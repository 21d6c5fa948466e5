"""A hub on loopback that takes uploads: repositories, branches, commits, LFS, and downloads of what was committed.

It answers as the hub does to huggingface_hub and datasets. Large files come over LFS (HF_HUB_DISABLE_XET), or, if
`xet` is set, over Xet into a storage that is a folder, whose content this hub does not serve.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.rehearsal.hub import Request, Server

CREATED = "2026-03-05T10:20:30.000Z"
TOKEN = "hf_secret"
_REPO = re.compile(r"/api/(datasets|models)/([\w.-]+/[\w.-]+)(?:/(.*))?")
_BATCH = re.compile(r"/(?:datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch")
_RESOLVE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


class File(NamedTuple):
    """A committed file."""

    oid: str  # sha256 of a large file, git's sha1 of another
    size: int
    large: bool


class Repository:
    """Branches and commits; a commit is a mapping of paths to files."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, dict[str, File]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, File]) -> str:
        oid = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


class WritableHub:
    """The hub, a context manager.

    Attributes:
        repositories: by kind (datasets, models) and name.
        blobs: content by sha256 or sha1.
        uploaded: the sha256 of each file whose content was received, in order.
        faults: each upload of a large file consumes one; None is an upload that succeeds.
        invalid_card: what is wrong with every card; "" if nothing is.
    """

    def __init__(self, xet: Path | None = None) -> None:
        self.server = Server(self._serve)
        self.url = self.server.url
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploaded: list[str] = []
        self.faults: deque[Callable[[Request], None] | None] = deque()
        self.invalid_card = ""
        self.xet = xet
        self._lock = threading.Lock()

    def __enter__(self) -> "WritableHub":
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, File]:
        """Return the files of a repository."""
        repository = self.repositories[kind, name]
        return repository.commits[repository.branches.get(revision, revision)]

    def content(self, kind: str, name: str, path: str, revision: str = "main") -> bytes:
        """Return the content of a file."""
        return self.blobs[self.files(kind, name, revision)[path].oid]

    def _serve(self, request: Request) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(_chunks(request))
        path = unquote(urlsplit(request.path).path)
        writes = request.command in {"POST", "PUT"} and "/paths-info/" not in path
        if writes and not path.startswith("/lfs/") and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            _answer(request, 401, {"error": "Invalid username or password."})
        elif path.startswith("/lfs/"):
            self._receive(request, path.removeprefix("/lfs/"), body)
        elif path == "/api/repos/create":
            self._create(request, json.loads(body))
        elif path == "/api/validate-yaml":
            errors = [{"message": self.invalid_card}] if self.invalid_card else []
            _answer(request, 400 if errors else 200, {"errors": errors, "warnings": []})
        elif found := _BATCH.fullmatch(path):
            _answer(request, 200, {"objects": [self._object(o) for o in json.loads(body)["objects"]]})
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(request, "datasets" if found[1] else "models", *found.groups()[1:])
        elif found := _REPO.fullmatch(path):
            repository = self.repositories.get((found[1], found[2]))
            if repository is None:
                _answer(request, 404, {}, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                return
            word, _, rest = (found[3] or "").partition("/")
            self._repository(request, found[1], found[2], repository, word, rest, body)
        else:
            _answer(request, 404, {})

    def _create(self, request: Request, asked: dict[str, Any]) -> None:
        kind, name = f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}"
        known = (kind, name) in self.repositories
        if asked["organization"] == "others":
            _answer(request, 403, {}, X_Error_Message="You don't have the rights to create it under others")
            return
        if not known:
            self.repositories[kind, name] = Repository(asked.get("visibility") == "private")
        _answer(
            request, 409 if known else 200, {"url": f"{self.url}/{'datasets/' if kind == 'datasets' else ''}{name}"}
        )

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.blobs:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}?signature=secret"}}}

    def _receive(self, request: Request, oid: str, body: bytes) -> None:
        with self._lock:
            fault = self.faults.popleft() if self.faults else None
        if fault:
            fault(request)
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.blobs[oid] = body
        self.uploaded.append(oid)
        request.answer(200)

    def _repository(
        self, request: Request, kind: str, name: str, repository: Repository, word: str, rest: str, body: bytes
    ) -> None:
        revision, _, folder = rest.partition("/")
        oid = repository.at(revision or "main")
        if word == "branch":
            known = revision in repository.branches
            if not known:
                repository.branches[revision] = repository.branches["main"]
            _answer(request, 409 if known else 200, {})
        elif oid is None:
            _answer(request, 404, {}, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        elif word in {"", "revision"}:
            siblings = [{"rfilename": path} for path in repository.commits[oid]]
            about = {"id": name, "sha": oid, "siblings": siblings, "tags": [], "private": repository.private}
            _answer(request, 200, about | {"createdAt": CREATED, "lastModified": CREATED, "downloads": 0, "likes": 0})
        elif word == "tree":
            self._tree(request, repository.commits[oid], folder)
        elif word == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            _answer(request, 200, list(_entries(repository.commits[oid], set(wanted))))
        elif word == "preupload":
            _answer(
                request, 200, {"files": [_mode(repository.commits[oid], f["path"]) for f in json.loads(body)["files"]]}
            )
        elif word == "xet-write-token":
            token = {"casUrl": f"local://{self.xet}", "accessToken": "xet", "exp": int(time.time()) + 3600}
            _answer(request, 200, token)
        elif word == "commit":
            commit = self._commit(repository, revision, body)
            _answer(request, 200, {"commitUrl": f"{self.url}/{kind}/{name}/commit/{commit}", "commitOid": commit})
        else:
            _answer(request, 404, {})

    def _commit(self, repository: Repository, branch: str, body: bytes) -> str:
        files = dict(repository.commits[repository.branches[branch]])
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "file":
                    content = base64.b64decode(value["content"])
                    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    self.blobs[oid] = content
                    files[value["path"]] = File(oid, len(content), False)
                case "lfsFile":
                    assert value["oid"] in self.blobs or self.xet
                    files[value["path"]] = File(value["oid"], value["size"], True)
                case "deletedFile":
                    del files[value["path"]]
        return repository.commit(branch, dict(sorted(files.items())))

    def _tree(self, request: Request, files: dict[str, File], folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(prefix)]
        if folder and not inside:
            _answer(request, 404, {}, X_Error_Code="EntryNotFound", X_Error_Message="no such folder")
            return
        deep = parse_qs(urlsplit(request.path).query).get("recursive", ["False"])[0].lower() == "true"
        names = set(inside) if deep else {prefix + path.removeprefix(prefix).partition("/")[0] for path in inside}
        if deep:
            names |= {path.rpartition("/")[0] for path in inside if "/" in path.removeprefix(prefix)}
        _answer(request, 200, list(_entries(files, names)))

    def _resolve(self, request: Request, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.repositories.get((kind, name))
        oid = repository and repository.at(revision)
        if repository is None or oid is None:
            code = "RevisionNotFound" if repository else "RepoNotFound"
            _answer(request, 404, {}, X_Error_Code=code, X_Error_Message=code)
        elif path not in repository.commits[oid]:
            _answer(
                request, 404, {}, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=oid
            )
        else:
            content = self.blobs[repository.commits[oid][path].oid]
            begin, end, status = 0, len(content), 200
            headers = {"ETag": f'"{repository.commits[oid][path].oid}"', "X_Repo_Commit": oid, "Accept_Ranges": "bytes"}
            if asked := request.headers.get("Range"):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                begin, end, status = int(first), min(end, int(last) + 1 if last else end), 206
                headers["Content_Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            request.answer(status, content[begin:end], Content_Length=str(end - begin), **headers)


def _chunks(request: Request) -> Iterator[bytes]:
    while size := int(request.rfile.readline(), 16):
        yield request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()


def _entries(files: dict[str, File], paths: set[str]) -> Iterator[dict[str, Any]]:
    for path in sorted(paths):
        if path not in files:
            if any(name.startswith(f"{path}/") for name in files):
                yield {"type": "directory", "path": path, "oid": "3" * 40, "size": 0}
            continue
        file = files[path]
        lfs = {"lfs": {"oid": file.oid, "size": file.size, "pointerSize": 130}} if file.large else {}
        yield {"type": "file", "path": path, "size": file.size, "oid": file.oid[:40], **lfs}


def _mode(files: dict[str, File], path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith((".tar", ".arrow", ".parquet", ".safetensors")) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": files[path].oid if path in files else None}


def _answer(request: Request, status: int, content: Any, **headers: str) -> None:
    request.answer(status, json.dumps(content).encode(), Content_Type="application/json", **headers)
