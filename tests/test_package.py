"""The package as another program uses it: installed from a wheel, without a clone, typed, with few public names."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

import effimini
from effimini.cli import app
from prep.core.params import Params, load_params
from tests.clone import ROOT
from tests.prep.hub_server import Hub
from tests.test_sharing import TINY

Done = subprocess.CompletedProcess[str]

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


INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from effimini.__main__ import main
main()
"""


def test_ctrl_c_while_modules_are_imported_ends_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "effimini: stopped\n")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("effimini download Demo_K", "Demo_Kitchen"),
        ("effimini fetch --params params/electronics.yaml El", "Electronics"),
        ("effimini fetch --params none.yaml Demo_K", ""),
        ("effimini preset cha", "challenge"),
    ],
)
def test_the_shell_completes_categories_and_presets(line: str, completed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shell = {"_EFFIMINI_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    assert CliRunner().invoke(app, env=shell, prog_name="effimini").stdout.strip() == completed


class Installed:
    """The package in an environment of its own, installed from its wheel, and an empty folder to run it in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "empty"
        self.folder.mkdir()
        self.python, self.program = (folder / "venv/bin" / name for name in ("python", "effimini"))
        self.run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT))
        (wheel,) = folder.glob("effimini-*.whl")
        self.run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
        pip = (sys.executable, "-m", "pip", "--python", str(self.python))
        self.run(*pip, "install", "-q", "--no-deps", str(wheel))
        purelib = self.run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        self.site = Path(purelib)
        # its dependencies come from this environment; the checkout itself is not on that path
        (self.site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *words: str | Path, code: int = 0, **env: str) -> Done:
        """Run a command in the empty folder; it must end with `code`."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_program_that_uses_the_wheel_runs_and_is_typed(installed: Installed) -> None:
    (installed.folder.parent / "program.py").write_text(PROGRAM)
    assert installed.run(installed.python, "../program.py").stdout.strip() == effimini.__version__
    where = installed.run(installed.python, "-c", "import effimini, prep; print(effimini.__file__, prep.__file__)")
    assert where.stdout.count(str(installed.site)) == 2
    installed.run(*(sys.executable, "-m", "mypy", "--strict", "--python-executable", installed.python, "../program.py"))


def write_params(path: Path, params: Params) -> None:
    with path.open("w") as file:
        YAML().dump(msgspec.json.decode(msgspec.json.encode(params)), file)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_alone_looks_at_shards_trains_and_evaluates_in_an_empty_folder(
    installed: Installed, tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> None:
    params = make_params(**TINY | {"model.text.name": "effimini/minilm"})
    shards, folder = tmp_path / "data/shards", installed.folder
    run_to(params, tmp_path / "data")

    def effimini(*words: str | Path, code: int = 0) -> Done:
        return installed.run(installed.program, *words, code=code, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hub"))

    with Hub({}) as hub:
        told = "there is no params.yaml, so all categories are read: Demo_Kitchen, Demo_Toys\n"
        summary = effimini("info", shards, "--json")
        assert (json.loads(summary.stdout)["made"][0]["image_size"], summary.stderr) == (32, told)
        done = effimini("lint", shards)
        assert (done.stdout, done.stderr[: len(told)]) == ("", told)
        assert effimini("lint", shards, "Demo_Toys").stderr.startswith("0 violations")
        assert effimini("card", shards).stdout.startswith("---\n")
        effimini("preview", shards, "Demo_Toys")
        assert "Demo_Toys" in (folder / "preview.html").read_text()
        assert "nothing changed" in effimini("diff", shards, shards).stdout

        for words, sentence in (
            (("train", "--shards", shards), "or create it: `effimini preset paper` there, `dvc get URL params.yaml`"),
            (("info",), "params.yaml does not exist, so no model is configured here; name shards"),
            (("preset", "papers"), "papers.yaml does not exist; the presets are best, challenge, corpus, demo"),
        ):
            done = effimini(*words, code=2)
            assert sentence in done.stderr
            assert done.stderr.count("\n") == 1

        assert "params.yaml was written; there is no dvc.yaml" in effimini("preset", "best").stderr
        assert load_params(folder / "params.yaml") == load_params(ROOT / "params/best.yaml")
        write_params(folder / "params.yaml", params)
        effimini("train", "--shards", shards)
        effimini("evaluate", "--shards", shards)
        assert json.loads((folder / "results/metrics.json").read_text())["source"] == "demo"
        model = (folder / "models/best/model.safetensors").read_bytes()
        assert "27,8" not in effimini("info").stdout  # the model of params.yaml, not the demo's
        (folder / "params.yaml").unlink()
        assert effimini("info", "--model", "models/best", "--json").stdout.startswith("{")
        assert hub.hub.asked == []

        # the model of a project: its shards match its parameters, and its weights are in a file
        write_params(tmp_path / "params.yaml", params)
        effimini("train", "--params", tmp_path / "params.yaml", "--data", tmp_path / "data")
        assert (folder / "models/best/model.safetensors").read_bytes() == model
        assert hub.hub.asked == []


def test_the_hub_is_not_asked_for_the_encoder_of_the_package(tmp_path: Path) -> None:
    code = (
        "import sys; from dataclasses import replace; from pathlib import Path; from effimini.model import build\n"
        "from prep.core.errors import UserError; from prep.core.params import load_params\n"
        "params = load_params(Path(sys.argv[1]))\n"
        "for words in sys.argv[2:]:\n"
        "    text = replace(params.model.text, **dict(zip(('name', 'weights'), words.split(), strict=True)))\n"
        "    try: build(replace(params, model=replace(params.model, text=text))); print('built')\n"
        "    except UserError as error: print(error)\n"
    )
    names = ["effimini/minilm random", "effimini/minilm pretrained", "nobody/minilm random"]
    with Hub({}) as hub:
        env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-c", code, str(ROOT / "params.yaml"), *names]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    built, pretrained, other = done.stdout.splitlines()
    assert built == "built"
    assert "effimini/minilm cannot be loaded with weights pretrained" in pretrained  # the package has no weights
    assert "nobody/minilm cannot be loaded" in other
    asked = [request.path for request in hub.hub.asked]
    assert any("nobody/minilm" in path for path in asked)
    assert not any("effimini" in path for path in asked)
