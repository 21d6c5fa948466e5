import csv
import json
import logging
import os
import resource
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from effimini.calibration import Line
from effimini.cli import app
from effimini.export import BESIDE, TOLERANCE, Graph, export
from effimini.model import EffiMini, build
from effimini.precheck import GRAPH
from effimini.predict import predict
from prep.core.errors import UserError
from prep.core.params import Params
from tests.effimini.test_model import inputs

from .test_predict import raw_rows, row, write_csv


@pytest.fixture(scope="session")
def model(run: Path) -> Path:
    """The run's model, whose scores of the test split differ."""
    return run / "models/best"


@pytest.fixture(scope="session")
def exported(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, exported by the command line under a umask of 022."""
    out = tmp_path_factory.mktemp("exported") / "onnx"
    before = os.umask(0o022)
    done = CliRunner().invoke(app, ["export", "--model", str(model), "--output", str(out), "--json"])
    os.umask(before)
    assert done.exit_code == 0, done
    found = json.loads(done.stdout)
    assert (found["model"], found["bytes"]) == (str(out), (out / GRAPH).stat().st_size)
    assert found["difference"] <= TOLERANCE
    return out


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_real_rows_score_as_in_torch(
    run_params: Params, run: Path, model: Path, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder has no torch weights, so onnxruntime computes the scores."""
    assert sorted(path.name for path in exported.iterdir()) == sorted([GRAPH, *BESIDE])
    items = write_csv(tmp_path / "items.csv", raw_rows(run_params, run))
    predict(model, items, run / "data/pictures", tmp_path / "torch.csv")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        predict(exported, items, run / "data/pictures", tmp_path / "onnx.csv")
    assert "demo data" in caplog.text
    found, expected = lines(tmp_path / "onnx.csv"), lines(tmp_path / "torch.csv")
    assert len({line["score"] for line in expected}) > 5
    for ours, theirs in zip(found, expected, strict=True):
        assert float(ours.pop("score")) == pytest.approx(float(theirs.pop("score")), abs=0.0101)  # both are rounded
        assert ours == theirs


@torch.inference_mode()
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 24), (2, 2), (5, 3), (33, 24)])
def test_the_graph_accepts_any_batch_size_and_length(
    small: Params, model: Path, exported: Path, rows: int, tokens: int
) -> None:
    network, size = EffiMini.from_pretrained(model), small.images.resolution
    random = np.random.default_rng(rows)
    images = random.integers(0, 256, (rows, 3, size, size), np.uint8)
    ids = random.integers(0, 1000, (rows, tokens), np.int64)
    mask = (np.arange(tokens) < random.integers(1, tokens, rows, endpoint=True)[:, None]).astype(np.int64)
    graph = Graph(exported / GRAPH, size)
    for has_image in (np.arange(rows) % 2 == 0, np.zeros(rows, bool)):
        expected = network(*(torch.from_numpy(array) for array in (images, ids, mask, has_image))).numpy()
        found = graph.score(images, ids, mask, has_image)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_calibrated_stars_are_exported(small: Params, tmp_path: Path) -> None:
    network = build(small).eval()
    network.config = msgspec.structs.replace(network.config, calibration=Line(-20.0, 6.5))
    network.save_pretrained(tmp_path / "best")
    export(tmp_path / "best", tmp_path / "onnx")  # compares the two
    graph, given = Graph(tmp_path / "onnx" / GRAPH, small.images.resolution), inputs(rows=4)
    found = torch.from_numpy(graph.score(*(each.numpy() for each in given)))
    torch.testing.assert_close(found, network(*given), atol=1e-4, rtol=0)


def test_an_item_without_an_image_is_scored_from_its_text(small: Params, exported: Path) -> None:
    graph = Graph(exported / GRAPH, small.images.resolution)
    images = np.full((2, 3, small.images.resolution, small.images.resolution), 90, np.uint8)
    ids, has_image = np.full((2, 4), 7), np.array([True, False])
    found, other = (graph.score(pixels, ids, np.ones_like(ids), has_image) for pixels in (images, 255 - images))
    assert found[0] != other[0]
    assert found[1] == other[1]


def test_configuration_and_tokenizer_are_copied_from_the_model(model: Path, exported: Path) -> None:
    for name in BESIDE:
        assert (exported / name).read_bytes() == (model / name).read_bytes()


