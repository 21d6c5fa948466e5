"""Sharing versions of shards: a DVC remote, tags, and a second clone that pulls only shards."""

import hashlib
import json
import multiprocessing
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prep.core.errors import UserError
from prep.core.params import load_params
from shards.loader import Loader
from shards.location import ShardLocation
from shards.stream import ShardDataset
from tests.clone import SHARDS, SMALL, Clone, commit_project
from tests.s3 import bucket_of, s3
from validation.checks import GATES
from validation.validate import validate

__all__ = ["s3"]
TINY = {
    "images.resolution": 32,
    "model.image.name": "test_efficientnet",
    "model.hidden": [8],
    "train.epochs": 1,
    "evaluate.bootstrap": 100,
}
PUSHED = [
    "data/raw",
    *(
        "data/shards",
        "data/weights.json",
        "data/sample",
        "data/images",
        "data/exclusions",
        "data/items",
        "data/groups",
        "data/gates",
    ),
    *("data/profiles", "results/validation"),
]

Files = dict[str, bytes]


class Team:
    """A project with two versions of shards in a remote, and the files of each version."""

    def __init__(self, folder: Path, run_to: Callable[..., None]) -> None:
        self.remote = folder / "remote"
        self.first = commit_project(folder / "first", SMALL | TINY)
        self.first.run("dvc", "remote", "add", "-q", "-d", "team", str(self.remote))
        self.shards: dict[str, Files] = {}
        self.data: dict[str, set[str]] = {}
        self.objects: dict[str, dict[Path, int]] = {}
        self._publish("v1", run_to)
        path = self.first.folder / "params.yaml"
        path.write_text(path.read_text().replace("  fraction: 0.2", "  fraction: 0.4"))
        self._publish("v2", run_to)
        self.second = self.first.cloned(folder / "second")  # its cache stays empty, so it reads from the remote

    def _publish(self, tag: str, run_to: Callable[..., None]) -> None:
        """Create a version as `dvc repro` does, but in one process; record, tag and push it."""
        params, data = load_params(self.first.folder / "params.yaml"), self.first.folder / "data"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EFFIMINI_STORE", str(self.first.folder / ".effimini"))
            run_to(params, data)
            for table in [name for name in GATES if name != "predictions"]:
                validate(table, params, data)
        gates = [f"validate_{table}" for table in ("shards", "weights", "profiles")]
        self.first.run("dvc", "commit", "-q", "-f", "-d", *gates)
        self.first.run("git", "add", "-A")
        self.first.run("git", "commit", "-qm", tag)
        self.first.run("git", "tag", tag)
        self.first.run("git", "tag", "-a", f"shards@{tag}.0.0", "-m", tag)
        self.first.run("dvc", "push", "-q")
        self.shards[tag] = read(self.first.folder / SHARDS)
        made = [self.first.folder / name for name in PUSHED]
        pushed = [file for path in made for file in (path, *path.rglob("*")) if file.is_file()]
        self.data[tag] = {md5(file.read_bytes()) for file in pushed}
        objects = [path for path in self.remote.rglob("*") if path.is_file()]
        self.objects[tag] = {path.relative_to(self.remote): path.stat().st_mtime_ns for path in objects}


def read(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, run_to: Callable[..., None]) -> Team:
    return Team(tmp_path_factory.mktemp("team"), run_to)


def test_a_push_uploads_only_what_a_larger_fraction_adds(team: Team) -> None:
    before, after = team.objects["v1"], team.objects["v2"]
    assert {path: after[path] for path in before} == before  # nothing was written again
    new = {"".join(path.parts[-2:]) for path in set(after) - set(before)}
    contents = {name for name in new if not name.endswith(".dir")}
    assert contents == team.data["v2"] - team.data["v1"]
    old_shards, new_shards = team.shards["v1"], team.shards["v2"]
    uploaded = {name for name, content in new_shards.items() if md5(content) in contents}
    added = set(new_shards) - set(old_shards)
    assert {name for name in added if name.endswith(".tar")} == {f"train-{band:02d}-000.tar" for band in range(4, 8)}
    assert uploaded == added | {"manifest.json", "report.json", "README.md"}


