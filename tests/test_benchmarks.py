"""The benchmarks, which are run by hand, fit the code that they measure."""

from importlib import import_module
from pathlib import Path

import pytest

NAMES = sorted(path.stem for path in (Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_a_benchmark_takes_is_there(name: str) -> None:
    import_module("effimini.torchvision_shim")  # before what imports torchvision
    import_module(f"benchmarks.{name}")
