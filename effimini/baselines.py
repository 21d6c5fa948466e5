"""Baselines that the model must beat: three without a network, and one on the features of frozen encoders.

Input: the samples of the training, validation and test splits, and the weights of the loss. Output: stars for the test
split. Guarantees: fitted on the training split with the same sample weights as the model, tuned only on the validation
split, refitted on both if the model is, deterministic.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import StandardScaler

from effimini.features import FeatureDataset
from effimini.inference import clamp
from effimini.metrics import Stars, plcc
from effimini.ridge import best_ridge, evenly_spaced
from prep.core.fields import assemble
from prep.weights import SampleWeights, counts_of, sample_weights
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

TFIDF_TERMS = 200_000  # words and word pairs
EXACT_SAMPLES = 20_000  # training samples up to which scikit-learn counts them
TFIDF_SAMPLES = 500_000  # training samples that TF-IDF + ridge is fitted on at most; each takes about 7 kB of memory
SAMPLES_AT_ONCE = 20_000  # samples whose terms are in memory to be predicted
TFIDF_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # regularization strengths of ridge to try
FEATURE_ALPHAS = (100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)  # the same, on encoder features


def baselines(
    train: ShardDataset,
    validation: ShardDataset,
    test: ShardDataset,
    weights: SampleWeights,
    fields: Sequence[str],
    *,
    refit: bool = False,
) -> dict[str, Stars]:
    """Return the clamped stars of each baseline for the samples of `test`, float32 [N].

    Args:
        train: the split that the baselines are fitted on.
        validation: the split on which the strength of ridge is chosen, by PLCC.
        test: the split to predict.
        weights: the content of data/weights.json.
        fields: the text fields of the model, in order.
        refit: whether to fit TF-IDF + ridge again on both splits after the choice, as the model is with train.refit.
    """
    weight, of_validation = (sample_weights(counts_of(split, weights), weights) for split in (train, validation))
    return {
        "constant": np.full(len(test), _mean(train.labels, weight), np.float32),
        "category mean": _category_mean(train, weight, test),
        "TF-IDF + ridge": _ridge(train, validation, test, weight, fields, of_validation if refit else None),
    }


def on_features(
    train: FeatureDataset,
    validation: FeatureDataset,
    test: FeatureDataset,
    weights: SampleWeights,
    *,
    refit: bool = False,
) -> Stars:
    """Return the clamped stars of ridge on standardized features for `test`, float32 [N]; arguments as `baselines`."""
    scaler = StandardScaler().fit(train.features)
    train_features, validation_features, test_features = (
        scaler.transform(split.features) for split in (train, validation, test)
    )
    weight, of_validation = (sample_weights(counts_of(split, weights), weights) for split in (train, validation))
    chosen, best = best_ridge(
        FEATURE_ALPHAS,
        train_features,
        train.labels,
        weight,
        lambda ridge: plcc(clamp(ridge.predict(validation_features)), validation.labels),
        (validation_features, validation.labels, of_validation) if refit else None,
    )
    log.info("frozen features + ridge: alpha %g, validation PLCC %.4f", chosen.alpha, best)
    return clamp(chosen.predict(test_features)).astype(np.float32)


def _mean(labels: Stars, weight: Stars) -> float:
    return float(np.average(labels, weights=weight if weight.any() else None))


def _category_mean(train: ShardDataset, weight: Stars, test: ShardDataset) -> Stars:
    """Predict the weighted training mean of the category; the overall mean if it has no training samples."""
    overall = _mean(train.labels, weight)
    category = np.array(train.categories)
    means = {
        name: _mean(train.labels[category == name], weight[category == name]) for name in sorted(set(train.categories))
    }
    return np.array([means.get(name, overall) for name in test.categories], np.float32)


def _ridge(
    train: ShardDataset,
    validation: ShardDataset,
    test: ShardDataset,
    weight: Stars,
    fields: Sequence[str],
    of_validation: Stars | None = None,
) -> Stars:
    """Fit ridge on TF-IDF of words and word pairs for each of `TFIDF_ALPHAS`, and use the best on `validation`.

    With the sample weights of the validation split, the best is fitted again on both splits.

    Above `TFIDF_SAMPLES`, evenly spaced training samples are used, so that memory is bounded.
    """
    train_rows, validation_rows = (evenly_spaced(len(split), TFIDF_SAMPLES) for split in (train, validation))
    if len(train_rows) < len(train):
        log.warning(
            "TF-IDF + ridge is fitted on %d of %d training samples, to save memory", len(train_rows), len(train)
        )
    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        ngram_range=(1, 2),
        min_df=2,
        max_features=TFIDF_TERMS,
        dtype=np.float32,  # two thirds of the memory of float64
    )
    if len(train_rows) > EXACT_SAMPLES:  # scikit-learn counts every pair of words before it leaves out the rare ones
        terms = frequent_terms(_texts(train, train_rows, fields), vectorizer.build_analyzer(), TFIDF_TERMS)
        vectorizer.set_params(vocabulary=terms)
    try:
        train_terms = vectorizer.fit_transform(_texts(train, train_rows, fields))
    except ValueError:  # scikit-learn raises it if the vocabulary is empty, as with very few samples
        log.warning("no word occurs in two training texts; TF-IDF + ridge falls back to the constant")
        return np.full(len(test), _mean(train.labels, weight), np.float32)
    validation_terms = vectorizer.transform(_texts(validation, validation_rows, fields))
    held_out = validation.labels[validation_rows]
    chosen, best = best_ridge(
        TFIDF_ALPHAS,
        train_terms,
        train.labels[train_rows],
        weight[train_rows],
        lambda ridge: plcc(clamp(ridge.predict(validation_terms)), held_out),
        None if of_validation is None else (validation_terms, held_out, of_validation[validation_rows]),
    )
    log.info("TF-IDF + ridge: alpha %g, validation PLCC %.4f", chosen.alpha, best)
    stars = [
        chosen.predict(vectorizer.transform(_texts(test, rows, fields)))
        for rows in np.split(np.arange(len(test)), range(SAMPLES_AT_ONCE, len(test), SAMPLES_AT_ONCE))
    ]
    return clamp(np.concatenate(stars)).astype(np.float32)


def frequent_terms(
    texts: Iterable[str], analyze: Callable[[str], list[str]], most: int, kept: int = 500_000
) -> list[str]:
    """Return the terms that occur most often, of those in two texts or more, in alphabetical order.

    Memory is bounded: when more than `kept` terms are counted, those seen least are forgotten (lossy counting). Source:
    Manku and Motwani, Approximate Frequency Counts over Data Streams, 2002. With fewer terms the counts are exact.

    Args:
        texts: the texts, read once.
        analyze: returns the terms of a text.
        most: number of terms.
        kept: number of terms that are counted at the same time.
    """
    counts: dict[str, int] = {}  # texts with the term times 2^32, plus its occurrences
    for text in texts:
        for term, count in Counter(analyze(text)).items():
            counts[term] = counts.get(term, 0) + (1 << 32) + count
        if len(counts) > kept:
            least = int(np.partition(np.fromiter(counts.values(), np.int64), kept // 2)[kept // 2])
            counts = {term: count for term, count in counts.items() if count > least}
    ranked = sorted((-(count & 0xFFFFFFFF), term) for term, count in counts.items() if count >> 32 > 1)
    return sorted(term for _, term in ranked[:most])


def _texts(split: ShardDataset, rows: Iterable[int], fields: Sequence[str]) -> Iterator[str]:
    return (assemble(split.metadata(row), fields) for row in rows)