def test_diff_reports_that_only_training_shards_are_new(team: Team) -> None:
    result = json.loads(team.second.run("effimini", "diff", "v1", "v2", "--json").stdout)
    assert [change["name"] for change in result["parameters"]] == ["sample.fraction"]
    (row,) = result["splits"]
    new = set(team.shards["v2"]) - set(team.shards["v1"])
    tars = [name for name in new if name.endswith(".tar")]
    assert (row["split"], row["out"], row["new"], row["gone"], row["reindexed"]) == ("train", 0, len(tars), 0, 0)
    assert row["bytes_new"] == sum(len(team.shards["v2"][name]) for name in new)
    assert result["moved"] == result["metadata"] == []
    assert "DEMO DATA" in team.first.run("effimini", "diff", "v1", str(team.first.folder / "data/shards")).stdout
    assert "nothing changed" in team.first.run("effimini", "diff", "v2", "shards@v2.0.0").stdout


def test_dvc_get_gives_a_version_without_a_clone(team: Team, tmp_path: Path) -> None:
    url = f"file://{team.first.folder}"
    here = Clone(tmp_path)
    here.run("dvc", "get", "-q", "--rev", "v1", "-o", "by_tag", url, str(SHARDS))
    here.run("dvc", "artifacts", "get", "-q", "--rev", "v1.0.0", "-o", "by_name", url, "shards")
    assert read(tmp_path / "by_tag") == read(tmp_path / "by_name/Demo_Toys") == team.shards["v1"]


@pytest.mark.parametrize("project", ["{first}", "{second}", "file://{first}"])  # with a cache, without, cloned by DVC
@pytest.mark.parametrize("workers", [0, 2])
def test_a_revision_is_read_from_the_cache_or_the_remote(team: Team, project: str, workers: int) -> None:
    url = project.format(first=team.first.folder, second=team.second.folder)
    for tag, files in team.shards.items():
        where = f"dvc+{url}@{tag}#data/shards"
        location = ShardLocation(where, 10**9, 4)
        assert location.categories() == ["Demo_Toys"]
        assert location.read("Demo_Toys/manifest.json") == files["manifest.json"]
        data = ShardDataset(where, ["Demo_Toys"], "train")
        batches = list(Loader(data, batch_size=4, seed=1, workers=workers))
        tars = b"".join(content for name, content in files.items() if name.endswith(".tar"))
        assert sorted(key for batch in batches for key in batch.keys) == sorted(data.keys)
        assert all(data.image(i) in tars for i in range(len(data)))


