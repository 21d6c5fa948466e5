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
    folder = make_shards(tmp_path, {"train": [3]})
    now = ShardDataset(folder, ["Made"], "train")
    rewrite(folder, format=version, parameters={"groups": {"max_link": 5}, "images": {size: SIDE}})
    old = ShardDataset(folder, ["Made"], "train")
    (about,) = old.shards.manifests
    assert about.parameters == {"groups": {"max_items_per_key": 5}, "images": {"resolution": SIDE}}
    assert (old.shards.image_size, old.keys, old.fingerprint) == (SIDE, now.keys, now.fingerprint)
    assert torch.equal(old.batch(np.arange(3), 3).images, now.batch(np.arange(3), 3).images)
    assert [fault for found in lint(ShardLocation(folder, 10**9, 4)) for fault in found.violations] == []


@pytest.mark.parametrize("version", [1, manifest.FORMAT + 1, None])
def test_shards_of_an_unknown_format_are_rejected(tmp_path: Path, version: int | None) -> None:
    folder = make_shards(tmp_path, {"train": [3]})
    rewrite(folder, format=version)
    with pytest.raises(UserError, match=f"has format {version!r} and this version reads 2, 3, 4"):
        ShardDataset(folder, ["Made"], "train")
