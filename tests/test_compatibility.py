"""Files of one version, read by another: equal, or refused with a sentence that names the version that reads them."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import effimini
from effimini import checkpoint, model
from shards import manifest
from tests.clone import ROOT
from tests.two_versions import KINDS

NEXT = "99.0.0"
# What the next version changes: its own number, and the format of each kind of file, which it still reads in both.
CHANGES = {
    "pyproject.toml": ((r'^version = ".*"$', f'version = "{NEXT}"'),),
    "shards/manifest.py": (
        (r"^FORMAT = (\d+)", lambda found: f"FORMAT = {int(found[1]) + 1}"),
        (r"^_READABLE = \(", rf"_READABLE = ({manifest.FORMAT}, "),
        (r"^NEEDS: .*$", f'NEEDS: str = "{NEXT}"'),
    ),
    **{
        f"effimini/{name}.py": (
            (r"^FORMAT = (\d+)", lambda found: f"FORMAT = {int(found[1]) + 1}"),
            (r'^NEEDS = ".*"', f'NEEDS = "{NEXT}"'),
            (r"^_READABLE = \(", rf"_READABLE = ({module.FORMAT}, "),
        )
        for name, module in (("model", model), ("checkpoint", checkpoint))
    },
}


def test_a_new_format_states_the_version_that_reads_it() -> None:
    """Whoever increments a FORMAT sets NEEDS beside it, and this table."""
    stated = {"manifest": (manifest.FORMAT, manifest.NEEDS or "0.1.0")}
    stated |= {name: (module.FORMAT, module.NEEDS) for name, module in (("model", model), ("checkpoint", checkpoint))}
    assert stated == {"manifest": (5, "0.1.0"), "model": (1, "0.1.0"), "checkpoint": (1, "0.1.0")}


def installed(folder: Path, source: Path) -> Path:
    """Install the wheel of `source` in an environment of its own, and return its Python."""
    folder.mkdir()
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", "-q", "--no-deps", "-w", folder, source)
    (wheel,) = folder.glob("effimini-*.whl")
    python = folder / "venv/bin/python"
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    run(*pip, "--python", python, "install", "-q", "--no-deps", wheel)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")  # the dependencies of this environment
    return python


def run(*words: str | Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_installed_versions_read_the_files_of_each_other_or_say_which_version_does(tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    names = ("prep", "shards", "effimini", "validation", "params", "pyproject.toml", "README.md", "LICENSE")
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        newer.mkdir(exist_ok=True)
        copy(ROOT / name, newer / name)
    for name, changes in CHANGES.items():
        text = (newer / name).read_text()
        for pattern, new in changes:
            text, count = re.subn(pattern, new, text, count=1, flags=re.MULTILINE)
            assert count == 1, (name, pattern)
        (newer / name).write_text(text)
    pythons = {"now": installed(tmp_path / "now", ROOT), "next": installed(tmp_path / "next", newer)}

    def found(what: str, version: str, written_by: str) -> dict[str, str]:
        """Run `tests/two_versions.py` with a version, on the files of a version."""
        out = tmp_path / f"{what}-{version}-{written_by}.json"
        script = ROOT / "tests/two_versions.py"
        run(pythons[version], script, what, tmp_path / f"files-of-{written_by}", out)
        told: dict[str, str] = json.loads(out.read_text())
        assert Path(told.pop("from")).is_relative_to(tmp_path / version)
        assert told.pop("version") == (NEXT if version == "next" else effimini.__version__)
        return told

    now, later = (found("write", version, version) for version in pythons)
    assert now.keys() == KINDS.keys()
    assert not any(value.startswith("refused") for value in (*now.values(), *later.values()))
    assert later == now  # the same content, in other formats
    assert found("read", "next", "now") == now
    back = found("read", "now", "next")
    assert back.pop("store") == now["store"]
    for kind, message in back.items():
        expected = rf"refused: .* has format \d+ and EffiMini {re.escape(effimini.__version__)} reads [\d, ]+; "
        assert re.fullmatch(rf"{expected}install EffiMini {re.escape(NEXT)} or newer, or .*", message), (kind, message)
    assert found("read", "now", "now") == now  # a refused file of the other version has changed nothing here
