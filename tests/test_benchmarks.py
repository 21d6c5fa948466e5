"""The benchmarks, which are run manually, match the code that they measure."""

from importlib import import_module
from pathlib import Path

import pytest

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_can_be_imported(name: str) -> None:
    import_module("effimini.torchvision_shim")  # before what imports torchvision
    import_module(f"benchmarks.{name}")
