"""Every crash of a stage: the disk as each one may leave it, and the run after it.

Input: the parameters of a small run, and the names of stages. Output: for each stage the number of its operations on
files, of the disks that a crash may leave, and of those from which the next run did not end as an undisturbed one.

A stage runs once in a process whose changes of files are recorded in order (`crash_points.c`): of names (new, renamed,
linked, removed) and of contents (written, truncated), and flushes. From this record follows the disk after each
operation, and after half of each write. All operations together have to give the disk that the run left, and at each
flush the size of the file or the number of names: so none was missed. A crash leaves one of these (`Loss`):

- ``nothing`` is lost, as after a kill;
- ``contents``: each file is as it was when it was last flushed, empty if it never was, under the names of the moment;
- ``zeros``: each file has its size of the moment, and zeros for what was not flushed;
- ``names``: each folder has the names, and each file the content, of when it was last flushed.

File systems that keep the order of changes of names, such as ext4, XFS and Btrfs, may also go back to the names of an
earlier moment, but not to before the last flush of any file. Between two flushes no content becomes safe, so that is
``contents`` of an earlier operation. Not covered: mixtures of these, such as one file that lost its content beside
another that kept it; two crashes of one run; runs of several processes; damage of what was flushed.

Each disk is laid out in a folder, where the output has to be absent, the old one or complete, and after the last
operation complete. Then the stage runs again, and its output has to have the bytes of an undisturbed run. Of disks that
differ only in the content of temporary files (``.*.partial``) which that run did not open, one is run.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from ctypes import CDLL
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from pyarrow import parquet as pq
from safetensors.torch import save

import effimini.model
from effimini.checkpoint import steps_of
from effimini.evaluate import evaluate
from effimini.gc import gc
from effimini.remove import remove
from effimini.train import train
from prep import download, groups, join, ranges, sample, weights
from prep.core import files, writers
from prep.core.params import Params
from prep.source import demo_place
from shards import decontaminate, fetch, shard
from shards.images.journal import urls
from shards.loader import Loader
from shards.stream import ShardDataset
from tests.effimini.conftest import replace
from tests.shards.host import Host
from validation.validate import validate

Loss: TypeAlias = Literal["nothing", "contents", "zeros", "names"]
Hashes: TypeAlias = dict[str, dict[str, str]]  # by output, by file
_HEAD = struct.Struct("<cQqII")
DATA, CATEGORY = Path("data"), "Demo_Toys"
_LIMIT = 120  # seconds of a run
_NOT_COMPARED = {"results/train/time.json"}


@dataclass(eq=False)
class File:
    """A file: its content now and when it was last flushed."""

    number: int
    now: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""
    unflushed: list[tuple[int, int]] = field(default_factory=list)  # begin and end of what was written since
    version: int = 0  # of the content now
    flushed_version: int = 0

    def write(self, offset: int, content: bytes) -> None:
        end = offset + len(content)
        self.now.extend(bytes(max(0, end - len(self.now))))
        self.now[offset:end] = content
        self.unflushed.append((offset, end))
        self.version += 1

    def truncate(self, size: int) -> None:
        del self.now[size:]
        self.now.extend(bytes(size - len(self.now)))
        self.version += 1

    def flush(self) -> None:
        self.flushed, self.flushed_version = bytes(self.now), self.version
        self.unflushed.clear()

    def content(self, loss: Loss) -> bytes:
        """Return what a crash leaves of the file."""
        if loss in {"contents", "names"}:
            return self.flushed
        found = bytearray(self.now)
        for begin, end in self.unflushed if loss == "zeros" else ():
            found[begin:end] = bytes(len(found[begin:end]))
        return bytes(found)

    def identity(self, loss: Loss) -> str:
        """Return a text that is the same only for the same content."""
        zeros = "with zeros" if loss == "zeros" and self.unflushed else ""
        return f"{self.number} {self.flushed_version if loss in {'contents', 'names'} else self.version} {zeros}"


@dataclass(eq=False)
class Folder:
    """A folder: its names now and when it was last flushed."""

    now: dict[str, "Node"] = field(default_factory=dict)
    flushed: dict[str, "Node"] = field(default_factory=dict)


Node: TypeAlias = File | Folder | Path  # a path is a symbolic link


class Operation(NamedTuple):
    """A record of `crash_points.c`."""

    what: str
    one: int
    two: int
    a: bytes
    b: bytes

    def __str__(self) -> str:
        if self.what in "WTF":
            return f"{self.what} {len(self.a)} bytes at {self.two}"
        return " ".join([self.what, *(os.fsdecode(each) for each in (self.a, self.b) if each)])


def operations(log: Path) -> list[Operation]:
    """Return the operations of a log, in order."""
    content, found, at = log.read_bytes(), [], 0
    while at < len(content):
        what, one, two, length_a, length_b = _HEAD.unpack_from(content, at)
        begin = at + _HEAD.size
        at = begin + length_a + length_b
        found.append(Operation(what.decode(), one, two, content[begin : at - length_b], content[at - length_b : at]))
    return found


class Disk:
    """The files below a folder, all of them flushed at first, changed by operations."""

    def __init__(self, path: Path) -> None:
        self.path, self.inodes, self.created = path, dict[int, File](), 0
        self.root = self._read(path)

    def _read(self, path: Path) -> Folder:
        folder = Folder()
        for each in sorted(path.iterdir()):
            node: Node
            if each.is_symlink():
                node = each.readlink()
            elif each.is_dir():
                node = self._read(each)
            else:
                node = self.inodes.setdefault(each.stat().st_ino, File(len(self.inodes)))
                node.now[:] = each.read_bytes()
                node.flush()
            folder.now[each.name] = folder.flushed[each.name] = node
        return folder

    def _folder(self, path: Path) -> Folder:
        node: Node = self.root
        for name in path.relative_to(self.path).parts:
            assert isinstance(node, Folder), path
            node = node.now[name]
        assert isinstance(node, Folder), path
        return node

    def apply(self, operation: Operation) -> None:
        """Change the disk as an operation did."""
        if operation.what in "WTF":
            self._apply_to_file(operation, self.inodes[operation.one])
            return
        what, inode, count, *names = operation
        path, to = (Path(os.fsdecode(name)) for name in names)
        folder = self._folder(path if what == "D" else to.parent if what == "S" else path.parent)
        if what == "D":
            assert len(folder.now) == count, f"a change of names was not seen before {operation}: {sorted(folder.now)}"
            folder.flushed = dict(folder.now)
        elif what == "C":
            self.created += 1
            folder.now[path.name] = self.inodes[inode] = File(-self.created)
        elif what == "M":
            folder.now[path.name] = Folder()
        elif what in "RU":
            del folder.now[path.name]
        elif what == "S":
            folder.now[to.name] = path
        else:
            self._folder(to.parent).now[to.name] = folder.now[path.name]
            if what == "N":
                del folder.now[path.name]

    def _apply_to_file(self, operation: Operation, file: File) -> None:
        if operation.what == "W":
            file.write(operation.two, operation.a)
        elif operation.what == "T":
            file.truncate(operation.two)
        else:
            assert len(file.now) == operation.two, f"a write was not seen before {operation}"
            file.flush()

    def tree(self, loss: Loss) -> Iterator[tuple[str, Node, bool]]:
        """Yield everything that a crash leaves, folders first: its relative path, and whether it is temporary."""

        def below(folder: Folder, at: str, temporary: bool) -> Iterator[tuple[str, Node, bool]]:
            for name, node in sorted((folder.flushed if loss == "names" else folder.now).items()):
                within = temporary or (name.startswith(".") and name.endswith(".partial"))
                yield at + name, node, within
                if isinstance(node, Folder):
                    yield from below(node, f"{at}{name}/", within)

        yield from below(self.root, "", temporary=False)

    def digest(self, loss: Loss, opened: Collection[str] | None = None) -> bytes:
        """Return a hash of everything that a crash leaves, but the content of temporary files that are not `opened`."""
        found, first = hashlib.sha256(), dict[int, str]()
        for path, node, temporary in self.tree(loss):
            content = "" if isinstance(node, Folder) else str(node)
            if isinstance(node, File):
                ignored = opened is not None and temporary and path not in opened
                content = "any" if ignored else node.identity(loss)
            found.update(f"{path}\0{content}\0{first.setdefault(id(node), path)}\n".encode())
        return found.digest()

    def contents(self) -> dict[str, object]:
        """Return the content of each file, the target of each link, and the folders."""
        return {
            path: node.now if isinstance(node, File) else node if isinstance(node, Path) else None
            for path, node, _ in self.tree("nothing")
        }

    def lay_out(self, loss: Loss) -> None:
        """Replace the content of the folder by what a crash leaves."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir()
        first = dict[int, Path]()
        for relative, node, _ in self.tree(loss):
            path = self.path / relative
            if isinstance(node, Folder):
                path.mkdir()
            elif isinstance(node, Path):
                path.symlink_to(node)
            elif id(node) in first:
                path.hardlink_to(first[id(node)])
            else:
                path.write_bytes(node.content(loss))
                first[id(node)] = path


