"""A valid data/ folder, written once by the stages for all tests of the gates."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prep.weights import weights
from shards.shard import shard
from tests.validation import tree


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, run_to: Callable[..., None]) -> Path:
    home = tmp_path_factory.mktemp("clean")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFIMINI_STORE", str(home / "store"))
        patch.chdir(tree.ROOT)  # the path of the tokenizer is relative to it
        settings = tree.params_with_source(home / "source")
        run_to(settings, home / "data", "decontaminate")
        tree.exclude(home / "data", 3)  # of so few items, none may repeat another
        for category in tree.CATEGORIES:
            shard(category, settings, home / "data")
        weights(settings, home / "data")
    tree.predictions(home / "data")
    tree.items_to_score(home / "data")
    return home / "data"


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    """A copy of the valid data/ folder, to be corrupted."""
    return tree.copy(clean, tmp_path / "data")
