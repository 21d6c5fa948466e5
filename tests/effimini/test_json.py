"""With --json, a command prints one JSON document on stdout and nothing else."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import typer.main
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from effimini.cli import app
from effimini.import_weights import _OURS
from effimini.model import EffiMini
from effimini.report import read_evaluation
from prep.core.errors import UserError
from prep.core.params import Params
from shards import hub

ROOT = Path(__file__).parents[2]
MODEL = "models/best"
REPORT = {"stage", "tables"}
# Commands in an order in which each finds its input, and keys of their results, or of each element of a list.
COMMANDS: dict[str, set[str]] = {
    "categories": {"kind", "chosen", "categories"},
    "download Demo_Toys": REPORT | {"category"},
    "join Demo_Toys": REPORT | {"category"},
    "groups": REPORT,
    "sample Demo_Toys": REPORT | {"category", "largest_deviation"},
    "fetch Demo_Toys": REPORT | {"category"},
    "decontaminate": REPORT | {"category"},
    "shard Demo_Toys": REPORT | {"category"},
    "weights": {"count", "mean", "clip", "samples"},
    "train": {"model", "best_epoch", "validation_plcc", "steps", "epochs"},
    "evaluate": {"source", "samples", "test", "validation"},
    "results": {"source", "samples", "test", "validation"},
    "validate items": {"table", "passed", "page", "verdicts"},
    "accept": {"output"},
    "batch --step 1": {"epoch", "step", "ids"},
    "where {item}": {"id", "tar", "epoch", "step"},
    f"predict --model {MODEL} --input items.csv --images . --output scores.csv": {"output", "items", "image_faults"},
    f"embed --model {MODEL} --shards data/shards --output test.parquet": {"output", "items", "without_image"},
    "import weights.pt --output imported --params params.yaml": {"model", "parameters"},
    "info data/shards": {"location", "total", "splits"},
    "lint": {"violations", "shards", "samples"},
    "preview": {"output"},
    "publish team/products --without-content": {"repository", "url", "commit"},
    "diff data/shards data/shards": {"old", "new"},
    "compare . .": {"runs", "shared", "difference"},
    "report": {"output"},
    "gc": {"store", "entries", "freed_bytes"},
    "remove {item}": {"found", "added", "same_product", "next"},
    "remove --verify {item}": {"items", "files"},
}
# The others that have it, which take long, and the files whose tests run them with it.
ELSEWHERE = {
    "curve": "tests/effimini/test_curve.py",
    "export": "tests/effimini/test_export.py",
    "inspect": "tests/prep/catalogue/test_inspect.py",
    "plan": "tests/effimini/test_plan.py",
}
WITHOUT = {
    "card": "prints Markdown",
    "pipeline": "writes one file, of a fixed name, and has nothing to add",
    "preset": "writes one file, of a fixed name, and has nothing to add",
    "serve": "runs until it is stopped",
}


def run(command: str) -> Result:
    return CliRunner().invoke(app, [*command.split(), "--json"])


@pytest.fixture(scope="module")
def project(
    make_params: Callable[..., Params], small_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Result]]:
    """A small project in which `COMMANDS` ran one after another, and what each ended with."""
    params = make_params(
        **{
            "source.categories": ["Demo_Toys"],
            "model.image.name": "test_efficientnet",
            "model.text.name": str(small_text),
            "model.hashed_ngrams": 256,
            "train.epochs": 1,
            "sample.fraction": 1.0,
            "evaluate.bootstrap": 100,
        }
    )
    folder = tmp_path_factory.mktemp("project")
    found: dict[str, Result] = {}
    item = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EFFIMINI_STORE", str(folder / "store"))
        patch.setattr(hub, "create", lambda *_, **__: date(2026, 1, 1))
        patch.setattr(hub, "upload", lambda *_: "0123abc")
        with Path("params.yaml").open("w") as file:
            YAML().dump(msgspec.to_builtins(params), file)
        rows = ("A,Toys,Blue car,,,none.jpg", "B,Toys,Red car,,,")
        Path("items.csv").write_text(
            "\n".join(["parent_asin,main_category,title,features,description,image_paths", *rows])
        )
        for command in COMMANDS:
            if command.startswith("import"):
                weights = EffiMini.from_pretrained(MODEL).state_dict()
                torch.save({name: tensor for name, tensor in weights.items() if name not in _OURS}, "weights.pt")
            found[command] = run(command.format(item=item))
            if command.startswith("batch"):
                item = json.loads(found[command].stdout)["ids"][0].partition("/")[2]
    return folder, found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_prints_one_document(project: tuple[Path, dict[str, Result]], command: str) -> None:
    done = project[1][command]
    assert done.exit_code == (1 if "--verify" in command else 0), done.exception
    found: Any = json.loads(done.stdout, parse_constant=pytest.fail)  # no NaN, which is not JSON
    for one in found if isinstance(found, list) else [found]:
        assert one.keys() >= COMMANDS[command]


def test_results_say_what_was_made(project: tuple[Path, dict[str, Result]]) -> None:
    folder, done = project
    found = {command.split()[0]: json.loads(result.stdout) for command, result in done.items()}
    assert found["evaluate"] == found["results"]
    assert read_evaluation(folder / "results/evaluation.json").samples == found["results"]["samples"]
    assert found["train"]["epochs"][0]["validation/plcc"] == found["train"]["validation_plcc"]
    assert (found["predict"]["items"], found["predict"]["without_image"]) == (2, 2)
    assert found["predict"]["image_faults"] == [{"item_id": "A", "fault": "none.jpg: does not exist"}]
    assert {verdict["level"] for verdict in found["validate"][0]["verdicts"]} <= {"pass", "warn"}
    assert found["publish"]["url"].endswith("/datasets/team/products/tree/main")
    removed = json.loads(done["remove {item}"].stdout)
    assert (len(removed["found"]), removed["added"]) == (1, 1)
    assert removed["next"][-1].endswith(removed["found"][0])


def test_a_table_that_fails_is_printed_with_its_verdicts(
    project: tuple[Path, dict[str, Result]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project[0])
    (project[0] / "data/items/Demo_Toys/items-001.parquet").unlink()
    done = run("validate items")
    assert isinstance(done.exception, UserError)
    (found,) = json.loads(done.stdout)
    assert (found["table"], found["passed"]) == ("items", False)
    failed = {verdict["expectation"]: verdict for verdict in found["verdicts"] if verdict["level"] == "fail"}
    assert failed["exactly the files that the stage writes"]["examples"] == ["items-001.parquet (missing)"]


def test_every_command_that_reports_something_has_json() -> None:
    group: Any = typer.main.get_command(app)
    with_json = {name for name, one in group.commands.items() if any("--json" in given.opts for given in one.params)}
    assert with_json == {command.split()[0] for command in COMMANDS} | ELSEWHERE.keys()
    assert group.commands.keys() - with_json == WITHOUT.keys()
    for name, file in ELSEWHERE.items():
        text = (ROOT / file).read_text()
        assert f'"{name}"' in text
        assert '"--json"' in text