class Crash(NamedTuple):
    """A crash, and what it loses."""

    loss: Loss
    place: str
    last: bool  # after the last operation


# what another operation changes; others change names at once
_CHANGED: dict[str, tuple[Loss, ...]] = {
    "W": ("nothing", "zeros"),
    "T": ("nothing", "zeros"),
    "F": ("contents", "zeros", "names"),
    "D": ("names",),
}


def crashes(disk: Disk, done: Sequence[Operation], points: Collection[int]) -> Iterator[Crash]:
    """Yield every crash that leaves another disk than those before it, while the disk is as it was at that moment.

    Args:
        disk: as it was at first; in the end all operations are applied.
        done: the operations.
        points: after how many operations a crash may come. If it comes after the last one, each loss is yielded.
    """
    seen = set[bytes]()

    def distinct(losses: Iterable[Loss], place: str, last: bool = False) -> Iterator[Crash]:
        for loss in losses:
            digest = disk.digest(loss)
            if last or digest not in seen:
                seen.add(digest)
                yield Crash(loss, place, last)

    if 0 in points:
        yield from distinct(get_args(Loss), "at the start")
    for number, operation in enumerate(done, 1):
        if operation.what == "W" and len(operation.a) > 1 and number in points:
            disk.apply(operation._replace(a=operation.a[: len(operation.a) // 2]))
            yield from distinct(("nothing",), f"in operation {number} ({operation})")
        disk.apply(operation)
        if number in points:
            last = number == len(done)
            changed = _CHANGED.get(operation.what, ("nothing", "contents", "zeros"))
            every = last or number - 1 not in points
            yield from distinct(get_args(Loss) if every else changed, f"after operation {number} ({operation})", last)


class Stage(NamedTuple):
    """What is run, and what is known about it."""

    run: Callable[[Params], object]
    outputs: tuple[str, ...]  # files and folders that it writes
    kept: Callable[[Path], int] = lambda run: 0  # a measure of the work in a folder that no later crash may lose again
    changes: bool = False  # whether it changes what stages before it wrote
    durable: bool = True  # whether what it has done is flushed
    store: tuple[str, ...] = ("demo",)  # what it finds in the local store
    late: tuple[str, ...] = ()  # what it imports when it needs it; each run would take seconds longer


def _of_category(stage: Callable[..., object]) -> Callable[[Params], object]:
    return lambda params: stage(CATEGORY, params, DATA)


def _of_all(stage: Callable[..., object]) -> Callable[[Params], object]:
    return lambda params: stage(params, DATA)


def _steps(run: Path) -> int:
    """Return the steps of a training that can be resumed; more than all when the model is there."""
    if (run / "models/best").exists():
        return 10**9
    return max((steps_of(path) for path in run.glob("store/train/*/[0-9]*")), default=0)


def _images(run: Path) -> int:
    """Return the number of URLs with a result in the image store."""
    return len({url for path in run.glob("store/images/**/*.journal") for url in urls(path)})


def _fetch_in_threads(params: Params) -> None:
    fetch.fetch(CATEGORY, replace(params, dask={"scheduler": "threads"}), DATA)


def _train_on_features(params: Params) -> None:
    train(replace(params, train={"freeze_encoders": True}))


def _remove(params: Params) -> None:
    item = pq.read_table(DATA / f"sample/{CATEGORY}/train-00.parquet")["parent_asin"][0].as_py()
    remove([item], params, DATA)


def _gc(params: Params) -> None:
    """Free the catalogue and the images, as if the parameters were others."""
    other = dataclasses.replace(params.source.demo, items=50)
    gc(replace(params, source={"demo": other}, images={"resolution": 64}), DATA, force=True)


def _remote(params: Params) -> None:
    """Read all shards over HTTP, and write what was read."""
    with Host() as host:
        host.files = {f"/{file.relative_to(DATA)}": file.read_bytes() for file in DATA.glob("shards/*/*.*")}
        dataset = ShardDataset(f"{host.url}/shards", [CATEGORY], "train")
        batches = Loader(dataset, batch_size=8, seed=1)
        read = [(batch.keys, batch.images.sum().item(), batch.tokens.tolist()) for batch in batches]
    writers.write_json(Path("read.json").absolute(), read)


def _raw(params: Params, announced: bool) -> None:
    """Download a raw file over HTTP in small ranges."""
    content = next(demo_place(params.source, CATEGORY).rglob("meta_*.jsonl")).read_bytes()
    ranges.RANGE = len(content) // 8
    with Host() as host:
        host.faults["/raw"] = lambda request, _: request.ranged(content)
        sha256 = hashlib.sha256(content).hexdigest() if announced else ""
        remote = ranges.Remote(f"{host.url}/raw", len(content), "", sha256, ranges.no_headers, "")
        ranges.download_file(remote, Path("raw/file").absolute())


_TABLES = ("pyarrow.dataset", "pyarrow.acero", "pandas.io.formats.csvs")
_TRAINING = (*_TABLES, "dvclive", "dvc.repo")
_CHECKED = ("data/gates/sample", "data/profiles/sample.csv", "results/validation/sample.json")
_EVALUATED = ("data/predictions", "results/evaluation.json", "results/metrics.json", "results/report.html")
_PLOTS = tuple(f"results/plots/{name}.csv" for name in ("predictions", "calibration", "baselines", "groups", "weights"))
STAGES = {
    "download": Stage(_of_category(download.download), (f"data/raw/{CATEGORY}",)),
    "join": Stage(_of_category(join.join), (f"data/items/{CATEGORY}",), late=_TABLES),
    "groups": Stage(_of_all(groups.groups), ("data/groups",), late=_TABLES),
    "sample": Stage(_of_category(sample.sample), (f"data/sample/{CATEGORY}",), late=_TABLES),
    "validate sample": Stage(
        _of_all(partial(validate, "sample")),
        (*_CHECKED, "results/validation/sample.html"),
        late=(*_TABLES, "great_expectations", "altair"),
    ),
    "fetch": Stage(_of_category(fetch.fetch), (f"data/images/{CATEGORY}",), _images),
    "fetch in threads": Stage(_fetch_in_threads, (f"data/images/{CATEGORY}",), _images, late=("dask.distributed",)),
    "decontaminate": Stage(_of_all(decontaminate.decontaminate), ("data/exclusions",), late=_TABLES),
    "shard": Stage(_of_category(shard.shard), (f"data/shards/{CATEGORY}",), late=_TABLES),
    "weights": Stage(_of_all(weights.weights), ("data/weights.json",), late=_TABLES),
    "train on features": Stage(_train_on_features, ("models", "results/train"), _steps, late=_TRAINING),
    "train": Stage(train, ("models", "results/train"), _steps, late=_TRAINING),
    "evaluate": Stage(
        evaluate,
        (*_EVALUATED, *_PLOTS),
        late=(*_TABLES, "matplotlib.backends.backend_svg", "transformers.models.bert.modeling_bert"),
    ),
    "remote shards": Stage(_remote, ("read.json",), late=("shards.http_client",)),
    "raw file": Stage(partial(_raw, announced=True), ("raw/file",), late=("httpcore",)),
    "raw file without a sha256": Stage(partial(_raw, announced=False), ("raw/file",), late=("httpcore",)),
    "remove": Stage(
        _remove,
        (f"data/raw/{CATEGORY}", f"removed/{CATEGORY}.csv", "store/images"),
        changes=True,
        store=("demo", "images"),
        late=(*_TABLES, "dvc.repo"),
    ),
    "gc": Stage(
        _gc,
        ("store/demo", "store/images", "store/near_duplicates", "store/shards"),
        changes=True,
        durable=False,
        store=("demo", "images", "near_duplicates", "shards"),
        late=("dvc.repo",),
    ),
}
_UNREAD = {"validate sample", "fetch in threads", "train on features", "evaluate", "remote shards"}  # by later stages


def forked(work: Callable[[], object], log: Path) -> str:
    """Do some work in a fork of this process; return what went wrong there, or nothing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(_LIMIT)
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 -- it ends here
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return ""
    return f"status {status}: " + " | ".join(log.read_text(errors="replace").splitlines()[-3:])


class Explored(NamedTuple):
    """What became of a stage."""

    stage: str
    operations: int
    disks: int  # that crashes left
    runs: int  # of the stage on them; other disks differ in nothing that these opened
    failed: list[str]


class Explorer:
    """Runs stages in the folder ``run`` of a working folder, on what the stages before left in its folder ``made``.

    Args:
        params: of all stages.
        folder: the working folder, which exists.
    """

    def __init__(self, params: Params, folder: Path) -> None:
        self.params, self.folder = params, folder.resolve()
        self.run, self.made = self.folder / "run", self.folder / "made"
        self.library = CDLL(None)
        self.library.crash_points_no_sync()
        os.environ["EFFIMINI_STORE"] = str(self.run / "store")

    def prepare(self, name: str) -> None:
        """Lay out what a stage finds: a part of the store, links to what stages before it wrote, and an old output."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()
        stage = STAGES[name]
        tables = {Path(output).parts[:2] for each in STAGES.values() for output in each.outputs}
        for table in tables - {Path(output).parts[:2] for output in stage.outputs}:
            if table[0] != "store" and self.made.joinpath(*table).exists():
                self.run.joinpath(*table).parent.mkdir(parents=True, exist_ok=True)
                self.run.joinpath(*table).symlink_to(self.made.joinpath(*table))
        for place in {f"store/{each}" for each in stage.store} | set(stage.outputs if stage.changes else ()):
            if (self.made / place).is_dir() and stage.changes:
                shutil.copytree(self.made / place, self.run / place)
            elif (self.made / place).is_dir():  # the demo catalogue, with many files
                (self.run / place).parent.mkdir(exist_ok=True)
                (self.run / place).symlink_to(self.made / place)
        for output in stage.outputs:
            path = self.run / output
            path.parent.mkdir(parents=True, exist_ok=True)
            if stage.changes:
                continue
            if path.suffix:
                path.write_text("old")
            elif output != "raw/file":
                path.mkdir()
                (path / "old").write_text("old")

    def start(self, name: str) -> str:
        """Run a stage in the folder as it is, and record it; return what went wrong, or nothing."""

        def work() -> None:
            os.chdir(self.run)
            assert self.library.crash_points_arm(os.fsencode(self.run), os.fsencode(self.folder / "trace"))
            STAGES[name].run(self.params)

        return forked(work, self.folder / "log")

    def found(self, name: str) -> Hashes:
        """Return the hashes of each output of a stage that is there."""
        result = {}
        for output in STAGES[name].outputs:
            path = self.run / output
            each = sorted(path.rglob("*")) if path.is_dir() else [path]
            result[output] = {
                place: files.sha256(file)
                for file in each
                if file.is_file() and file.suffix not in {".partial", ".lock"}
                if (place := str(file.relative_to(self.run))) not in _NOT_COMPARED
            }
        return result

    def traced(self, name: str) -> tuple[Disk, list[Operation]]:
        """Run a stage undisturbed; return the disk before it, and its operations. Keep its output for later stages."""
        self.prepare(name)
        before = Disk(self.run)
        wrong = self.start(name)
        assert not wrong, f"{name}: {wrong}"
        for output in (*STAGES[name].outputs, "store"):
            path, kept = self.run / output, self.made / output
            kept.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, kept, dirs_exist_ok=True, ignore=_links)
            elif path.exists():
                shutil.copyfile(path, kept)
        return before, [each for each in operations(self.folder / "trace") if each.what != "O"]

    def explore(self, name: str, most: int = 0) -> Explored:
        """Run a stage after every crash.

        Args:
            name: the stage.
            most: after how many operations a crash may come, evenly spread and including the last one; 0: after each.
        """
        self.prepare(name)
        old = self.found(name)
        disk, done = self.traced(name)
        whole, left = self.found(name), Disk(self.run).contents()
        points = range(len(done) + 1)
        if most:
            points = {round((at + 1) * len(done) / most) for at in range(most)}
        failed, kept, disks, runs = list[str](), Counter[Loss](), 0, 0
        seen = set[tuple[Loss, bytes]]()  # disks without their temporary files
        same: dict[frozenset[str], set[bytes]] = {}  # disks that were run, by what these runs opened
        for crash in crashes(disk, done, points):
            disks, wrong, without = disks + 1, "", (crash.loss, disk.digest(crash.loss, frozenset()))
            new = not any(disk.digest(crash.loss, opened) in digests for opened, digests in same.items())
            if new or crash.last or without not in seen:
                seen.add(without)
                disk.lay_out(crash.loss)
                wrong = self._wrong_as_it_is(name, crash, old, whole, kept)
            if new:
                wrong, runs = wrong or self._wrong_after_a_run(name, whole), runs + 1
                opened = self._opened() & {path for path, _, temporary in disk.tree(crash.loss) if temporary}
                same.setdefault(opened, set()).add(disk.digest(crash.loss, opened))
            if wrong:
                failed.append(f"{crash.loss} lost {crash.place}: {wrong}")
        assert disk.contents() == left, f"{name} changes files in a way that is not seen"
        return Explored(name, len(done), disks, runs, failed)

    def _opened(self) -> frozenset[str]:
        """Return the files that the last run opened."""
        opened = [Path(os.fsdecode(each.a)) for each in operations(self.folder / "trace") if each.what == "O"]
        return frozenset(str(path.relative_to(self.run)) for path in opened)

    def _wrong_as_it_is(self, name: str, crash: Crash, old: Hashes, whole: Hashes, kept: Counter[Loss]) -> str:
        """Return what is wrong on the disk that a crash left; nothing if all is well."""
        stage = STAGES[name]
        for output, hashes in self.found(name).items():
            if crash.last and stage.durable and hashes != whole[output]:
                return f"{output} is not complete after the stage has ended"
            if not stage.changes and hashes not in ({}, old[output], whole[output]):
                return f"{output} is neither complete nor the old one"
        keeps = stage.kept(self.run)
        if keeps < kept[crash.loss]:
            return f"of the work {keeps} is left, after {kept[crash.loss]} at an earlier operation"
        kept[crash.loss] = keeps
        return ""

    def _wrong_after_a_run(self, name: str, whole: Hashes) -> str:
        """Run a stage; return what is wrong then, nothing if all is well."""
        if wrong := self.start(name):
            return wrong
        if (after := self.found(name)) != whole:
            before, now = ({pair for each in found.values() for pair in each.items()} for found in (whole, after))
            return f"the next run wrote other bytes of {', '.join(sorted({file for file, _ in before ^ now}))}"
        for path in self.run.rglob(".*"):
            if self.run / "store" not in path.parents and path.is_dir():
                return f"the next run left {path}"
        return ""


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_symlink()]


def _save_file(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a file as safetensors does; that renames it past the C library, where it would not be seen."""
    partial = path.with_name(".tmp")
    partial.write_bytes(save(tensors, metadata))
    partial.replace(path)


def main() -> None:
    """Explore stages in the folder argv[2] with the parameters in the file argv[1], at argv[3] points of each."""
    parameters, folder, most, *chosen = sys.argv[1:]
    effimini.model.save_file = _save_file
    torch.set_num_threads(1)
    for module in {module for name in STAGES if name in chosen for module in STAGES[name].late}:
        import_module(module)
    assert threading.active_count() == 1  # a fork of several might never end
    explorer = Explorer(pickle.loads(Path(parameters).read_bytes()), Path(folder))
    for name in STAGES:
        if name in chosen:
            sys.stdout.write(json.dumps(explorer.explore(name, int(most))._asdict()) + "\n")
            sys.stdout.flush()
            chosen.remove(name)
        elif chosen and name not in _UNREAD:
            explorer.traced(name)


if __name__ == "__main__":
    main()
