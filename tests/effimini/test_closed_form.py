"""The closed form beside the network: its ridge regression, its kernel, its fraction of the score, and its storage."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

from effimini import closed_form, features, kernel
from effimini.closed_form import ClosedForm
from effimini.cost import flops, parameters
from effimini.export import Graph, export
from effimini.inference import open_split, predict_split
from effimini.kernel import GAMMA, Kernel
from effimini.metrics import plcc
from effimini.model import EffiMini, build
from effimini.precheck import GRAPH
from effimini.ridge import joint_ridge
from effimini.train import parameter_groups
from prep.core.errors import UserError
from prep.core.params import Params, parse_params, values_of
from prep.weights import read_weights
from shards.stream import ShardDataset
from shards.tokens import TokenizationConfig

from .conftest import replace
from .test_model import inputs
from .test_train import ONE, interrupted, trained


@pytest.fixture
def splits(small: Params, data: Path) -> dict[str, ShardDataset]:
    tokenization = TokenizationConfig(small.model.text.name, small.text.fields, small.text.max_tokens)
    return {
        name: open_split(data / "shards", small, name, tokenization, small.images.resolution)
        for name in ("train", "validation")
    }


@pytest.fixture(scope="module")
def frozen(small: Params) -> Params:
    return replace(
        small,
        model={"hashed_ngrams": 1 << 12, "kernel": 1000, "pooling": "mean"},
        train={"freeze_encoders": True, "epochs": 2, "learning_rate": 0.01},
    )


def dense(matrix: Any) -> Any:
    return np.asarray(matrix.todense() if sparse.issparse(matrix) else matrix, np.float64)


def dual(gram: Any, labels: Any, weight: Any, alpha: float) -> Any:
    """Return the training predictions of weighted kernel ridge regression with a free constant, by its equations."""
    ones = np.ones(len(labels))
    system = np.block([[gram + np.diag(alpha / weight), ones[:, None]], [ones[None], np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.append(labels, 0))
    return gram @ solution[:-1] + solution[-1]


def unit(block: Any, share: float) -> Any:
    """Return the Gram matrix of centred features, with a mean diagonal of `share`."""
    centred = dense(block) - dense(block).mean(axis=0)
    gram = centred @ centred.T
    return gram * share * len(gram) / np.trace(gram)


def test_the_joint_fit_equals_its_closed_form() -> None:
    random = np.random.default_rng(0)
    blocks = [
        sparse.random_array((80, 500), density=0.05, rng=random, format="csr").astype(np.float32),
        random.normal(3, 2, (80, 80)).astype(np.float32),
    ]
    labels, weight = random.normal(4, 1, 80).astype(np.float32), random.uniform(0.1, 3, 80).astype(np.float32)
    candidates = [(0.1, (0.6, 0.4)), (2.0, (0.6, 0.4)), (0.1, (0.0, 3.0))]
    found, bias = joint_ridge(candidates, blocks, labels, weight)
    for place, (alpha, scales) in enumerate(candidates):
        gram = sum(map(unit, blocks, scales))
        stars = bias[place] + sum(block @ part[:, place] for block, part in zip(blocks, found, strict=True))
        np.testing.assert_allclose(stars, dual(gram, labels, weight, alpha), atol=2e-3)
    assert np.std(stars) > 0.3
    assert not found[0][:, 2].any()


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_block_in_which_all_samples_are_equal_is_ignored(value: float) -> None:
    random = np.random.default_rng(0)
    constant = np.full((80, 50), value, np.float32)
    constant += value * random.normal(0, 1e-5, constant.shape).astype(np.float32)  # rounding
    labels, weight = random.normal(4, 1, 80).astype(np.float32), np.ones(80, np.float32)
    (weights,), bias = joint_ridge([(0.1, (0.5,))], [constant], labels, weight)
    assert not weights.any()
    assert bias == pytest.approx(labels.mean(), rel=1e-5)


def similar(standard: Any, rate: float) -> Any:
    return np.exp(-rate * np.square(standard[:, None] - standard[None]).sum(axis=2))


def test_all_samples_as_landmarks_give_the_exact_kernel() -> None:
    given = np.random.default_rng(0).normal(5, 3, (60, 7)).astype(np.float32)
    given[7] = given[8]  # equal samples
    module = Kernel(100, ((3, 1.0), (4, 2.0)))
    module.choose_landmarks(given)
    found, _ = module.map(given)
    standard = (given - given.mean(axis=0)) / given.std(axis=0) / np.sqrt([3] * 3 + [2] * 4)
    distances = np.square(standard[:, None] - standard[None]).sum(axis=2)
    np.testing.assert_allclose(found @ found.T, similar(standard, GAMMA / np.median(distances)), atol=1e-4)
    assert len(module.landmarks) == len(module.weight) == 60


def test_weights_of_features_become_weights_of_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_ROWS", 16)
    given = np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)
    module = Kernel(20, ((5, 1.0),))
    module.choose_landmarks(given)
    standard = (given - given.mean(axis=0)) / given.std(axis=0) / 5**0.5
    np.testing.assert_allclose(module.landmarks, standard[np.linspace(0, 89, 20).astype(int)], rtol=1e-3, atol=1e-5)
    found, inverse = module.map(given)
    assert found.shape == (90, 20)
    weights = np.random.default_rng(1).normal(size=20)
    module.weight.data = torch.from_numpy(inverse.T @ weights).float()
    np.testing.assert_allclose(module(torch.from_numpy(given)), found @ weights, atol=1e-3)


def test_the_model_scores_as_fitted_by_the_equations_of_kernel_ridge_regression(
    frozen: Params, splits: dict[str, ShardDataset], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(closed_form, "ALPHAS", (0.5,))
    monkeypatch.setattr(closed_form, "SCALES", {"ngrams": (0.5,), "first_word": (0.1,), "kernel": (0.4,)})
    monkeypatch.setattr(closed_form, "joint_ridge", lambda *args: given.extend(args) or joint_ridge(*args))
    model, train_, validation = build(frozen).eval(), splits["train"], splits["validation"]
    assert model.closed_form is not None
    inputs_of = tuple(features.of_split(model, split, ONE, frozen).kernel_inputs for split in (train_, validation))
    found = closed_form.fit(model.closed_form, train_, validation, read_weights(data / "weights.json"), inputs_of)
    ((_, scales), *_), blocks, labels, weight = given
    assert len(blocks) == 3
    expected = dual(sum(map(unit, blocks, scales)), labels, weight, 0.5)
    model.closed_form.fraction.fill_(1)
    np.testing.assert_allclose(predict_split(model, train_, ONE, frozen), expected, atol=2e-3)
    np.testing.assert_allclose(predict_split(model, validation, ONE, frozen), found, atol=1e-4)
    assert np.ptp(found) > 0.5


def test_a_refit_on_both_splits_keeps_what_was_chosen_on_validation(
    frozen: Params, splits: dict[str, ShardDataset], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(closed_form, "joint_ridge", lambda *args: given.append(args) or joint_ridge(*args))
    model, train_, validation = build(frozen).eval(), splits["train"], splits["validation"]
    assert model.closed_form is not None
    inputs_of = tuple(features.of_split(model, split, ONE, frozen).kernel_inputs for split in (train_, validation))
    arguments = (model.closed_form, train_, validation, read_weights(data / "weights.json"), inputs_of)
    before = closed_form.fit(*arguments)
    model.closed_form.fraction.fill_(1)
    np.testing.assert_allclose(predict_split(model, validation, ONE, frozen), before, atol=1e-4)
    held_out = closed_form.fit(*arguments, refit=True)
    np.testing.assert_array_equal(held_out, before)
    (candidates, *_), _, ([chosen], blocks, labels, weight) = given
    assert chosen in candidates
    assert len(labels) == len(weight) == len(train_) + len(validation) == len(model.closed_form.kernel.landmarks)
    np.testing.assert_array_equal(labels[-len(validation) :], validation.labels)
    expected = dual(sum(map(unit, blocks, chosen[1])), labels, weight, chosen[0])
    found = np.concatenate([predict_split(model, split, ONE, frozen) for split in (train_, validation)])
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_at_most_a_number_of_samples_is_fitted(
    frozen: Params, splits: dict[str, ShardDataset], data: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(closed_form, "joint_ridge", lambda *args: given.extend(args) or joint_ridge(*args))
    monkeypatch.setattr(closed_form, "FITTED", 30)
    module = ClosedForm(1 << 12, 0, None, Kernel(10, ((3, 1.0),)))
    random = np.random.default_rng(0)
    inputs_of = tuple(random.normal(size=(len(split), 3)).astype(np.float32) for split in splits.values())
    with caplog.at_level("INFO"):
        closed_form.fit(module, *splits.values(), read_weights(data / "weights.json"), inputs_of)
    assert f"fitted on 30 of {len(splits['train'])} training samples" in caplog.text
    _, blocks, labels, weight = given
    assert [block.shape for block in blocks] == [(30, 1 << 12), (30, 10)]
    rows = np.linspace(0, len(splits["train"]) - 1, 30).astype(int)
    np.testing.assert_array_equal(labels, splits["train"].labels[rows])
    assert len(weight) == 30


@pytest.mark.parametrize(("good", "share"), [("network", 0.0), ("closed_form", 1.0), ("both", 0.5)])
def test_the_fraction_is_the_one_that_correlates_best(good: str, share: float) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 500)).astype(np.float32)
    labels = {"network": one, "closed_form": other, "both": one + other}[good]
    module = ClosedForm(8, 0, None, None)
    mixed = closed_form.mix(module, one, other, labels)
    assert module.fraction.item() == pytest.approx(share)
    assert plcc(mixed, labels) == pytest.approx(1)


def randomized(params: Params) -> EffiMini:
    """Return a model whose closed form has random weights."""
    torch.manual_seed(0)
    model = build(params).eval()
    module = model.closed_form
    assert module is not None
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    module.fraction.fill_(0.25)
    if module.kernel is not None:
        module.kernel.rate.fill_(0.001)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("kernel_", [0, 50])
def test_it_contributes_in_evaluation_mode_only_and_is_saved_counted_and_exported(
    frozen: Params, tmp_path: Path, kernel_: int
) -> None:
    params = replace(frozen, model={"kernel": kernel_})
    model, given = randomized(params), inputs()
    encoded = model.features(*given)
    network = model.score(encoded)
    assert model.closed_form is not None
    expected = model.closed_form(*given[1:3], encoded[:, : model.kernel_width])
    torch.testing.assert_close(model(*given), 0.75 * network + 0.25 * expected)

    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(EffiMini.from_pretrained(tmp_path / "saved")(*given), model(*given))
    export(tmp_path / "saved", tmp_path / "onnx")
    graph = Graph(tmp_path / "onnx" / GRAPH, params.images.resolution)
    np.testing.assert_allclose(graph.score(*(each.numpy() for each in given)), model(*given), atol=1e-3)

    counts = parameters(model)
    assert counts["closed_form"] == 2 * (1 << 12) + kernel_ * (model.kernel_width + 1)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    counted = flops(model, params.images.resolution, params.text.max_tokens)
    assert counted["closed_form"] == 2 * kernel_ * model.kernel_width
    model.image.eval(), model.text.eval(), model.head.eval()
    model.training = True
    assert torch.equal(model(*given), network)


@torch.inference_mode()
def test_a_model_saved_before_first_words_and_kernels_scores_as_it_did(frozen: Params, tmp_path: Path) -> None:
    model = randomized(replace(frozen, model={"kernel": 0}))
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        "ngrams.weight": tensors["closed_form.terms.ngrams.weight"],
        "ngrams.bias": tensors["closed_form.bias"],
        "ngrams.fraction": tensors["closed_form.fraction"],
    }
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("closed_form.")}
    save_file(rest | old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = msgspec.json.decode((tmp_path / "config.json").read_bytes())
    del config["first_words"], config["kernel"]
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    given = inputs()
    places, size = model.closed_form.terms["ngrams"].places(*given[1:3])  # type: ignore[union-attr, operator]
    added = (old["ngrams.weight"][places] * size).sum(dim=1)
    expected = 0.75 * model.score(model.features(*given)) + 0.25 * (old["ngrams.bias"] + added)
    torch.testing.assert_close(EffiMini.from_pretrained(tmp_path)(*given), expected)


def test_a_kernel_without_frozen_encoders_is_one_sentence(small: Params) -> None:
    values = values_of(small, vars(small))
    values["model"]["kernel"] = 5
    with pytest.raises(
        UserError,
        match=r"^params.yaml: model.kernel is 5 and train.freeze_encoders is false, but a kernel needs frozen "
        r"encoders; set model.kernel to 0, or train.freeze_encoders to true$",
    ):
        parse_params(values, Path("params.yaml"))
    values["train"]["freeze_encoders"] = True
    assert parse_params(values, Path("params.yaml")).model.kernel == 5


@torch.inference_mode()
def test_mean_pooling_ignores_padding(frozen: Params) -> None:
    model = build(frozen).eval()
    _, ids, mask, _ = inputs()
    found = model.text(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = torch.cat([found[layer].mean(dim=1) for layer in (1, 2, 2)], dim=1)  # those of the kernel, the last
    torch.testing.assert_close(model.text_features(ids, mask), expected)
    padded = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(mask, (0, 4))
    torch.testing.assert_close(model.text_features(*padded), expected)


def test_the_head_has_its_own_learning_rate(small: Params) -> None:
    recipe = replace(small, train={"learning_rate": 0.1, "head_learning_rate": 0.3}).train
    model = build(small)
    encoders, head = parameter_groups(model, recipe)
    assert (encoders["lr"], head["lr"]) == (0.1, 0.3)
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head.parameters()}
    trained_ = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in (encoders, head) for p in group["params"]} == trained_
    same = replace(small, train={"learning_rate": 0.1, "head_learning_rate": 0.0}).train
    assert [group["lr"] for group in parameter_groups(model, same)] == [0.1, 0.1]


def test_a_trained_model_contains_its_closed_form_and_resumes(
    frozen: Params, data: Path, splits: dict[str, ShardDataset], tmp_path: Path
) -> None:
    whole = trained(frozen, data, tmp_path / "whole")
    best = EffiMini.from_pretrained(tmp_path / "whole/models/best")
    assert best.closed_form is not None
    assert best.closed_form.kernel is not None
    assert len(best.closed_form.kernel.landmarks) == len(splits["train"])  # fewer than model.kernel
    assert best.closed_form.kernel.weight.count_nonzero() == len(splits["train"])
    assert best.closed_form.terms["ngrams"].weight.count_nonzero() > 0
    interrupted(frozen, data, 3)
    assert trained(frozen, data, tmp_path / "resumed") == whole
