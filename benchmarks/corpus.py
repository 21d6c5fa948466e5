"""The whole pipeline on the real films, in build/corpus, with the images served by a real HTTP server on loopback.

    make corpus

In: the folder of the corpus (EFFIMINI_CORPUS, or ../shared/corpus), params/corpus.yaml, and the two packages that carry
pretrained encoders. Out: build/corpus with data, model, metrics and report. The tree of the repository stays clean.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.encoders import main as write_encoders

BUILD = Path("build/corpus")


def command(*words: str, cwd: Path = BUILD) -> None:
    """Run a command; the environment's own commands come first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if subprocess.run(words, cwd=cwd, env=os.environ | {"PATH": path}, check=False).returncode:
        sys.exit(f"`{' '.join(words)}` failed in {cwd}")


def lay_out() -> int:
    """Copy the project's files to build/corpus as a DVC project of its own; return the port of its source."""
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if Path(name).exists() and name != "dvc.lock":
            (BUILD / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, BUILD / name)
    shutil.copyfile("params/corpus.yaml", BUILD / "params.yaml")
    command("dvc", "config", "core.no_scm", "true")
    location = YAML(typ="safe").load(BUILD / "params.yaml")["source"]["location"]
    return int(location.rsplit(":", 1)[-1])


def main() -> None:
    """Run the pipeline and print the metrics and how long it took."""
    movies = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve() / "movies"
    if not movies.is_dir():
        sys.exit(f"the films are not at {movies}; name the corpus folder in EFFIMINI_CORPUS")
    port = lay_out()
    write_encoders(BUILD / "encoders")
    serve = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(movies)]
    with (BUILD / "server.log").open("w") as log, subprocess.Popen(serve, stdout=log, stderr=log) as server:
        try:
            began = time.monotonic()
            command("dvc", "repro")
            print(f"{(time.monotonic() - began) / 60:.1f} minutes")
        finally:
            server.terminate()
    command("effimini", "results")


if __name__ == "__main__":
    main()
