"""Change the code that decides samples, order, loss, metrics and verdicts in one place at a time, and run its tests.

Input: the committed files. Output: a table with the mutants of each module, how many of them were run, and how many of
those the tests that mirror the module kill; the lines of each survivor that `equivalents.csv` does not name. What was
killed is not run again: results stay in ``build/mutate`` until the function changes. Messages of errors are not
mutated.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/mutate"
EQUIVALENTS = Path(__file__).with_name("equivalents.csv")
PACKAGES = ("prep", "shards", "effimini", "validation")
GATES = ("validation/test_parts.py", "validation/test_validate.py")
TESTS = {
    "prep/strata.py": ("prep/test_strata.py",),
    "shards/sampler.py": ("shards/test_sampler.py",),
    "shards/mixture.py": ("shards/test_mixture.py",),
    "effimini/loss.py": ("effimini/test_loss.py",),
    "effimini/metrics.py": ("effimini/test_metrics.py",),
    "shards/skip.py": ("shards/test_skip.py",),
    "shards/loader.py": ("shards/test_loader.py",),
    "shards/steps.py": ("shards/test_steps.py",),
    "prep/sample.py": ("prep/test_sample.py", "prep/test_properties.py", "effimini/test_remove.py"),
    "validation/verdicts.py": GATES,
    "validation/weights.py": GATES,
    "validation/proportions.py": GATES,
    "validation/exclusions.py": GATES,
    "validation/links.py": GATES,
    "validation/checks.py": GATES,
}
SURVIVED = {0, 5, 33}  # exit codes of mutmut: survived, no tests; None if it was not run
SETUP = """\
[mutmut]
source_paths =
{sources}
only_mutate = {module}
also_copy =
{others}
pytest_add_cli_args =
    -pno:cacheprovider
    -pno:unraisableexception
pytest_add_cli_args_test_selection =
{tests}
do_not_mutate_patterns =
    ^\\s*f?"[^"]* [^"]* [^"]*"
    raise \\w+\\(
use_git_change_detection = False
timeout_constant = 10.0
timeout_multiplier = 3.0
"""


def main(
    modules: Annotated[list[str] | None, typer.Argument(help="Paths of modules; all by default.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Mutants at the same time.")] = 1,
    sample: Annotated[int | None, typer.Option(min=1, help="Run as many mutants of a module, drawn at random.")] = None,
    *,
    show: Annotated[bool, typer.Option(help="Run nothing; show what was found.")] = False,
) -> None:
    """Run the mutants of the modules and print the table."""
    known = {tuple(row[:3]) for row in csv.reader(EQUIVALENTS.open())}
    rows, survivors = [], []
    for module in modules or TESTS:
        if not show:
            run(module, jobs, sample)
        counts, diffs = results(module)
        equivalent = [diff for diff in diffs if (module, *diff) in known]
        survivors += [(module, *diff) for diff in diffs if diff not in equivalent]
        numbers = counts["all"], counts["run"], counts["killed"], len(equivalent), len(diffs) - len(equivalent)
        rows.append((module, *numbers))
    print("| module | mutants | run | killed | equivalent | survived | killed of those not equivalent |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, mutants, tried, killed, equal, survived in [*rows, ("all", *map(sum, list(zip(*rows, strict=True))[1:]))]:
        share = killed / max(tried - equal, 1)
        print(f"| `{name}` | {mutants} | {tried} | {killed} | {equal} | {survived} | {share:.1%} |")
    csv.writer(sys.stdout).writerows(survivors)


def run(module: str, jobs: int, sample: int | None) -> None:
    """Run the mutants of a module, or a sample of them, in its folder, but for those that were killed before."""
    folder = BUILD / Path(module).stem
    (folder / "mutants").mkdir(parents=True, exist_ok=True)  # before it is on the path of a process
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        target = folder / name
        if not (target.exists() and target.read_bytes() == (ROOT / name).read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
            for old in (name, *["mutmut-stats.json"] * name.startswith("tests/")):  # which tests run which function
                (folder / "mutants" / old).unlink(missing_ok=True)
    others = sorted({name.split("/")[0] for name in tracked.splitlines()} - {*PACKAGES})
    lists = {"sources": PACKAGES, "others": others, "tests": [f"tests/{name}" for name in TESTS[module]]}
    indented = {name: "\n".join(f"    {one}" for one in ones) for name, ones in lists.items()}
    (folder / "setup.cfg").write_text(SETUP.format(module=module, **indented))
    found = folder / f"mutants/{module}.meta"
    if found.exists():
        about = json.loads(found.read_text())
        codes = about["exit_code_by_key"]
        about["exit_code_by_key"] = {name: None if code in SURVIVED else code for name, code in codes.items()}
        found.write_text(json.dumps(about))
    # with CI, hypothesis draws the same examples each time, and sets no deadline
    environment = os.environ | {"PYTHONPATH": str(folder / "mutants"), "OMP_NUM_THREADS": "1", "CI": "1"}
    environment.pop("EFFIMINI_CORPUS", None)
    if sample:
        environment["MUTANTS"] = str(sample)
    command = [sys.executable, Path(__file__).with_name("session.py"), "run", "--max-children", str(jobs)]
    with tempfile.TemporaryDirectory() as temporary:  # pytest keeps, and then cleans, what earlier sessions left
        subprocess.run(command, cwd=folder, env=environment | {"PYTEST_DEBUG_TEMPROOT": temporary}, check=True)


def results(module: str) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Return the number of mutants of a module and of those killed, and the lines before and after of the survivors."""
    folder = BUILD / Path(module).stem
    codes = json.loads((folder / f"mutants/{module}.meta").read_text())["exit_code_by_key"]
    counts = Counter({"all": len(codes), "run": 0, "killed": 0})
    diffs = []
    for name, code in codes.items():
        counts["run"] += code is not None
        if code in SURVIVED:
            diffs.append(diff(folder, name))
        elif code is not None:  # a test failed, or it ran for too long
            counts["killed"] += 1
    return counts, diffs


def diff(folder: Path, name: str) -> tuple[str, str]:
    """Return the lines before and after of a mutant."""
    mutmut = Path(sys.executable).with_name("mutmut")
    shown = subprocess.run([mutmut, "show", name], cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = [line for line in shown.splitlines() if line[:1] in "+-" and line[:3] not in {"---", "+++"}]
    before, after = ("\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return before, after


if __name__ == "__main__":
    typer.run(main)
