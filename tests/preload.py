"""Libraries in C for LD_PRELOAD."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def built(source: Path, folder: Path) -> Path:
    """Return a library built from a file in C, or skip."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C compiler on the path, or this is not Linux")
    library = folder / f"{source.stem}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library