def test_all_exported_files_have_the_mode_of_new_files(exported: Path) -> None:
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in exported.iterdir()} == dict.fromkeys(
        [GRAPH, *BESIDE], oct(0o644)
    )


def test_different_scores_are_an_error_and_nothing_is_written(model: Path, tmp_path: Path) -> None:
    """Scores of millions, where float32 rounding exceeds the tolerance."""
    model = Path(shutil.copytree(model, tmp_path / "model"))
    weights = load_file(model / "model.safetensors")
    last = max(name for name in weights if name.startswith("head.") and name.endswith("weight"))
    save_file(weights | {last: weights[last] * 1e7}, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"in torch and in onnxruntime differ by \S+ stars, over the tolerance"):
        export(model, tmp_path / "out/onnx")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_export_keeps_the_old_one_and_a_rerun_gives_the_same_bytes(
    model: Path, exported: Path, tmp_path: Path
) -> None:
    """The disk is full in the middle of writing the graph."""
    out = Path(shutil.copytree(exported, tmp_path / "onnx"))
    (out / GRAPH).write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            export(model, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (out / GRAPH).read_bytes() == b"old"
    export(model, out)
    assert (out / GRAPH).read_bytes() == (exported / GRAPH).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_a_folder_that_is_not_an_export_is_not_replaced(run: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(run / "models", tmp_path / "models"))
    for out in (models, models / "best"):
        with pytest.raises(UserError, match="exists and is not an exported model"):
            export(models / "best", out)
    (models / "best" / GRAPH).write_bytes(b"")
    with pytest.raises(UserError, match="the model folder itself"):
        export(models / "best", models / "last/../best")
    assert EffiMini.from_pretrained(models / "best")


def test_a_folder_without_a_model_is_an_error(model: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run `dvc repro train`"):
        export(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        export(exported, tmp_path / "out")
    model = Path(shutil.copytree(model, tmp_path / "model"))
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer_config\.json"):
        export(model, tmp_path / "out")


def test_without_the_extra_both_commands_say_how_to_install_it(
    model: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = write_csv(tmp_path / "items.csv", [row()])
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"{name} is not installed.*`pip install effimini\[onnx\]`"):
            export(model, tmp_path / "out")
    with pytest.raises(UserError, match=r"onnxruntime is not installed.*`pip install effimini\[onnx\]`"):
        predict(exported, items, tmp_path, tmp_path / "out.csv")
    predict(model, items, tmp_path, tmp_path / "out.csv")


def other_graph() -> bytes:
    """Return a valid ONNX file that was not written by `export`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def damage(folder: Path, how: str) -> None:
    """Damage an exported folder."""
    graph, config = folder / GRAPH, folder / "config.json"
    if how == "text":
        graph.write_text("no graph")
    elif how == "empty":
        graph.write_bytes(b"")
    elif how == "cut":
        graph.write_bytes(graph.read_bytes()[:-1000])
    elif how == "other":
        graph.write_bytes(other_graph())
    elif how == "unnamed":
        model = onnx.load(graph)
        del model.metadata_props[:]
        onnx.save(model, graph)
    elif how == "size":
        config.write_text(config.read_text().replace('"size": 32', '"size": 64'))
    elif how == "config":
        config.write_text("{}")
    elif how == "no config":
        config.unlink()
    elif how == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", r"model\.onnx cannot be read as ONNX"),
        ("empty", r"model\.onnx cannot be read as ONNX"),
        ("cut", r"model\.onnx cannot be read as ONNX"),
        ("other", r"model\.onnx has inputs x and outputs y, so it was not written by `effimini export`"),
        ("unnamed", "it was not written by `effimini export`"),
        ("size", r"expects images of shape \[3, 32, 32\] but config\.json says 64 px"),
        ("config", r"config\.json is not the configuration of an exported model"),
        ("no config", r"config\.json is not the configuration of an exported model"),
        ("tokenizer", r"tokenizer\.json is not a"),
    ],
)
def test_a_damaged_export_is_an_error_and_nothing_is_written(
    exported: Path, tmp_path: Path, how: str, message: str
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "onnx"))
    damage(folder, how)
    with pytest.raises(UserError, match=message) as raised:
        predict(folder, write_csv(tmp_path / "items.csv", [row()]), tmp_path, tmp_path / "out.csv")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.csv").exists()
