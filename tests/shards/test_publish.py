"""Publishing shards: a hub has what the manifests list, and its readers read it back."""

import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, constants

from benchmarks.rehearsal.hub import Request, reset, status
from effimini.cli import app
from prep.core.errors import UserError
from shards.location import ShardLocation
from shards.manifest import Manifest
from shards.stream import ShardDataset
from tests.conftest import ROOT
from tests.on_hub import environment, hub_here
from tests.writable_hub import CREATED, TOKEN, WritableHub

CATEGORIES = ("Demo_Kitchen", "Demo_Toys")
SPLITS = ("train", "validation", "test")
NAME = "team/products"
LICENCE = ("--license", "cc-by-4.0")
# Reads a repository back in another process, as a colleague would.
LOAD = """
import json, sys
from datasets import load_dataset
config, revision = sys.argv[1:]
loaded = load_dataset("team/products", config, revision=revision)
print(json.dumps({split: [row["json"] if "json" in row else row for row in rows.select_columns(
    [c for c in rows.column_names if c != "jpg"])] for split, rows in loaded.items()}))
print(json.dumps({split: [list(row["jpg"].size) for row in rows] for split, rows in loaded.items()
    if "jpg" in rows.column_names}))
"""


@pytest.fixture(scope="module")
def shards(made_data: Callable[..., Path]) -> Path:
    return made_data("shard") / "shards"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    monkeypatch.chdir(tmp_path)
    with hub_here(tmp_path, monkeypatch) as running:
        yield running


def publish(*arguments: object) -> None:
    app(["publish", *map(str, arguments)], standalone_mode=False)


def manifests(shards: Path) -> list[Manifest]:
    return [ShardLocation(shards).manifest(category) for category in CATEGORIES]


def listed(shards: Path) -> dict[str, str]:
    """Return the sha256 of the tars and indexes that the manifests list."""
    return {
        f"{m.category}/{name}": digest
        for m in manifests(shards)
        for shard in m.shards
        for name, digest in ((shard.name, shard.sha256), (shard.index, shard.index_sha256))
    }


