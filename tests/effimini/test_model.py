import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from effimini.model import WEIGHTS_FILE, EffiMini, build, save_weights
from prep.core.errors import UserError
from prep.core.params import EncoderParams, Params
from shards import tokens

from .conftest import replace


def inputs(size: int = 32, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (rows, 3, size, size), generator=random, dtype=torch.uint8)
    ids = torch.randint(5, 100, (rows, 9), generator=random)
    return images, ids, torch.ones_like(ids), torch.tensor([True] * (rows - 1) + [False])


def with_encoder(params: Params, part: str, name: str, weights: str) -> Params:
    return replace(params, model={part: EncoderParams(name=name, weights=weights)})


@torch.inference_mode()
def test_a_saved_model_gives_the_same_outputs_without_its_sources(
    small: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model = build(small).eval()
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = EffiMini.from_pretrained(tmp_path / "saved")
    assert torch.equal(model(*inputs()), again(*inputs()))
    assert again.config == model.config
    assert tokens.tokenizer_fingerprint(tokens.load_tokenizer(str(tmp_path / "saved"))) == tokens.tokenizer_fingerprint(
        model.tokenizer
    )


@pytest.fixture(params=[(0o022, 0o644), (0o027, 0o640)], ids=["022", "027"])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of a new file under the umask set during the test."""
    umask, expected = request.param
    before = os.umask(umask)
    yield expected
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}


def test_all_files_of_a_saved_model_have_the_mode_of_new_files(small: Params, tmp_path: Path, mode: int) -> None:
    build(small).eval().save_pretrained(tmp_path / "saved")
    assert WEIGHTS_FILE in modes(tmp_path / "saved")
    assert set(modes(tmp_path / "saved").values()) == {oct(mode)}


def test_weights_written_over_a_private_file_have_the_mode_of_a_new_one(tmp_path: Path, mode: int) -> None:
    (tmp_path / "one.safetensors").touch(0o600)
    save_weights(tmp_path / "one.safetensors", {"one": torch.ones(1)})
    assert modes(tmp_path) == {"one.safetensors": oct(mode)}


@torch.inference_mode()
def test_an_item_without_an_image_is_scored_from_its_text(small: Params) -> None:
    model = build(small).eval()
    images, ids, mask, _ = inputs()
    none = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(model(images, ids, mask, none), model(255 - images, ids, mask, none))
    assert not torch.equal(model(images, ids, mask, ~none), model(255 - images, ids, mask, ~none))


def test_stochastic_depth_is_that_of_the_paper(small: Params) -> None:
    from torchvision.models import efficientnet_b0

    params = replace(
        small,
        model={"image": EncoderParams(name="efficientnet_b0", weights="random"), "drop_path": 0.2},
        images={"resolution": 32},
    )
    theirs, model = efficientnet_b0(), build(params)
    theirs.classifier = torch.nn.Identity()
    names = model.image.state_dict()
    model.image.load_state_dict(dict(zip(names, theirs.state_dict().values(), strict=True)))
    rates = [block.drop_path.drop_prob for block in model.image.modules() if getattr(block, "has_skip", False)]
    assert rates == pytest.approx([0.0125 * block for block in (2, 4, 6, 7, 9, 10, 12, 13, 14)])
    images = (inputs(8, 32)[0].float() / 255 - model.mean) / model.std
    features = []
    for network in (theirs.train(), model.image.train()):
        torch.manual_seed(0)
        features.append(network(images))
    assert torch.equal(*features)
    torch.manual_seed(1)
    assert not torch.equal(features[0], model.image(images))


def test_an_encoder_without_stochastic_depth_is_an_error(small: Params) -> None:
    params = replace(small, model={"image": EncoderParams(name="vgg11", weights="random"), "drop_path": 0.1})
    with pytest.raises(UserError, match=r"^model.drop_path is 0.1 but vgg11 has no stochastic depth; set it to 0$"):
        build(params)


@torch.inference_mode()
def test_padding_does_not_change_a_score(small: Params) -> None:
    model = build(small).eval()
    images, ids, mask, has_image = inputs()
    more = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(mask, (0, 4))
    torch.testing.assert_close(model(images, ids, mask, has_image), model(images, *more, has_image))


def test_normalization_is_that_of_the_image_encoder(small: Params) -> None:
    lite = with_encoder(small, "image", "tf_efficientnet_lite0", "random")
    assert build(lite).config.mean == (0.5, 0.5, 0.5)
    b0 = with_encoder(small, "image", "efficientnet_b0", "random")
    assert build(b0).config.mean == (0.485, 0.456, 0.406)


def test_an_encoder_made_for_one_size_is_built_for_the_configured_one(small: Params) -> None:
    with torch.inference_mode():
        assert build(with_encoder(small, "image", "test_vit", "random")).eval()(*inputs()).shape == (3,)


def test_image_weights_come_from_a_file_without_the_classifier(small: Params, tmp_path: Path) -> None:
    import timm

    whole = timm.create_model("test_efficientnet", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "image.safetensors")
    model = build(with_encoder(small, "image", "test_efficientnet", str(tmp_path / "image.safetensors")))
    assert torch.equal(model.image.state_dict()["conv_stem.weight"], whole.state_dict()["conv_stem.weight"])


def text_folder(small_text: Path, out: Path, drop: str) -> Path:
    """Save a text encoder with weights, without the tensors whose name starts with `drop`."""
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.from_pretrained(small_text)).save_pretrained(out)
    tokens.load_tokenizer(str(small_text)).save(str(out / "tokenizer.json"))
    kept = {name: t for name, t in load_file(out / "model.safetensors").items() if not name.startswith(drop)}
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_a_pretrained_folder_is_loaded_even_without_the_unused_pooler(
    small: Params, small_text: Path, tmp_path: Path
) -> None:
    folder = text_folder(small_text, tmp_path / "text", drop="pooler.")
    model = build(with_encoder(small, "text", str(folder), "pretrained"))
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(model.text.state_dict()[name], load_file(folder / "model.safetensors")[name])


def test_weights_without_a_layer_are_an_error(small: Params, small_text: Path, tmp_path: Path) -> None:
    folder = text_folder(small_text, tmp_path / "text", drop="encoder.layer.1.")
    with pytest.raises(
        UserError, match=r"16 tensors of the model are missing from the weights of .*, first encoder\.layer\.1\."
    ):
        build(with_encoder(small, "text", str(folder), "pretrained"))
    with pytest.raises(UserError, match=r"16 tensors of the model are missing from .*model\.safetensors"):
        build(with_encoder(small, "text", str(small_text), str(folder / "model.safetensors")))


@pytest.mark.parametrize(
    ("part", "name", "weights", "message"),
    [
        ("image", "efficientnet_b00", "random", "did you mean efficientnet_b0"),
        ("image", "test_efficientnet", "nowhere.safetensors", "nowhere.safetensors cannot be read"),
        ("text", "no/such/folder", "random", "cannot be loaded"),
    ],
)
def test_an_encoder_that_cannot_be_loaded_is_an_error(
    small: Params, part: str, name: str, weights: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(with_encoder(small, part, name, weights))


def test_weights_of_another_shape_are_an_error(small: Params, tmp_path: Path) -> None:
    import timm

    state = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    save_file(state | {"conv_stem.weight": torch.zeros(1, 2)}, tmp_path / "image.safetensors")
    with pytest.raises(UserError, match=r"conv_stem\.weight with shape \(1, 2\)"):
        build(with_encoder(small, "image", "test_efficientnet", str(tmp_path / "image.safetensors")))


def test_too_few_positions_and_a_foreign_tokenizer_are_errors(small: Params, small_text: Path, tmp_path: Path) -> None:
    config = json.loads((small_text / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((small_text / name).read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8}))
    with pytest.raises(UserError, match="more than the 8 positions"):
        build(with_encoder(small, "text", str(tmp_path), "random"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    with pytest.raises(UserError, match="so they do not match"):
        build(with_encoder(small, "text", str(tmp_path), "random"))


def test_a_saved_model_with_a_foreign_tokenizer_is_an_error(small: Params, tmp_path: Path) -> None:
    build(small).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["another"] = 10**6  # a gap: there are no more pieces than rows
    del content["model"]["vocab"]["kettle"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the tokenizer of .*saved has 1000001 tokens .* so they do not match"):
        EffiMini.from_pretrained(tmp_path / "saved")


def test_a_folder_without_a_model_and_an_invalid_configuration_are_errors(small: Params, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a saved model"):
        EffiMini.from_pretrained(tmp_path)
    build(small).save_pretrained(tmp_path / "saved")
    config = msgspec.json.decode((tmp_path / "saved/config.json").read_bytes())
    (tmp_path / "saved/config.json").write_bytes(msgspec.json.encode(config | {"size": "large"}))
    with pytest.raises(UserError, match="size"):
        EffiMini.from_pretrained(tmp_path / "saved")
