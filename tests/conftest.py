"""What several tests need: parameters to vary, a small demo catalogue taken through the stages, the real corpus."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from prep.params import Params

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a local store of its own, so that none sees what another made."""
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="session")
def make_params() -> Callable[..., Params]:
    """Return the demo's parameters, small, with dotted keys changed: make_params(**{"sample.fraction": 0.4})."""
    demo = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())

    def make(**changes: Any) -> Params:
        raw = msgspec.json.decode(msgspec.json.encode(demo))
        small = {
            "source.categories": ["Demo_Kitchen", "Demo_Toys"],
            "source.demo.items": 80,
            "images.size": 32,
            "download.bad_share": 0.1,  # few rows: a few bad ones are a large share
            "images.bad_share": 0.5,
            "images.twin_share": 1.0,
            "model.text.name": str(ROOT / "effimini/minilm"),
        }
        for key, value in (small | changes).items():
            *sections, name = key.split(".")
            section = raw
            for part in sections:
                section = section[part]
            section[name] = value
        return msgspec.convert(raw, Params)

    return make


@pytest.fixture(scope="session")
def run_to() -> Callable[..., None]:
    """Run the data stages up to and with `last` on every category, in `data`."""

    def run(params: Params, data: Path, last: str = "weights") -> None:
        from prep import download, groups, join, sample, weights
        from shards import fetch, write

        stages = {
            "download": download.download,
            "join": join.join,
            "groups": groups.group,
            "sample": sample.sample,
            "fetch": fetch.fetch,
            "shard": write.write,
            "weights": weights.weigh,
        }
        for name, stage in stages.items():
            if name in {"groups", "weights"}:
                stage(params, data)
            else:
                for category in params.source.categories:
                    stage(category, params, data)
            if name == last:
                return

    return run


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """Return the sha256 of every file below a folder, by relative path."""
    from prep.files import sha256

    def hashes(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}

    return hashes


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Return the folder of the real corpus, or skip."""
    folder = Path(os.environ.get("EFFIMINI_CORPUS", ROOT / "../shared/corpus"))
    if not folder.is_dir():
        pytest.skip(f"the real corpus is not at {folder}; name its folder in EFFIMINI_CORPUS")
    return folder.resolve()