def in_process(hub: WritableHub, home: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=environment(hub, home) | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


def loaded(hub: WritableHub, home: Path, config: str, revision: str) -> tuple[dict[str, Any], dict[str, Any]]:
    done = in_process(hub, home, "-c", LOAD, config, revision)
    assert done.returncode == 0, done.stderr
    rows, sizes = map(json.loads, done.stdout.splitlines())
    return rows, sizes


def test_published_shards_are_loaded_by_name_with_every_key_label_and_image(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WritableHub() as hub:
        command = ("-m", "effimini.cli", "publish", NAME, str(shards), *LICENCE, "--revision", "v1", "--private")
        done = in_process(hub, tmp_path, *command)
        assert done.returncode == 0, done.stderr
        repository = hub.repositories["datasets", NAME]
        commit = repository.branches["v1"]
        assert done.stdout == f"Published: {hub.url}/datasets/{NAME}/tree/v1 (commit {commit})\n"
        assert TOKEN not in done.stdout + done.stderr
        assert repository.private
        assert repository.commits[repository.branches["main"]] == {}

        files = hub.files("datasets", NAME, "v1")
        beside = {f"{category}/manifest.json" for category in CATEGORIES} | {"README.md", "croissant.json"}
        assert files.keys() == listed(shards).keys() | beside
        assert {path: files[path].oid for path in listed(shards)} == listed(shards)
        for config, categories in (("default", CATEGORIES), ("Demo_Toys", ("Demo_Toys",))):
            rows, sizes = loaded(hub, tmp_path, config, "v1")
            for split in SPLITS:
                ours = ShardDataset(shards, categories, split)
                expected = [ours.metadata(i) for i in range(len(ours))]
                assert [by_key(row) for row in rows[split]] == [by_key(row) for row in expected]
                assert sizes[split] == [[32, 32] if row["has_image"] else [1, 1] for row in expected]
        # EffiMini reads it where it is
        shown = in_process(hub, tmp_path, "-m", "effimini.cli", "lint", f"hf://datasets/{NAME}@v1", "--json")
        assert json.loads(shown.stdout) == {
            "violations": [],
            "shards": len(listed(shards)) // 2,
            "samples": total(shards),
        }


def total(shards: Path) -> int:
    return sum(shard.samples for manifest in manifests(shards) for shard in manifest.shards)


def by_key(row: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(row.items()))


def test_without_content_labels_are_loaded_and_nothing_else_is_published(
    shards: Path, hub: WritableHub, tmp_path: Path
) -> None:
    publish(NAME, shards, "--without-content")
    files = hub.files("datasets", NAME)
    beside = {"README.md", "croissant.json"}
    assert files.keys() == {f"{category}/{split}.parquet" for category in CATEGORIES for split in SPLITS} | beside
    rows, sizes = loaded(hub, tmp_path, "default", "main")
    assert sizes == {}
    tabular = manifests(shards)[0].tabular
    assert len(tabular) > 1
    for split in SPLITS:
        ours = ShardDataset(shards, CATEGORIES, split)
        for row, place in zip(rows[split], range(len(ours)), strict=True):
            sample = ours.metadata(place)
            numbers = dict(zip(tabular, sample.pop("tabular"), strict=True))  # type: ignore[misc]
            assert row == {
                name: pytest.approx(sample[name], rel=1e-6) if name == "average_rating" else sample[name]
                for name in ("parent_asin", "category", "average_rating", "rating_number", "review_count", "has_image")
            } | {
                name: number if number is None else pytest.approx(number, rel=1e-6) for name, number in numbers.items()
            }
    # no text of the shards is in any byte that was published
    title = ShardDataset(shards, CATEGORIES, "train").metadata(0)["title"].encode()
    assert not any(title in hub.content("datasets", NAME, path) for path in files)
    assert DatasetCard(hub.content("datasets", NAME, "README.md").decode()).data.license is None  # of demo data


@pytest.mark.parametrize("place", [pytest.param("", marks=pytest.mark.slow), "/Demo_Toys/*.parquet"])
def test_a_published_dataset_is_a_table(shards: Path, hub: WritableHub, tmp_path: Path, place: str) -> None:
    publish(NAME, shards, "--without-content")
    location = f"hf://datasets/{NAME}@{hub.repositories['datasets', NAME].branches['main']}{place}"
    command = ("-m", "effimini.cli", "inspect", location, "--params", str(ROOT / "params/best.yaml"), "--json")
    done = in_process(hub, tmp_path, *command)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = [m for m in manifests(shards) if not place or m.category == "Demo_Toys"]
    assert found["categories"] == {m.category: sum(shard.samples for shard in m.shards) for m in expected}
    fields = {column["column"]: column["fields"] for column in found["columns"]}
    assert fields["parent_asin"] == ["parent_asin"]
    assert fields["average_rating"] == ["average_rating"]


def test_the_same_shards_are_published_once(shards: Path, hub: WritableHub, capsys: pytest.CaptureFixture[str]) -> None:
    publish(NAME, shards, *LICENCE)
    first, sent = capsys.readouterr().out, len(hub.uploaded)
    publish(NAME, shards, *LICENCE)
    assert capsys.readouterr().out == first
    assert len(hub.uploaded) == sent == len(set(listed(shards).values()))


def test_files_of_another_version_are_removed_and_those_of_others_are_kept(shards: Path, hub: WritableHub) -> None:
    publish(NAME, shards, "--without-content")
    repository = hub.repositories["datasets", NAME]
    old = hub.files("datasets", NAME)
    stale = old | {"Demo_Toys/train-19-000.tar": old["README.md"], "Demo_Old/manifest.json": old["README.md"]}
    repository.commit("main", stale | {"LICENSE": old["README.md"], "notes/manifest.md": old["README.md"]})
    publish(NAME, shards, "Demo_Toys", *LICENCE)
    now = hub.files("datasets", NAME).keys() - {"README.md", "croissant.json", "LICENSE", "notes/manifest.md"}
    ours = {path for path in listed(shards) if path.startswith("Demo_Toys/")}
    assert now == ours | {"Demo_Toys/manifest.json"}
    assert {"LICENSE", "notes/manifest.md"} <= hub.files("datasets", NAME).keys()


def test_an_interrupted_upload_goes_on_with_what_is_missing(
    shards: Path, hub: WritableHub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub.faults.extend([None, reset, None, status(503), *[None] * 3, *[status(503)] * 100])
    with pytest.raises(UserError, match=r"HTTP 503 for team/products .*run the same again") as refused:
        publish(NAME, shards, *LICENCE)
    of_hub = [record.getMessage() for record in caplog.records if record.name.startswith("huggingface_hub")]
    assert any("503" in message for message in of_hub)
    assert "signature" not in str(refused.value) + "".join(of_hub)
    assert hub.files("datasets", NAME) == {}  # the commit comes last
    first = set(hub.uploaded)
    assert 0 < len(first) < len(set(listed(shards).values()))
    hub.faults.clear()
    publish(NAME, shards, *LICENCE)
    assert len(hub.uploaded) == len(set(hub.uploaded))
    assert set(hub.uploaded) == set(listed(shards).values())
    assert {path: hub.files("datasets", NAME)[path].oid for path in listed(shards)} == listed(shards)


def test_a_killed_upload_goes_on_with_what_is_missing(shards: Path, hub: WritableHub, tmp_path: Path) -> None:
    stalled: list[Request] = []

    def stall(request: Request) -> None:
        stalled.append(request)
        time.sleep(60)

    hub.faults.extend([*[None] * 4, *[stall] * 100])
    command = [sys.executable, "-m", "effimini.cli", "publish", NAME, str(shards), *LICENCE]
    process = subprocess.Popen(
        command, env=environment(hub, tmp_path) | {"PYTHONPATH": str(Path(__file__).parents[2])}, cwd=tmp_path
    )
    while len(hub.uploaded) < 4 or not stalled:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    hub.faults.clear()
    publish(NAME, shards, *LICENCE)
    assert len(hub.uploaded) == len(set(hub.uploaded))
    assert {path: hub.files("datasets", NAME)[path].oid for path in listed(shards)} == listed(shards)


def test_the_upload_over_xet_commits_the_same_files(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    with WritableHub(xet=tmp_path / "xet") as hub:
        command = ("-m", "effimini.cli", "publish", NAME, str(shards), *LICENCE)
        done = in_process(hub, tmp_path, *command, HF_HUB_DISABLE_XET="0")
        assert done.returncode == 0, done.stderr
        assert hub.uploaded == []
        assert {path: hub.files("datasets", NAME)[path].oid for path in listed(shards)} == listed(shards)
        before = hub.repositories["datasets", NAME].branches["main"]
        again = in_process(hub, tmp_path, *command, HF_HUB_DISABLE_XET="0")
        assert again.stdout == done.stdout
        assert hub.repositories["datasets", NAME].branches["main"] == before
        assert TOKEN not in done.stderr


def test_the_card_states_the_licence_and_has_a_configuration_for_each_category(shards: Path, hub: WritableHub) -> None:
    publish(NAME, shards, *LICENCE)
    card = DatasetCard(hub.content("datasets", NAME, "README.md").decode())
    assert card.data.license == "cc-by-4.0"
    assert "Published under `cc-by-4.0`" in card.text
    assert [config["config_name"] for config in card.data["configs"]] == ["default", *CATEGORIES]
    files = hub.files("datasets", NAME)
    for config in card.data["configs"]:
        for data_files in config["data_files"]:
            assert all(any(Path(file).match(pattern) for file in files) for pattern in data_files["path"])


@pytest.mark.parametrize("content", [True, False])
def test_croissant_has_what_the_specification_requires(shards: Path, hub: WritableHub, content: bool) -> None:
    publish(NAME, shards, *(LICENCE if content else ["--without-content"]))
    about = json.loads(hub.content("datasets", NAME, "croissant.json"))
    required = {"@context", "@type", "conformsTo", "description", "license", "name", "url", "creator", "datePublished"}
    assert required | {"distribution", "recordSet"} == about.keys()
    assert about["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert about["datePublished"] == CREATED[:10]
    assert about["url"] == f"{hub.url}/datasets/{NAME}"
    assert about["creator"]["url"] == f"{hub.url}/team"
    assert about["license"].endswith("/cc-by-4.0/" if content else "/unknown/")
    resources = {resource["@id"]: resource for resource in about["distribution"]}
    assert len(resources) == len(about["distribution"])
    files = hub.files("datasets", NAME)
    for resource in resources.values():
        if resource["@type"] == "cr:FileObject":
            assert {"name", "contentUrl", "encodingFormat", "sha256"} <= resource.keys()
            continue
        within = resource["containedIn"]["@id"]
        assert within in resources
        if within == "repository":
            assert any(Path(file).match(resource["includes"]) for file in files)
    (records,) = about["recordSet"]
    names = {field["name"] for field in records["field"]}
    for field in records["field"]:
        assert {"@type", "@id", "name", "dataType", "source"} <= field.keys()
        assert field["source"]["fileSet"]["@id"] in resources
    sample = ShardDataset(shards, CATEGORIES, "train").metadata(0)
    tabular = set(manifests(shards)[0].tabular)
    if content:
        assert names == sample.keys() - {"tabular"}
    else:
        assert names == set(manifest_columns(hub)) >= tabular


def manifest_columns(hub: WritableHub) -> list[str]:
    """Return the columns of the published labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return list(pq.read_schema(pa.BufferReader(hub.content("datasets", NAME, "Demo_Toys/test.parquet"))).names)


@pytest.mark.parametrize("licence", [[], ["--license", ""], ["--license", "unknown"]])
def test_images_and_texts_are_not_published_without_a_licence(
    shards: Path, hub: WritableHub, licence: list[str]
) -> None:
    with pytest.raises(UserError, match=r"images and texts are not published without .*--license.*--without-content"):
        publish(NAME, shards, *licence)
    assert hub.server.asked == []


def test_a_refusal_is_one_sentence(shards: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'products' is not the name of a repository on the hub; give OWNER/NAME"):
        publish("products", shards, *LICENCE)
    with pytest.raises(UserError, match=r"gives no access to others/products \(HTTP 403.*others\); log in"):
        publish("others/products", shards, *LICENCE)
    with pytest.raises(UserError, match=r"both the model models/best and shards are to be published"):
        publish(NAME, shards, "--model", "models/best")
    with pytest.raises(UserError, match=r"https://host/shards is not a local folder; copy"):
        publish(NAME, "https://host/shards", "Demo_Toys", *LICENCE)
    publish(NAME, shards, "--without-content")
    with pytest.raises(UserError, match=r"team/products exists and is public, so --private has no effect"):
        publish(NAME, shards, "--without-content", "--private")
    hub.invalid_card = '"license" must be one of apache-2.0, mit'
    with pytest.raises(UserError, match=r"team/products cannot be transferred \(Invalid metadata.*\"license\" must be"):
        publish(NAME, shards, "--license", "my own")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"gives no access to team/products \(HTTP 401.*hf auth login") as refused:
        publish(NAME, shards, *LICENCE)
    assert "hf_wrong" not in str(refused.value)


def test_a_hub_that_does_not_respond_is_an_error(
    shards: Path, hub: WritableHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9\) does not respond for team/products .*again"):
        publish(NAME, shards, *LICENCE)


def test_damaged_shards_are_not_published(shards: Path, hub: WritableHub, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    tar = next(copy.glob("Demo_Toys/test-*.tar"))
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match=rf"{tar} cannot be read \(its sha256 differs"):
        publish(NAME, copy, *LICENCE)
    assert hub.uploaded == []
    assert hub.files("datasets", NAME) == {}
