"""The phases of the rehearsal.

Input: `Rehearsal`. Output: figures of each phase, for its JSON file. Guarantees: a phase that was cut off continues
where it was when it is called again.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from benchmarks.rehearsal import figures, project, watch
from benchmarks.rehearsal.figures import CATEGORIES
from benchmarks.rehearsal.source import write_source
from benchmarks.rehearsal.twin import Twin
from benchmarks.rehearsal.watch import Watched
from prep import download, join
from prep.core import files, writers
from prep.core.buckets import all_buckets
from prep.core.params import load_params, read_yaml
from prep.core.parts import NOT_TAKEN
from prep.source import PATHS
from validation.profile import compare_profiles, profile

# What a phase that starts anew removes.
FOLDERS = {
    "source": ["source"],
    "plan": ["planned"],
    "repro": ["project"],
    "kills": ["killed", "killed.runs"],
    "push": ["clone", "packages"],
}
KILLS = 3
BUCKET = "rehearsal"
REAL = "Health_and_Personal_Care"  # the category with real rows
STAGES_THAT_TRAIN = ("train", "evaluate", "validate_predictions")  # their outputs have times, or follow from floats


class Rehearsal(NamedTuple):
    """What all phases are given."""

    build: Path
    items: int
    seed: int

    def project(self, name: str = "project") -> Path:
        """Return the folder of a project."""
        return self.build / name

    def run(self, words: Sequence[str], name: str = "project", kill_after: float | None = None) -> Watched:
        """Run a command in a project and watch it."""
        folder = self.project(name)
        env = project.environment(folder, self.build)
        return watch.run(words, folder, env, self.build / f"{name}.log", kill_after)

    def call(self, words: Sequence[str], name: str = "project") -> str:
        """Run a command that has to succeed in a project; return what it printed."""
        folder = self.project(name)
        return project.call(words, folder, project.environment(folder, self.build))


def source(rehearsal: Rehearsal) -> dict[str, object]:
    """Write the raw files."""
    begin = time.monotonic()
    found = write_source(rehearsal.build / "source", rehearsal.items)
    return {"wall": time.monotonic() - begin, "source": found}


def plan(rehearsal: Rehearsal) -> dict[str, object]:
    """Plan the run of `repro` in a project without tables."""
    project.make_project(rehearsal.project("planned"), rehearsal.build, rehearsal.items)
    begin = time.monotonic()
    with servers(rehearsal):
        printed = rehearsal.call(["effimini", "plan", "--json"], "planned")
    return {"wall": time.monotonic() - begin, "plan": json.loads(printed)}


def repro(rehearsal: Rehearsal) -> dict[str, object]:
    """Run the whole pipeline."""
    commit = _commit()
    resumed = (rehearsal.project() / ".git").exists()
    diff = project.make_project(rehearsal.project(), rehearsal.build, rehearsal.items)
    print(diff, file=sys.stderr)
    with servers(rehearsal):
        done = rehearsal.run(["dvc", "repro"])
        answers = image_answers()
    _check(done, rehearsal, "project")
    rehearsal.call(["git", "add", "-A"])
    rehearsal.call(["git", "commit", "-q", "--allow-empty", "-m", "20 %"])
    return {
        "parameters": diff,
        "resumed": resumed,  # then the time is that of the last run only
        "watched": done,
        "image_answers": answers,
        "rows": rows(rehearsal.project()),
        "sizes": sizes(rehearsal.project()),
        "metrics": files.read_json(rehearsal.project() / "results/metrics.json"),
        "commit": commit,
    }


def profile_twin(rehearsal: Rehearsal) -> dict[str, object]:
    """Compare items of the twin with as many real ones, column by column, as the stage `join` writes them."""
    folder = figures.corpus()
    if folder is None:
        return {"drift": []}
    real = rehearsal.build / "real"
    lines = (folder / figures.SOURCES["amazon"]).read_bytes().count(b"\n")
    total = round(lines * sum(each.items for each in CATEGORIES.values()) / CATEGORIES[REAL].items)
    path = rehearsal.build / "twin" / PATHS["items"].format(REAL)
    with files.atomic_write(path) as partial:
        partial.write_bytes(b"".join(Twin(figures.figures(), total).item_lines(REAL)))
    params = load_params(Path("params/paper.yaml"))
    dask = replace(params.dask, scheduler="synchronous")
    tables = []
    for location, data in ((rehearsal.build / "twin", rehearsal.build / "twin"), (folder / "amazon", real)):
        source = replace(params.source, kind="mirror", location=str(location), reviews=False)
        settings = replace(params, source=source, dask=dask)
        download.download(REAL, settings, data)
        join.join(REAL, settings, data)
        paths = all_buckets(data / "items" / REAL, "items", params.download.buckets, "join")
        tables.append(profile("items", REAL, paths))
    columns = ["column", "absent", "same", "mean", "q05", "median", "q95"]
    both = tables[0][columns].merge(tables[1][columns], on="column", suffixes=("", "_real"))
    drift = compare_profiles(*tables).set_index("column")["drift"].to_dict()
    rows = [{**row, "drift": drift[row["column"]]} for row in both.to_dict("records")]
    return {"drift": [row for row in rows if row["absent_real"] < 1]}  # the real rows have no reviews


def kills(rehearsal: Rehearsal) -> dict[str, object]:
    """Run the pipeline in a second project, kill it at random moments, and compare its outputs with the first one's."""
    project.make_project(rehearsal.project("killed"), rehearsal.build, rehearsal.items)
    whole = files.read_json(rehearsal.build / "repro.json")["watched"]["wall"]
    moments = random.Random(rehearsal.seed)
    record = rehearsal.build / "killed.runs"  # what was killed already, should this phase be cut off
    runs: list[dict[str, Any]] = files.read_json(record) if record.exists() else []
    with servers(rehearsal):
        for number in range(KILLS):
            moment = moments.uniform(0.05, 0.9 / KILLS) * whole
            if number < len(runs):
                continue
            done = rehearsal.run(["dvc", "repro"], "killed", moment)
            runs.append({"killed_after": done.wall, "status": done.status, "stages": list(done.stages)})
            writers.write_json(record, runs)
        done = rehearsal.run(["dvc", "repro"], "killed")
    _check(done, rehearsal, "killed")
    differing = [
        name
        for name, hashes in output_hashes(rehearsal.project()).items()
        if output_hashes(rehearsal.project("killed")).get(name) != hashes
    ]
    return {"kills": runs, "last": done, "differing_stages": differing}


