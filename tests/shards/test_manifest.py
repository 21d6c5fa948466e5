"""Manifests of earlier formats: shards that a team has stay readable."""

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


def test_shards_of_format_2_are_read_as_before(tmp_path: Path) -> None:
    folder = make_shards(tmp_path, {"train": [3]})
    now = ShardDataset(folder, ["Made"], "train")
    rewrite(folder, format=2, parameters={"sample": {"fraction": 1.0}, "images": {"size": SIDE}})
    old = ShardDataset(folder, ["Made"], "train")
    assert (old.shards.image_size, old.keys, old.fingerprint) == (SIDE, now.keys, now.fingerprint)
    assert torch.equal(old.batch(np.arange(3), 3).images, now.batch(np.arange(3), 3).images)
    assert [fault for found in lint(ShardLocation(folder, 10**9, 4)) for fault in found.faults] == []


@pytest.mark.parametrize("form", [1, manifest.FORMAT + 1, None])
def test_shards_of_an_unknown_format_are_refused(tmp_path: Path, form: int | None) -> None:
    folder = make_shards(tmp_path, {"train": [3]})
    rewrite(folder, format=form)
    with pytest.raises(UserError, match=f"has format {form!r} and this version reads 2 and 3"):
        ShardDataset(folder, ["Made"], "train")
