"""The TF-IDF baseline counts its terms in bounded memory."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from effimini import baselines


def test_frequent_terms_are_those_of_scikit_learn_and_are_found_among_many_rare_ones() -> None:
    words = np.random.default_rng(0).zipf(1.3, (400, 30)) % 5000
    texts = [" ".join(f"w{word:04d}" for word in row) for row in words]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2).fit(texts)
    analyze = vectorizer.build_analyzer()
    assert baselines.frequent_terms(texts, analyze, 10**6) == sorted(vectorizer.vocabulary_)
    exact, bounded = (baselines.frequent_terms(iter(texts), analyze, 20, kept) for kept in (10**6, 500))
    assert len(exact) == 20
    assert len(set(exact) & set(bounded)) >= 18


class Split:
    """A split of texts whose first word tells the stars."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        good = rng.random(count) < 0.5
        noise = rng.integers(0, 300, (count, 12))
        self.texts = [
            " ".join(["fine" if g else "poor", *map("t{}".format, n)]) for g, n in zip(good, noise, strict=True)
        ]
        self.labels = np.where(good, 4.5, 2.5).astype(np.float32)
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.texts)

    def metadata(self, index: int) -> str:
        self.read.append(index)
        return self.texts[index]


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> tuple[Split, Split, Split]:
    monkeypatch.setattr(baselines, "assemble", lambda text, _: text)
    return Split(300, 1), Split(60, 2), Split(60, 3)


def test_ridge_on_many_samples_predicts_nearly_as_with_all_terms(
    splits: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.ones(300, np.float32)
    every = baselines._ridge(*splits, weight, [])
    monkeypatch.setattr(baselines, "EXACT_SAMPLES", 100)
    called = []
    real = baselines.frequent_terms
    monkeypatch.setattr(baselines, "frequent_terms", lambda *given: called.append(1) or real(*given))
    np.testing.assert_allclose(baselines._ridge(*splits, weight, []), every, atol=1e-5)
    assert called


def test_ridge_on_more_samples_than_memory_holds_uses_evenly_spaced_ones(
    splits: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation, test = splits
    monkeypatch.setattr(baselines, "TFIDF_SAMPLES", 100)
    monkeypatch.setattr(baselines, "SAMPLES_AT_ONCE", 25)
    stars = baselines._ridge(train, validation, test, np.ones(300, np.float32), [])
    assert set(train.read) == set(np.linspace(0, 299, 100).astype(int).tolist())
    assert validation.read == list(range(60))
    assert test.read == list(range(60))
    assert np.corrcoef(stars, test.labels)[0, 1] > 0.5


def test_predictions_in_chunks_are_those_at_once(
    splits: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.ones(300, np.float32)
    at_once = baselines._ridge(*splits, weight, [])
    monkeypatch.setattr(baselines, "SAMPLES_AT_ONCE", 7)
    np.testing.assert_array_equal(baselines._ridge(*splits, weight, []), at_once)
