import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_timm_and_transformers_import_after_the_shim_and_a_real_build_is_left_alone() -> None:
    done = run(
        "import effimini.torchvision_shim as shim\n"
        "import timm, transformers, torchvision\n"
        "from torchvision.extension import _has_ops\n"
        "declared = bool(shim._declared._op_defs)\n"
        "assert declared != _has_ops(), (declared, _has_ops())\n"
    )
    assert done.returncode == 0, done.stderr


def test_without_torchvision_nothing_is_declared() -> None:
    done = run(
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'torchvision' else real(name, *rest)\n"
        "import effimini.torchvision_shim as shim\n"
        "assert not shim._declared._op_defs\n"
    )
    assert done.returncode == 0, done.stderr