def push(rehearsal: Rehearsal) -> dict[str, object]:
    """Push to an S3 server; pull the shards in a clone and train there."""
    packages = rehearsal.build / "packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    if not packages.exists():  # DVC's plugin for s3, whose own dependencies are here already
        subprocess.run([*pip, "--target", str(packages), "dvc-s3==3.3.0"], check=True)
    shutil.rmtree(rehearsal.project("clone"), ignore_errors=True)
    with s3(rehearsal):
        rehearsal.call(["dvc", "remote", "add", "-f", "-q", "-d", "team", f"s3://{BUCKET}/dvc"])
        rehearsal.call(["git", "commit", "-q", "--allow-empty", "-am", "A remote"])
        pushed = rehearsal.run(["dvc", "push"])
        _check(pushed, rehearsal, "project")
        here = rehearsal.project()
        rehearsal.call(["git", "clone", "-q", str(here), str(rehearsal.project("clone"))])
        pulled = rehearsal.run(["dvc", "pull", "shard", "weights"], "clone")
        _check(pulled, rehearsal, "clone")
        trained = rehearsal.run(["effimini", "train"], "clone")
        _check(trained, rehearsal, "clone")
    losses = [files.read_json(rehearsal.project(n) / "results/train/metrics.json") for n in ("project", "clone")]
    return {
        "push": pushed,
        "pushed_bytes": sizes(here)["cache"],
        "pull": pulled,
        "pulled_bytes": sizes(rehearsal.project("clone"))["cache"],
        "train": trained,
        "same_metrics": losses[0] == losses[1],
    }


def fraction(rehearsal: Rehearsal) -> dict[str, object]:
    """Go from 20 to 40 % of the data."""
    here = rehearsal.project()
    shards = here / "data/shards"
    before, tars = sizes(here), _digests(shards)
    with servers(rehearsal):
        done = rehearsal.run(["dvc", "exp", "run", "-S", "sample.fraction=0.4"])
        answers = image_answers()
    _check(done, rehearsal, "project")
    after = sizes(here)
    now = _digests(shards)
    return {
        "watched": done,
        "image_answers": answers,
        "tars_before": len(tars),
        "tars_kept": sum(now.get(path) == digest for path, digest in tars.items()),
        "tars_new": len(now.keys() - tars.keys()),
        "new_tar_bytes": sum((shards / path).stat().st_size for path in now.keys() - tars.keys()),
        "grown": {name: after[name] - before[name] for name in before},
        "rows": rows(here),
    }


