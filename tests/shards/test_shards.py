"""The shards of a small demo: read by other libraries, rewritten only if needed, and streamed."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from prep.core import files
from prep.core.errors import UserError
from prep.core.files import read_json
from prep.core.params import Params
from prep.core.tables.sample import SAMPLE, TEXTS
from prep.core.tables.shards import METADATA_FIELDS, TABULAR, SampleMetadata
from prep.core.tables.tabular import TABULAR_NAMES
from shards import shard, stream
from shards.images.pixels import decode
from tests.shards import damage

CATEGORIES = ("Demo_Kitchen", "Demo_Toys")


@pytest.fixture(scope="module")
def data(made_data: Callable[..., Path]) -> Path:
    return made_data()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.tar"))


def test_the_metadata_has_the_columns_and_types_of_the_sample_and_has_image() -> None:
    types = {pa.string(): str, pa.float64(): float, pa.int64(): int}
    assert set(TEXTS) < set(METADATA_FIELDS)
    columns = {name: types[SAMPLE.field(name).type] for name in METADATA_FIELDS if name not in {"has_image", TABULAR}}
    assert get_type_hints(SampleMetadata) == columns | {"has_image": bool, TABULAR: list[float | None]}
    assert {SAMPLE.field(name).type for name in TABULAR_NAMES} == {pa.float64()}


def test_webdataset_reads_the_tars_as_they_are(data: Path) -> None:
    tars = sorted(str(path) for path in (data / "shards").rglob("*.tar"))
    seen = [
        (sample["__key__"], json.loads(sample["json"]), sample["jpg"])
        for sample in webdataset.WebDataset(tars, shardshuffle=False)
    ]
    expected = sum(len(stream.ShardDataset(data / "shards", CATEGORIES, s)) for s in ("train", "validation", "test"))
    assert len(seen) == expected
    for key, metadata, jpeg in seen:
        assert metadata["parent_asin"] == key
        assert tuple(metadata) == METADATA_FIELDS
        assert None not in metadata.values()
        assert decode(jpeg).shape == ((32, 32, 3) if metadata["has_image"] else (1, 1, 3))


def test_datasets_reads_the_tars_as_they_are(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    tars = sorted(str(path) for path in (data / "shards").rglob("*.tar"))
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path))
    assert set(loaded.column_names) >= {"jpg", "json", "__key__"}
    metadata = loaded.remove_columns("jpg")["json"]
    assert {f["category"] for f in metadata} == set(CATEGORIES)
    assert {f["has_image"] for f in metadata} == {True, False}


def test_the_index_points_at_the_members(data: Path) -> None:
    dataset = stream.ShardDataset(data / "shards", CATEGORIES, "train")
    members = {}
    for category in CATEGORIES:
        for path in sorted((data / "shards" / category).glob("train-*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    assert content is not None
                    members[f"{category}/{member.name}"] = content.read()
    assert len(members) == 2 * len(dataset)
    for i, key in enumerate(dataset.keys):
        assert dataset.image(i) == members[f"{key}.jpg"]
        metadata = json.loads(members[f"{key}.json"])
        assert dataset.metadata(i) == metadata
        assert dataset.labels[i] == np.float32(metadata["average_rating"])
        assert (dataset.rating_number[i], dataset.review_count[i], dataset.has_image[i]) == (
            metadata["rating_number"], metadata["review_count"], metadata["has_image"]
        )  # fmt: skip


def test_a_larger_fraction_writes_only_new_tars_and_reuses_stored_ones(
    data: Path,
    tmp_path: Path,
    make_params: Callable[..., Params],
    run_to: Callable[..., None],
    digests: Callable[[Path], dict[str, str]],
) -> None:
    category = "Demo_Toys"
    params = {fraction: make_params(**{"sample.fraction": fraction}) for fraction in (0.2, 0.4)}
    run_to(params[0.2], tmp_path)
    small = digests(tmp_path / "shards" / category)
    made = {}
    for step, fraction in enumerate((0.4, 0.2, 0.4)):
        run_to(params[fraction], tmp_path, "decontaminate")
        made[step] = shard.shard(category, params[fraction], tmp_path)
        now = digests(tmp_path / "shards" / category)
        if fraction == 0.4:
            kept = {name for name in small if name.endswith((".tar", ".arrow"))}
            assert {name: now[name] for name in kept} == {name: small[name] for name in kept}
        else:
            assert now == small
        if step == 0:
            assert made[0] == (len(now) - len(small)) // 2 > 0
    assert (made[1], made[2]) == (0, 0)


def of_store(pattern: str) -> list[Path]:
    return sorted(path for path in files.store().glob(pattern) if path.suffix != ".sha256")


def retitled(path: Path) -> None:
    """Change a letter of a title in a tar."""
    at = path.read_bytes().index(b'"title":"') + 9
    damage.flip(path, at)


def relabelled(path: Path) -> None:
    """Change the first digit of a label in a tar."""
    content = path.read_bytes()
    at = content.index(b'"average_rating":') + 17
    damage.write(path, content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :])


def retokenized(path: Path) -> None:
    """Change a token id in an index."""
    damage.set_index(path, lambda rows: rows[0]["tokens"].__setitem__(1, rows[0]["tokens"][1] + 1))


CHANGES = {
    "title": ("shards/*.tar", retitled),
    "label": ("shards/*.tar", relabelled),
    "token": ("shards/*.arrow", retokenized),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("linked", [False, True])
def test_what_was_changed_in_the_local_store_is_not_published(
    what: str, linked: bool, tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None],
    digests: Callable[[Path], dict[str, str]],
) -> None:  # fmt: skip
    params, folder = make_params(), tmp_path / "shards/Demo_Toys"
    run_to(params, tmp_path, "shard")
    before = digests(folder)
    pattern, change = CHANGES[what]
    for path in of_store(pattern):
        content = files.sha256(path)
        change(path)  # in a copy of the file
        if linked:  # and so in the outputs
            for name in before:
                if before[name] == content:
                    (folder / name).unlink()
                    os.link(path, folder / name)
    made = shard.shard("Demo_Toys", params, tmp_path)
    assert digests(folder) == before
    assert made == (len(names(folder)) if pattern.endswith("tar") else 0)
    assert shard.shard("Demo_Toys", params, tmp_path) == 0


def test_one_changed_tar_of_a_part_is_made_again_alone(
    tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None],
    digests: Callable[[Path], dict[str, str]],
) -> None:  # fmt: skip
    params = make_params(**{"shards.samples_per_shard": 2, "sample.fraction": 0.5})
    run_to(params, tmp_path, "shard")
    before = digests(tmp_path / "shards/Demo_Toys")
    stored = [path for path in of_store("shards/*-001.tar") if files.sha256(path) in before.values()]
    retitled(stored[0])
    assert shard.shard("Demo_Toys", params, tmp_path) == 1
    assert digests(tmp_path / "shards/Demo_Toys") == before


def test_another_tokenizer_or_text_rewrites_only_indexes(
    data: Path, tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None],
    digests: Callable[[Path], dict[str, str]],
) -> None:  # fmt: skip
    run_to(make_params(), tmp_path, "shard")
    before = digests(tmp_path / "shards/Demo_Toys")
    assert shard.shard("Demo_Toys", make_params(**{"text.fields": ["title"], "text.max_tokens": 8}), tmp_path) == 0
    after = digests(tmp_path / "shards/Demo_Toys")
    for name in before:
        assert (before[name] == after[name]) == name.endswith((".tar", "report.json")), name
    dataset = stream.ShardDataset(tmp_path / "shards", CATEGORIES[1:], "train")
    assert dataset.lengths(np.arange(len(dataset))).max() <= 8


@pytest.mark.parametrize("change", [{"images.resolution": 48}, {"sample.salt": "other"}])
def test_parameters_of_the_tars_rewrite_them_and_stored_ones_are_reused(
    change: dict[str, object], tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None],
    digests: Callable[[Path], dict[str, str]],
) -> None:  # fmt: skip
    run_to(make_params(), tmp_path, "shard")
    before = digests(tmp_path / "shards")
    run_to(make_params(**change), tmp_path, "shard")
    changed = digests(tmp_path / "shards")
    tars = {before[name] for name in before if name.endswith(".tar")}
    assert tars.isdisjoint(changed.values())
    run_to(make_params(), tmp_path, "decontaminate")
    assert [shard.shard(category, make_params(), tmp_path) for category in CATEGORIES] == [0, 0]
    assert digests(tmp_path / "shards") == before


def test_images_of_another_sample_are_rejected(
    tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> None:
    params = make_params()
    run_to(params, tmp_path, "decontaminate")
    folder = tmp_path / "images/Demo_Toys"
    (folder / "test.parquet").unlink()
    with pytest.raises(UserError, match="does not exist; run `dvc repro fetch`"):
        shard.shard("Demo_Toys", params, tmp_path)
    (folder / "validation.parquet").rename(folder / "test.parquet")
    (tmp_path / "images/Demo_Kitchen/validation.parquet").rename(folder / "validation.parquet")
    with pytest.raises(UserError, match="does not have the items of"):
        shard.shard("Demo_Toys", params, tmp_path)


def test_the_manifest_lists_the_files(data: Path, digests: Callable[[Path], dict[str, str]]) -> None:
    folder = data / "shards/Demo_Toys"
    manifest = read_json(folder / "manifest.json")
    hashes = digests(folder)
    assert [line["name"] for line in manifest["shards"]] == names(folder)
    for line in manifest["shards"]:
        assert line["sha256"] == hashes[line["name"]]
        assert line["index_sha256"] == hashes[line["name"].replace(".tar", ".arrow")]
        assert line["bytes"] == (folder / line["name"]).stat().st_size
        assert line["name"].startswith(line["split"])
