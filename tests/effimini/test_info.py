import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from effimini.cli import app
from effimini.info import info, info_table, of_folder
from effimini.model import build
from prep.core.errors import UserError
from prep.core.params import load_params

ROOT = Path(__file__).parents[2]


def test_the_committed_model_costs_what_the_paper_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # its text encoder is in the package
    params = load_params(ROOT / "params.yaml")
    with_ngrams = info(params).parameters
    assert (with_ngrams["closed_form"], with_ngrams["total"]) == (2 * 65_536, 27_837_437)
    found = info(dataclasses.replace(params, model=dataclasses.replace(params.model, hashed_ngrams=0)))
    assert found.parameters == {"image": 4_007_548, "text": 22_713_216, "head": 985_601, "total": 27_706_365}
    paper = found.inputs["paper"]
    assert paper.flops["total"] == sum(paper.flops[part] for part in ("image", "text", "head"))
    assert round(paper.flops["total"] / 1e9, 2) == 6.81
    assert (round(paper.C, 3), paper.E) == (0.097, 1.10)
    assert found.inputs["configured"].flops["total"] < paper.flops["total"]

    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(info_table(found))
    assert "27,706,365" in console.export_text()


def test_a_saved_model_costs_what_its_parameters_say(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    build(params, random=True).save_pretrained(tmp_path / "model")
    saved, configured = of_folder(tmp_path / "model"), info(params)
    assert saved.parameters == configured.parameters
    assert saved.inputs == {"configured": configured.inputs["configured"]}


def test_shards_and_a_model_at_once_are_an_error() -> None:
    with pytest.raises(UserError, match="both the shards here and the model there are named"):
        CliRunner().invoke(app, ["info", "here", "--model", "there"], catch_exceptions=False)
