"""Machines that lack what libraries expect: a home folder, a user's name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prep.core import files

ROOT = Path(__file__).parent.parent


NAMELESS = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]  # a user who is not in /etc/passwd


@pytest.fixture(scope="module")
def _namespaces() -> None:
    """Skip without the right to be another user."""
    if shutil.which("unshare") is None or subprocess.run([*NAMELESS, "true"], check=False).returncode:
        pytest.skip("this user may not become another one with `unshare --user`")


@pytest.mark.slow
@pytest.mark.usefixtures("_namespaces")
def test_a_user_without_a_name_and_a_home_can_run_everything(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[Demo_Toys]")
    (tmp_path / "params.yaml").write_text(text.replace("effimini/minilm", str(ROOT / "effimini/minilm")))
    names = {"HOME", "USER", "LOGNAME", "USERNAME", "EFFIMINI_STORE"}
    env = {name: value for name, value in os.environ.items() if name not in names} | {"PYTHONPATH": str(ROOT)}
    for stage in ("download Demo_Toys", "validate raw", "join Demo_Toys", "validate items", "info", "categories"):
        command = [*NAMELESS, sys.executable, "-m", "effimini.cli", *stage.split()]
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "data", "results", ".effimini"}


def test_a_home_that_exists_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    files.ensure_home()
    assert os.environ["HOME"] == str(tmp_path)
