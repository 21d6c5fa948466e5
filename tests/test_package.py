"""The package as another program uses it: installed from a wheel, typed, with few public names."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import effimini
from tests.clone import ROOT

PROGRAM = """
from pathlib import Path

import torch

from effimini import EffiMini, Loader, ShardDataset, __version__


def stars(model: Path, shards: Path, categories: list[str]) -> torch.Tensor:
    network = EffiMini.from_pretrained(model)
    data = ShardDataset(shards, categories, "test")
    found = [network(b.images, b.tokens, b.mask, b.has_image) for b in Loader(data, batch_size=4, seed=None)]
    return torch.cat(found)


print(__version__)
"""


def test_the_public_names_are_those_of_their_modules() -> None:
    from effimini.model import EffiMini
    from shards.loader import Loader
    from shards.stream import ShardDataset

    assert (effimini.EffiMini, effimini.Loader, effimini.ShardDataset) == (EffiMini, Loader, ShardDataset)
    with pytest.raises(AttributeError, match="no attribute 'Model'"):
        _ = effimini.Model


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, effimini; print(effimini.__version__); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == effimini.__version__


@pytest.mark.parametrize("words", [["-m", "effimini", "--version"], ["-m", "effimini", "-h"]])
def test_the_command_runs_as_a_module_and_tells_its_version(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (
        done.stdout.strip() == f"effimini {effimini.__version__}"
        if words[-1] == "--version"
        else "Usage" in done.stdout
    )
    assert not done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_program_that_uses_the_wheel_runs_and_is_typed(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("effimini-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "venv")
    python = tmp_path / "venv/bin/python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel))
    # its dependencies come from this environment; the checkout itself is not on that path
    (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    assert run(str(python), "program.py").strip() == effimini.__version__
    where = run(str(python), "-c", "import effimini, prep; print(effimini.__file__, prep.__file__)")
    assert where.count(str(site)) == 2
    run(sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "program.py")
