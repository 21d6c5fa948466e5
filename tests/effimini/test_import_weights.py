from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from effimini.cli import app
from effimini.import_weights import import_weights
from effimini.model import EffiMini, build
from prep.core.errors import UserError
from prep.core.params import EncoderParams, Params
from tests.effimini.conftest import replace

State = OrderedDict[str, Tensor]


@pytest.fixture(scope="module")
def params(small: Params) -> Params:
    return replace(
        small,
        model={"image": EncoderParams(name="efficientnet_b0", weights="random"), "hashed_ngrams": 0},
        images={"resolution": 32, "request": 256},
    )


@pytest.fixture(scope="module")
def model(params: Params) -> EffiMini:
    torch.manual_seed(3)
    return build(params).eval()


@pytest.fixture(scope="module")
def theirs(model: EffiMini) -> State:
    """The weights of `model` with the names of a module that holds torchvision's encoder, BERT and a Sequential."""
    from torchvision.models import efficientnet_b0

    image = [f"image_encoder.{name}" for name in efficientnet_b0().state_dict() if not name.startswith("classifier")]
    state = OrderedDict(zip(image, model.image.state_dict().values(), strict=True))
    state["text_encoder.embeddings.position_ids"] = torch.arange(8)[None]  # in older versions of transformers
    state.update({f"text_encoder.{name}": tensor for name, tensor in model.text.state_dict().items()})
    state.update({f"regressor.{name}": tensor for name, tensor in model.head.state_dict().items()})
    return state


def saved(state: Any, folder: Path) -> Path:
    torch.save(state, folder / "best_model.pt")
    return folder / "best_model.pt"


@torch.inference_mode()
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model_state_dict": state, "epoch": 3}])
def test_an_imported_model_scores_like_the_one_of_its_weights(
    wrap: Callable[[State], Any], theirs: State, model: EffiMini, params: Params, tmp_path: Path
) -> None:
    import_weights(saved(wrap(theirs), tmp_path), params, tmp_path / "out")
    imported = EffiMini.from_pretrained(tmp_path / "out")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    ids = torch.randint(5, 100, (2, 7))
    batch = (images, ids, torch.ones_like(ids), torch.tensor([True, False]))
    assert torch.equal(imported(*batch), model(*batch))
    assert (imported.config.request, imported.config.quality) == (0, 0)


def swapped(state: State, one: str, other: str) -> None:
    names = list(state)
    first, second = names.index(one), names.index(other)
    names[first], names[second] = other, one
    for name in names:
        state.move_to_end(name)


TEXT = "text_encoder.encoder.layer.0.attention.self"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.popitem(), r"has \d+ tensors and the model has \d+"),
        (lambda s: s.update(more=torch.ones(1)), r"has \d+ tensors and the model has \d+"),
        (lambda s: s.update({"regressor.0.bias": torch.ones(3)}), r"regressor.0.bias has shape \(3,\), not"),
        (lambda s: s["regressor.0.bias"].fill_(torch.nan), "regressor.0.bias has values that are not finite"),
        (lambda s: s.update({"regressor.0.bias": s["regressor.0.bias"].long()}), "regressor.0.bias is torch.int64"),
        (lambda s: swapped(s, f"{TEXT}.query.weight", f"{TEXT}.key.weight"), r"\S+key.weight has another name"),
    ],
)
def test_a_tensor_that_is_not_of_the_model_is_an_error(
    change: Callable[[State], Any], message: str, theirs: State, params: Params, tmp_path: Path
) -> None:
    state = OrderedDict((name, tensor.clone()) for name, tensor in theirs.items())
    change(state)
    with pytest.raises(UserError, match=f"best_model.pt:? {message}.*; set --params"):
        import_weights(saved(state, tmp_path), params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [Hostile(), [torch.ones(1)], {"epoch": 3}, b"", b"PK\x03\x04no"])
def test_a_file_without_a_state_dict_is_an_error_and_runs_no_code(
    content: Any, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best_model.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=r"^\S+best_model.pt c.*; save it with `torch.save\(model.state_dict"):
        import_weights(path, params, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_command_reads_the_parameters_of_the_model(
    theirs: State, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effimini.cli.models.load_params", lambda path: params if path == Path("mine.yaml") else None)
    path = saved(theirs, tmp_path)
    arguments = ["import", str(path), "--output", str(tmp_path / "out"), "--params", "mine.yaml"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert EffiMini.from_pretrained(tmp_path / "out").config.image == "efficientnet_b0"


def test_an_existing_folder_and_a_missing_file_are_errors(params: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.pt does not exist"):
        import_weights(tmp_path / "none.pt", params, tmp_path / "out")
    with pytest.raises(UserError, match="exists; set --output to a new folder"):
        import_weights(Path(__file__), params, tmp_path)
