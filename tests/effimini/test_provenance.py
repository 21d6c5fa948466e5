"""Parameters, shards, weights and models of different runs are detected where they are used together."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from msgspec.structs import asdict

from effimini import provenance
from effimini.evaluate import evaluate
from effimini.inference import open_split
from effimini.train import train
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params
from prep.weights import read_weights
from shards.shard import shard

from .conftest import CATEGORIES, replace


@pytest.fixture
def project(run: Path, tmp_path: Path) -> Path:
    """A copy of a whole run, in the working directory."""
    for name in ("data", "models"):
        shutil.copytree(run / name, tmp_path / name)
    return tmp_path


def other_shards(params: Params, project: Path, folder: Path) -> Path:
    """Make shards of the project's sample with other parameters; return their folder."""
    for table in ("sample", "images", "exclusions"):
        shutil.copytree(project / "data" / table, folder / table)
    for category in CATEGORIES:
        shard(category, params, folder)
    return folder / "shards"


def test_a_model_records_its_training_data_and_parameters(run_params: Params, run: Path) -> None:
    data = open_split(run / "data/shards", run_params, "train", None, 32)
    for name in ("best", "last"):
        training = provenance.read_training(run / "models" / name)
        assert training is not None
        assert (training.shards, training.samples, training.categories) == (data.fingerprint, len(data), CATEGORIES)
        assert training.weights == read_weights(run / "data/weights.json")
        assert training.parameters["sample"]["fraction"] == run_params.sample.fraction
        assert training.parameters["train"]["learning_rate"] == run_params.train.learning_rate
        assert "save_every_steps" not in training.parameters["train"]  # it changes no weight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": {"fraction": 0.4}}, r"Alpha was made with sample\.fraction 0\.2 and the parameters say 0\.4"),
        ({"images": {"fit": "crop"}}, r"Alpha was made with images\.fit squash and the parameters say crop"),
        ({"source": {"kind": "mirror", "location": "x"}}, r"made with source\.kind demo and the parameters say mirror"),
        ({"weights": {"clip": 3.0}}, r"weights\.json has clip 5\.0, expected 3\.0"),
    ],
)
def test_shards_or_weights_of_other_parameters_are_refused(
    run_params: Params, project: Path, changes: dict[str, dict[str, object]], message: str
) -> None:
    params = replace(run_params, **changes)
    for stage in (train, evaluate):
        with pytest.raises(UserError, match=message) as caught:
            stage(params)
        assert "run `dvc checkout`" in str(caught.value)


def test_weights_of_another_sample_are_refused(run_params: Params, project: Path) -> None:
    path = project / "data/weights.json"
    path.write_text(json.dumps(files.read_json(path) | {"samples": 81}))
    with pytest.raises(UserError, match=r"has samples 81, expected 80.*dvc repro weights"):
        train(run_params)


def test_a_model_of_other_shards_or_another_recipe_is_not_evaluated(run_params: Params, project: Path) -> None:
    with pytest.raises(UserError, match=r"trained with train\.mixture {} and the parameters say {'Alpha': 2\.0}"):
        evaluate(replace(run_params, train={"mixture": {"Alpha": 2}}))
    with pytest.raises(UserError, match=r"models/best was trained with train\.epochs 10 and the parameters say 3"):
        evaluate(replace(run_params, train={"epochs": 3}))
    params = replace(run_params, shards={"samples_per_shard": 10})
    shutil.rmtree(project / "data/shards")
    shutil.move(other_shards(params, project, project / "other"), project / "data/shards")
    with pytest.raises(
        UserError, match=r"models/best was trained on other shards than those in data/shards;.*dvc checkout"
    ):
        evaluate(params)


def test_external_shards_are_trained_on_with_their_own_weights(run_params: Params, project: Path) -> None:
    weights = read_weights(project / "data/weights.json")
    elsewhere = other_shards(replace(run_params, sample={"fraction": 0.4}), project, project / "other")
    (project / "data/weights.json").unlink()
    train(replace(run_params, train={"epochs": 1}), elsewhere, None)
    training = provenance.read_training(Path("models/best"))
    assert training is not None
    assert training.parameters["sample"]["fraction"] == 0.4
    assert asdict(training.weights) == pytest.approx(asdict(weights))


def test_the_report_states_the_parameters_of_the_model_and_not_of_params_yaml(
    run_params: Params, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = replace(run_params, sample={"fraction": 0.4, "salt": "other"}, shards={"samples_per_shard": 10})
    elsewhere = other_shards(others, project, project / "other")
    with caplog.at_level(logging.WARNING):
        evaluate(replace(run_params, sample={"fraction": 0.8}, stream={"workers": 3}), shards=elsewhere)
    assert "trained on shards made with sample.salt effimini, and these were made with other" in caplog.text
    page = Path("results/report.html").read_text()
    assert "trained on fraction 0.2 of the training items" in page
    assert ", fraction 0.4, images of 32 px" in page  # of the evaluated shards
    assert "0.8" not in [cell for cell in page.split("<td") if cell.startswith(">0.8<")]
    assert "stream.workers" not in page
    assert "validation.drift" not in page


def test_a_model_without_a_training_record_is_evaluated(run_params: Params, project: Path) -> None:
    (project / "models/best" / provenance.TRAINING_FILE).unlink()
    evaluate(run_params)
    assert "trained on fraction" not in Path("results/report.html").read_text()
    (project / "models/best" / provenance.TRAINING_FILE).write_text("{}")
    with pytest.raises(UserError, match="is not a valid training record"):
        evaluate(run_params)
