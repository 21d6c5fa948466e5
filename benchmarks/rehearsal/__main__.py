"""Rehearse the paper's whole run on one machine, with a synthetic twin of its data.

    make rehearsal                    # or: python -m benchmarks.rehearsal [--items 1520000] [--phases ...] [--resume]

Input: none, but the real rows and photos of the corpus (EFFIMINI_CORPUS) where present. The servers listen at three
ports of loopback, the first of which is REHEARSAL_PORT, or 8766. Output: in build/rehearsal the source, a project, a
JSON file for each phase, and tables. The phases: ``source`` writes the raw files; ``plan`` plans the run; ``repro``
runs the pipeline to the report; ``profile`` compares the twin with the real rows; ``kills`` runs it in a second
project, kills it three times, and compares all outputs with those of the first; ``push`` pushes to an S3 server, and a
clone pulls the shards and trains; ``fraction`` goes from 20 to 40 %; ``newest`` tests on the products that appeared
last, and writes the report beside the run before. Guarantees: the project has the paper's parameters
but for those that are printed; the hub, the image host and the S3 server are processes of their own; a phase that is
complete is not run again with --resume, and a phase that was cut off continues.
"""

import argparse
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.rehearsal import phases, report
from benchmarks.rehearsal.phases import Rehearsal
from prep.core import files, writers

BUILD = Path("build/rehearsal")
PHASES: dict[str, Callable[[Rehearsal], dict[str, object]]] = {
    "source": phases.source,
    "plan": phases.plan,
    "repro": phases.repro,
    "profile": phases.profile_twin,
    "kills": phases.kills,
    "push": phases.push,
    "fraction": phases.fraction,
    "newest": phases.newest,
}


def main() -> None:
    """Run the phases, write their results and print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.rehearsal", description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=report.ITEMS)
    parser.add_argument("--build", type=Path, default=BUILD)
    parser.add_argument("--phases", nargs="+", choices=list(PHASES), default=list(PHASES))
    parser.add_argument("--resume", action="store_true", help="keep what is complete of an earlier run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="build folders of smaller rehearsals")
    chosen = parser.parse_args()
    build = chosen.build.absolute()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if not chosen.resume:
        for name in chosen.phases:
            (build / f"{name}.json").unlink(missing_ok=True)
            for folder in phases.FOLDERS.get(name, ()):
                shutil.rmtree(build / folder, ignore_errors=True)
                (build / folder).unlink(missing_ok=True)
    rehearsal = Rehearsal(build, chosen.items, chosen.seed)
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine(), "items": chosen.items}
    for name in chosen.phases:
        path = build / f"{name}.json"
        if path.exists() and files.read_json(path)["items"] == chosen.items:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        writers.write_json(path, machine | PHASES[name](rehearsal))
    report.print_tables(build, chosen.against)


if __name__ == "__main__":
    main()
