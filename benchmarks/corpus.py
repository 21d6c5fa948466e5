"""Run the whole pipeline on real items in build/corpus, with the images served by an HTTP server on loopback.

    make corpus [PRESET=best]         # or: python -m benchmarks.corpus [--params params/best.yaml]
    make corpus PRESET=electronics
    make corpus PRESET=best SET=sample.split=time

Input: the folder of the corpus (EFFIMINI_CORPUS, or ../shared/corpus), the preset, whose categories say whether it is
the films or the electronics, and the two packages with pretrained encoders. Output: build/corpus with data, model,
metrics and report. Guarantees: the repository's working tree is not changed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from benchmarks.encoders import main as write_encoders
from prep.core import presets
from prep.core.params import read_yaml

BUILD = Path("build/corpus")


def command(*words: str, cwd: Path) -> None:
    """Run a command, with the virtual environment's commands first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if subprocess.run(words, cwd=cwd, env=os.environ | {"PATH": path}, check=False).returncode:
        sys.exit(f"`{' '.join(words)}` failed in {cwd}")


@contextmanager
def project(build: Path, params: CommentedMap) -> Iterator[None]:
    """Copy the project to `build` as a separate DVC project with encoders, and serve the items to it."""
    name = "electronics" if params["source"]["categories"] == ["Electronics"] else "movies"
    folder = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve() / name
    if not folder.is_dir():
        sys.exit(f"{folder} does not exist; set EFFIMINI_CORPUS to the corpus folder")
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if Path(name).exists() and name != "dvc.lock":
            (build / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, build / name)
    presets.write_yaml(params, build / "params.yaml")
    command("dvc", "config", "core.no_scm", "true", cwd=build)
    write_encoders(build / "encoders")
    command("effimini", "pipeline", cwd=build)
    port = params["source"]["location"].rsplit(":", 1)[-1]
    serve = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", str(folder)]
    with (build / "server.log").open("w") as log, subprocess.Popen(serve, stdout=log, stderr=log) as server:
        try:
            yield
        finally:
            server.terminate()


def main() -> None:
    """Run the pipeline; print its duration and the metrics."""
    parser = argparse.ArgumentParser("python -m benchmarks.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params/corpus.yaml"))
    parser.add_argument("--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="change a parameter")
    chosen = parser.parse_args()
    params = read_yaml(chosen.params)
    for name, value in (one.split("=", 1) for one in chosen.set):
        section, key = name.split(".")
        params[section][key] = YAML(typ="safe").load(value)
    with project(BUILD, params):
        began = time.monotonic()
        command("dvc", "repro", cwd=BUILD)
        print(f"{(time.monotonic() - began) / 60:.1f} minutes")
    command("effimini", "results", cwd=BUILD)


if __name__ == "__main__":
    main()
