"""The linear model on hashed n-grams: its features, its fit, and its fraction of the score."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import Ridge

from effimini import hashed_ngrams
from effimini.cost import parameters
from effimini.hashed_ngrams import HashedNgrams
from effimini.inference import open_split
from effimini.metrics import plcc
from effimini.model import EffiMini, build
from effimini.train import parameter_groups, train
from prep.core.params import Params
from prep.weights import read_weights
from shards.stream import ShardDataset
from shards.tokens import TokenizationConfig

from .conftest import replace
from .test_model import inputs


@pytest.fixture
def splits(small: Params, data: Path) -> dict[str, ShardDataset]:
    tokenization = TokenizationConfig(small.model.text.name, small.text.fields, small.text.max_tokens)
    return {
        name: open_split(data / "shards", small, name, tokenization, small.images.resolution)
        for name in ("train", "validation")
    }


def counted(ids: list[int]) -> dict[Any, float]:
    """Return the n-grams of a text and their values, without hashing."""
    apart = zip(ids, ids[2:], strict=False)
    every = {*ids, *(("pair", *two) for two in pairwise(ids)), *(("apart", *two) for two in apart)}
    return {str(term): 1 / math.sqrt(len(every)) for term in every}


def test_the_fit_equals_ridge_on_unhashed_ngrams(
    splits: dict[str, ShardDataset], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashed_ngrams, "ALPHAS", (3.0,))
    weights = read_weights(data / "weights.json")
    train_, validation = splits["train"], splits["validation"]
    found = hashed_ngrams.fit_ngrams(HashedNgrams(1 << 20), train_, validation, weights)
    vectorizer = DictVectorizer()
    known = vectorizer.fit_transform([counted(ids.tolist()) for ids in train_.texts()]).tocsc()
    texts = np.diff(known.indptr)
    rare = np.where(texts > 1, np.log((1 + len(train_)) / (1 + texts)) + 1, 0)
    weight = np.minimum(np.log1p(train_.rating_number) / weights.mean, weights.clip)
    ridge = Ridge(alpha=3.0, solver="sparse_cg", tol=1e-8).fit(known.multiply(rare).tocsr(), train_.labels, weight)
    unseen = vectorizer.transform([counted(ids.tolist()) for ids in validation.texts()]).multiply(rare)
    np.testing.assert_allclose(found, ridge.predict(unseen.tocsr()), atol=0.02)
    assert np.ptp(found) > 0.5


def test_the_module_scores_as_fitted_and_ignores_padding(splits: dict[str, ShardDataset], data: Path) -> None:
    module = HashedNgrams(1 << 16)
    found = hashed_ngrams.fit_ngrams(module, splits["train"], splits["validation"], read_weights(data / "weights.json"))
    for ids, star in zip(splits["validation"].texts(), found, strict=True):
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        mask = torch.ones_like(tokens)
        padded = torch.nn.functional.pad(tokens, (0, 5), value=7), torch.nn.functional.pad(mask, (0, 5))
        assert module(tokens, mask).item() == pytest.approx(star, abs=1e-4)
        assert module(*padded).item() == pytest.approx(star, abs=1e-4)


@pytest.mark.parametrize(("good", "share"), [("network", 0.0), ("hashed_ngrams", 1.0), ("both", 0.5)])
def test_the_fraction_is_the_one_that_correlates_best(good: str, share: float) -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 500)).astype(np.float32)
    labels = {"network": one, "hashed_ngrams": other, "both": one + other}[good]
    module = HashedNgrams(8)
    mixed = hashed_ngrams.mix(module, one, other, labels)
    assert module.fraction.item() == pytest.approx(share)
    assert plcc(mixed, labels) == pytest.approx(1)


@torch.inference_mode()
def test_ngrams_contribute_in_evaluation_mode_only(small: Params, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(replace(small, model={"hashed_ngrams": 1 << 12}))
    assert model.ngrams is not None
    model.ngrams.weight.copy_(torch.randn(1 << 12))
    model.ngrams.fraction.fill_(0.25)
    given = inputs()
    model.eval()
    network = model.score(model.features(*given))
    torch.testing.assert_close(model(*given), 0.75 * network + 0.25 * model.ngrams(*given[1:3]))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(EffiMini.from_pretrained(tmp_path / "saved")(*given), model(*given))
    counts = parameters(model)
    assert counts["ngrams"] == 1 << 12
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    model.image.eval(), model.text.eval(), model.head.eval()
    model.training = True
    assert torch.equal(model(*given), network)


@torch.inference_mode()
def test_mean_pooling_ignores_padding(small: Params) -> None:
    model = build(replace(small, model={"pooling": "mean"})).eval()
    _, ids, mask, _ = inputs()
    states = model.text(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(model.text_features(ids, mask), states.mean(dim=1))
    padded = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(mask, (0, 4))
    torch.testing.assert_close(model.text_features(*padded), states.mean(dim=1))


def test_the_head_has_its_own_learning_rate(small: Params) -> None:
    recipe = replace(small, train={"learning_rate": 0.1, "head_learning_rate": 0.3}).train
    model = build(small)
    encoders, head = parameter_groups(model, recipe)
    assert (encoders["lr"], head["lr"]) == (0.1, 0.3)
    assert {id(p) for p in head["params"]} == {id(p) for p in model.head.parameters()}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in (encoders, head) for p in group["params"]} == trained
    same = replace(small, train={"learning_rate": 0.1, "head_learning_rate": 0.0}).train
    assert [group["lr"] for group in parameter_groups(model, same)] == [0.1, 0.1]


def test_a_trained_model_contains_its_fitted_ngrams(
    small: Params, data: Path, splits: dict[str, ShardDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFIMINI_STORE", str(tmp_path / "store"))
    params = replace(
        small, model={"hashed_ngrams": 1 << 14, "pooling": "mean"}, train={"epochs": 2, "head_learning_rate": 0.01}
    )
    history = train(params, data / "shards", data / "weights.json")
    module = HashedNgrams(1 << 14)
    alone = hashed_ngrams.fit_ngrams(module, splits["train"], splits["validation"], read_weights(data / "weights.json"))
    best = EffiMini.from_pretrained(Path("models/best"))
    assert best.ngrams is not None
    assert torch.equal(best.ngrams.weight, module.weight)
    assert module.weight.count_nonzero() > 50
    assert max(epoch["validation/plcc"] for epoch in history) >= plcc(alone, splits["validation"].labels)
