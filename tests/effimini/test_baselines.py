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


def test_ridge_on_many_samples_predicts_nearly_as_with_all_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)

    class Split:
        def __init__(self, count: int) -> None:
            good = rng.random(count) < 0.5
            noise = rng.integers(0, 300, (count, 12))
            self.texts = [
                " ".join(["fine" if g else "poor", *map("t{}".format, n)]) for g, n in zip(good, noise, strict=True)
            ]
            self.labels = np.where(good, 4.5, 2.5).astype(np.float32)

        def __len__(self) -> int:
            return len(self.texts)

        def metadata(self, index: int) -> str:
            return self.texts[index]

    monkeypatch.setattr(baselines, "assemble", lambda text, _: text)
    train, validation, test = Split(300), Split(60), Split(60)
    weight = np.ones(300, np.float32)
    every = baselines._ridge(train, validation, test, weight, [])
    monkeypatch.setattr(baselines, "EXACT_SAMPLES", 100)
    called = []
    real = baselines.frequent_terms
    monkeypatch.setattr(baselines, "frequent_terms", lambda *given: called.append(1) or real(*given))
    np.testing.assert_allclose(baselines._ridge(train, validation, test, weight, []), every, atol=1e-5)
    assert called
