"""Manifests of earlier formats: existing shards stay readable."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prep.core.errors import UserError
from shards import manifest
from shards.lint import lint
from shards.location import ShardLocation
from shards.stream import ShardDataset
from tests.shards.made import SIDE, make_shards


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "Made" / manifest.MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(("version", "size"), [(2, "size"), (3, "resolution")])
def test_shards_of_older_formats_are_read_as_before(tmp_path: Path, version: int, size: str) -> None:
    folder = make_shards(tmp_path, {"train": [3]}, tabular=())
    now = ShardDataset(folder, ["Made"], "train")
    rewrite(folder, format=version, parameters={"groups": {"max_link": 5}, "images": {size: SIDE}})
    path = folder / "Made" / manifest.MANIFEST_FILE
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "tabular"}))
    old = ShardDataset(folder, ["Made"], "train")
    (about,) = old.shards.manifests
    assert about.parameters == {"groups": {"max_items_per_key": 5}, "images": {"resolution": SIDE}}
    assert (old.shards.image_size, old.keys, old.fingerprint) == (SIDE, now.keys, now.fingerprint)
    assert torch.equal(old.batch(np.arange(3), 3).images, now.batch(np.arange(3), 3).images)
    assert old.tabular_names == ()
    assert old.batch(np.arange(3), 3).tabular.shape == old.tabular.shape == (3, 0)
    assert [fault for found in lint(ShardLocation(folder, 10**9, 4)) for fault in found.violations] == []


@pytest.mark.parametrize("version", [1, manifest.FORMAT + 1, None])
def test_shards_of_an_unknown_format_are_rejected(tmp_path: Path, version: int | None) -> None:
    folder = make_shards(tmp_path, {"train": [3]})
    rewrite(folder, format=version)
    with pytest.raises(UserError, match=f"has format {version!r} and EffiMini [0-9.]+ reads 2, 3, 4, 5; ") as error:
        ShardDataset(folder, ["Made"], "train")
    assert ("install a newer version of EffiMini, or " in str(error.value)) is (version == manifest.FORMAT + 1)


@pytest.mark.parametrize(
    ("needs", "told"),
    [
        ("0.2.0", "install EffiMini 0.2.0 or newer, or make the shards again with `dvc repro shard`"),
        ("\x1b[2J", "install a newer version of EffiMini, or make"),  # strangers write manifests
        (7, "install a newer version of EffiMini, or make"),
    ],
)
def test_shards_of_a_newer_format_name_the_version_that_reads_them(tmp_path: Path, needs: object, told: str) -> None:
    folder = make_shards(tmp_path, {"train": [3]})
    assert "needs" not in json.loads((folder / "Made" / manifest.MANIFEST_FILE).read_text())
    rewrite(folder, format=manifest.FORMAT + 1, needs=needs, shards="in a way that this version does not know")
    with pytest.raises(UserError) as error:
        ShardDataset(folder, ["Made"], "train")
    assert told in str(error.value)


def test_tabular_values_are_read_with_their_names_and_nan_where_missing(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, {"train": [4, 3]}, tabular=("a", "b", "c"))
    dataset = ShardDataset(folder, ["Made"], "train")
    expected = [[np.nan if (n + i) % 3 == 0 else n / 4 + i for i in range(3)] for n in range(7)]
    assert dataset.tabular_names == ("a", "b", "c")
    np.testing.assert_array_equal(dataset.tabular, np.array(expected, np.float32))
    batch = dataset.batch(np.array([5, 1, 6]), 3)
    assert batch.tabular.dtype == torch.float32
    np.testing.assert_array_equal(batch.tabular, np.array(expected, np.float32)[[5, 1, 6]])
    assert [fault for found in lint(ShardLocation(folder, 10**9, 4)) for fault in found.violations] == []


def test_shards_with_other_columns_are_refused_together(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [3]}, "One")
    make_shards(tmp_path, {"train": [3]}, "Other", tabular=("image_count", "price"))
    with pytest.raises(UserError, match="Other and One differ in tabular; run `dvc repro shard` for both"):
        ShardDataset(tmp_path, ["One", "Other"], "train")


@pytest.mark.parametrize("names", [(), ("price",), ("price", "image_count", "more")])
def test_an_index_without_the_columns_of_its_manifest_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = make_shards(tmp_path, {"train": [3]})
    rewrite(folder, tabular=names)
    faults = [fault for found in lint(ShardLocation(folder, 10**9, 4)) for fault in found.violations]
    assert any("whose names or types are not those of an index" in fault.what for fault in faults)
    assert any("tabular" in fault.what for fault in faults)
    if names:
        with pytest.raises(UserError, match="is not an index"):
            ShardDataset(folder, ["Made"], "train").batch(np.arange(3), 3)