def test_a_moved_tag_stays_the_same_commit_for_a_process_and_its_workers(team: Team, tmp_path: Path) -> None:
    clone = team.first.cloned(tmp_path / "moving")
    clone.run("git", "tag", "moving", "v1")
    location = ShardLocation(f"dvc+{clone.folder}@moving#data/shards", 10**9, 4)
    clone.run("git", "tag", "-f", "moving", "v2")
    with multiprocessing.get_context("fork").Pool(1) as workers:
        assert workers.apply(location.read, ("Demo_Toys/manifest.json",)) == team.shards["v1"]["manifest.json"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("dvc+{first}@v9#data/shards", "has no revision v9"),
        ("dvc+{first}@v1#data/nothing", "has no folder data/nothing at v1"),
        ("dvc+{first}@v1#data/raw", r"has no <category>/manifest.json"),
        ("dvc+{first}#data/shards", "has no revision and folder"),
        ("dvc+{remote}@v1#data/shards", "cannot be read as a DVC project"),
        ("dvc+{remote}/none@v1#data/shards", "cannot be cloned"),
    ],
)
def test_an_invalid_version_is_an_error(team: Team, url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ShardLocation(url.format(first=team.first.folder, remote=team.remote), 10**9, 4).categories()


def test_a_version_that_was_not_pushed_is_an_error(team: Team, tmp_path: Path) -> None:
    alone = team.first.cloned(tmp_path / "alone")
    alone.run("dvc", "remote", "add", "-q", "-d", "-f", "team", str(tmp_path / "empty"))
    alone.run("git", "commit", "-qam", "another remote")
    with pytest.raises(
        UserError, match="neither in its DVC cache nor in its remote; run `dvc push` where it was created"
    ):
        ShardLocation(f"dvc+{alone.folder}@HEAD#data/shards", 10**9, 4)


@pytest.mark.slow
def test_a_version_in_a_bucket_is_pulled_by_a_clone_and_used_without_one(
    team: Team, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = bucket_of(s3, "bucket", monkeypatch)
    second = team.first.cloned(tmp_path / "second")
    second.run("dvc", "remote", "add", "-q", "-d", "-f", "team", "s3://bucket/effimini")
    second.run("git", "commit", "-qam", "Add the team's remote")
    second.run("git", "tag", "in-bucket")
    second.run("dvc", "cache", "dir", "-q", "--local", str(team.first.folder / ".dvc/cache"))
    second.run("dvc", "push", "-q", "shard", "weights")
    assert any(bucket.find("bucket/effimini"))

    third = second.cloned(tmp_path / "third")
    third.run("dvc", "pull", "-q", "shard", "weights")
    assert read(third.folder / SHARDS) == team.shards["v2"]
    assert third.run("effimini", "lint").stdout == ""

    (tmp_path / "empty").mkdir()
    empty, where = Clone(tmp_path / "empty"), f"dvc+{third.folder}@in-bucket#data/shards"
    shutil.rmtree(third.folder / ".dvc/cache")  # so that the bucket is read
    assert json.loads(empty.run("effimini", "info", where, "--json").stdout)["total"]["shards"] == len(
        [name for name in team.shards["v2"] if name.endswith(".tar")]
    )
    empty.run("dvc", "get", "-q", "--rev", "in-bucket", str(third.folder), "params.yaml")
    empty.run("effimini", "train", "--shards", where)
    assert (empty.folder / "models/best/model.safetensors").exists()


@pytest.mark.slow
def test_a_clone_trains_and_evaluates_on_the_shards_only(team: Team, tmp_path: Path) -> None:
    metrics = Path("results/train/metrics.json")
    second, third = (team.first.cloned(tmp_path / name) for name in ("second", "third"))
    second.run("effimini", "train", "--shards", f"dvc+{team.first.folder}@v2#data/shards")
    assert not (second.folder / "data").exists()
    second.run("dvc", "pull", "-q", str(SHARDS), "weights")
    assert read(second.folder / SHARDS) == team.shards["v2"]
    assert second.run("effimini", "lint").stdout == ""
    second.run("effimini", "evaluate")
    said = second.run("effimini", "validate").stderr  # all tables that exist
    assert re.findall(r"^(\w+) passed", said, re.MULTILINE) == ["shards", "weights", "predictions"]
    said = second.run("effimini", "validate", "data/shards").stderr
    assert "data/sample, and data/exclusions is missing, so data/shards is not compared with it" in said
    assert json.loads((second.folder / "results/metrics.json").read_text())["source"] == "demo"
    assert {path.name for path in (second.folder / "data").iterdir()} == {"shards", "weights.json", "predictions"}

    third.run("dvc", "pull", "-q", "shard", "weights")
    done = third.run("dvc", "repro", "--pull", "--allow-missing", "train")
    assert [line for line in done.stdout.splitlines() if line.startswith("> ")] == ["> effimini train"]
    assert {path.name for path in (third.folder / "data").iterdir()} == {"shards", "weights.json", "gates"}
    assert (third.folder / metrics).read_text() == (second.folder / metrics).read_text()