def newest(rehearsal: Rehearsal) -> dict[str, object]:
    """Test on the products that appeared last, and put the report beside that of the split by hash."""
    for words in (["add", "dvc.lock", "params.yaml"], ["commit", "-q", "--allow-empty", "-m", "By hash"]):
        rehearsal.call(["git", *words])
    with servers(rehearsal):
        done = rehearsal.run(["dvc", "exp", "run", "-S", "sample.split=time"])
    _check(done, rehearsal, "project")
    rehearsal.call(["effimini", "report", "HEAD"])
    return {"watched": done, "compared": json.loads(rehearsal.call(["effimini", "compare", "HEAD", "--json"]))}


@contextmanager
def servers(rehearsal: Rehearsal) -> Iterator[None]:
    """Run the hub and the image host."""
    commit = read_yaml(Path("params/paper.yaml"))["source"]["revision"]
    folder = str(rehearsal.build / "source")
    hub = ["hub", folder, "--port", str(project.HUB_PORT), "--commit", commit]
    with _server(rehearsal, *hub), _server(rehearsal, "images", "--port", str(project.IMAGES_PORT)):
        yield


@contextmanager
def _server(rehearsal: Rehearsal, name: str, *arguments: str) -> Iterator[None]:
    words = [sys.executable, "-m", f"benchmarks.rehearsal.{name}", *arguments]
    with (rehearsal.build / f"{name}.log").open("w") as errors:
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors)
        assert server.stdout is not None
        try:
            if not server.stdout.readline():
                sys.exit(f"`{' '.join(words)}` failed; see {errors.name}")
            yield
        finally:
            server.terminate()
            server.wait()


@contextmanager
def s3(rehearsal: Rehearsal) -> Iterator[None]:
    """Run an S3 server with an empty bucket; its objects are in temporary files."""
    import s3fs  # noqa: PLC0415 -- only this phase needs it

    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(project.S3_PORT)]
    env = project.environment(rehearsal.project(), rehearsal.build) | {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "65536"}
    with (rehearsal.build / "s3.log").open("w") as log, subprocess.Popen(words, stderr=log, env=env) as server:
        try:
            system = s3fs.S3FileSystem(
                key="rehearsal", secret="rehearsal", endpoint_url=env["AWS_ENDPOINT_URL"], skip_instance_cache=True
            )
            for _ in range(100):
                try:
                    system.mkdir(BUCKET)
                    break
                except OSError:
                    time.sleep(0.2)
            yield
        finally:
            server.terminate()


def image_answers() -> dict[str, int]:
    """Return how many requests the image host has answered in which way."""
    with urlopen(f"http://127.0.0.1:{project.IMAGES_PORT}/stats") as answer:
        found: dict[str, int] = json.load(answer)
    return found


def rows(folder: Path) -> dict[str, int]:
    """Return the rows that went into the tables of a project: raw, items, sample, images, and the filter's result."""
    counted: Counter[str] = Counter()
    for table in ("raw", "items", "sample", "images"):
        for path in (folder / "data" / table).glob("*/report.json"):
            for name, funnel in files.read_json(path)["tables"].items():
                counted[f"{table} {name}"] += funnel["rows_in"]
                counted[f"{table} {name} out"] += funnel["rows_out"]
                if table == "sample":  # what the filter keeps: the sample, and what another fraction would take
                    kept = funnel["rows_out"] + sum(funnel["dropped"].get(r, 0) for r in NOT_TAKEN)
                    counted["pass the filter"] += kept
    train = [pq.read_metadata(path).num_rows for path in (folder / "data/sample").glob("*/train-*.parquet")]
    return dict(counted) | {"train": sum(train)}


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of the tables, of the local store and of DVC's cache; hard links count in each."""
    places = {name: f"data/{name}" for name in ("raw", "items", "groups", "sample", "images", "shards")}
    places |= {"store": ".effimini", "cache": ".dvc/cache"}
    return {
        name: sum(path.stat().st_size for path in (folder / place).rglob("*") if path.is_file())
        for name, place in places.items()
    }


def _digests(shards: Path) -> dict[Path, bytes]:
    """Return the sha256 of each tar."""
    found = {}
    for path in shards.glob("*/*.tar"):
        with path.open("rb") as file:
            found[path.relative_to(shards)] = hashlib.file_digest(file, "sha256").digest()
    return found


def output_hashes(folder: Path) -> dict[str, list[str]]:
    """Return the hashes of the outputs of each stage, but for those that hold times or follow from floats."""
    lock = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {
        name: [str(out.get("md5")) for out in stage["outs"]]
        for name, stage in lock.items()
        if name not in STAGES_THAT_TRAIN
    }


def _check(done: Watched, rehearsal: Rehearsal, name: str) -> None:
    if done.status:
        log = rehearsal.build / f"{name}.log"
        sys.exit(f"a command ended with {done.status} after {done.wall:.0f} s; see {log}:\n{log.read_text()[-3000:]}")


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return found.stdout.strip()
