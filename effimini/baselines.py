"""What a model must beat: three predictions that need no network, and one from features of frozen encoders.

In: the samples of the training, validation and test splits, and the weights of the loss. Out: stars for the
splits asked. Guaranteed: fitted on the training split with the same sample weights as the model, tuned on
validation alone, deterministic.
"""

import logging
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import StandardScaler

from effimini.features import FeatureDataset
from effimini.inference import clamp
from effimini.metrics import Stars, plcc
from effimini.ridge import best_ridge
from prep.core.fields import assemble
from prep.weights import SampleWeights, counts_of, sample_weights
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

TFIDF_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # strengths of ridge tried
FEATURE_ALPHAS = (100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)  # of ridge on features


def baselines(
    train: ShardDataset,
    validation: ShardDataset,
    test: ShardDataset,
    weights: SampleWeights,
    fields: Sequence[str],
) -> dict[str, Stars]:
    """Return the stars of each baseline, clamped, float32 [N], of the samples of `test`.

    Args:
        train: what the baselines are fitted on.
        validation: what ridge's strength is chosen on, by PLCC.
        test: what is predicted.
        weights: the content of data/weights.json.
        fields: text fields, in order, as the model reads them.
    """
    weight = sample_weights(counts_of(train, weights), weights)
    return {
        "constant": np.full(len(test), _mean(train.labels, weight), np.float32),
        "category mean": _category_mean(train, weight, test),
        "TF-IDF + ridge": _ridge(train, validation, test, weight, fields),
    }


def on_features(
    train: FeatureDataset, validation: FeatureDataset, test: FeatureDataset, weights: SampleWeights
) -> Stars:
    """Return the stars of ridge on standardised features, clamped, float32 [N], for `test`; else as `baselines`."""
    scaler = StandardScaler().fit(train.features)
    known, unseen, asked = (scaler.transform(split.features) for split in (train, validation, test))
    chosen, best = best_ridge(
        FEATURE_ALPHAS,
        known,
        train.labels,
        sample_weights(counts_of(train, weights), weights),
        lambda ridge: plcc(clamp(ridge.predict(unseen)), validation.labels),
    )
    log.info("frozen features + ridge: alpha %g, validation PLCC %.4f", chosen.alpha, best)
    return clamp(chosen.predict(asked)).astype(np.float32)


def _mean(labels: Stars, weight: Stars) -> float:
    return float(np.average(labels, weights=weight if weight.any() else None))


def _category_mean(train: ShardDataset, weight: Stars, test: ShardDataset) -> Stars:
    """Return each category's weighted training mean; the mean of all where a category has no training sample."""
    everywhere = _mean(train.labels, weight)
    of = np.array(train.categories)
    means = {name: _mean(train.labels[of == name], weight[of == name]) for name in sorted(set(train.categories))}
    return np.array([means.get(name, everywhere) for name in test.categories], np.float32)


def _ridge(
    train: ShardDataset, validation: ShardDataset, test: ShardDataset, weight: Stars, fields: Sequence[str]
) -> Stars:
    """Fit ridge on TF-IDF of words and word pairs, for each of `TFIDF_ALPHAS`, and keep the best on `validation`."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, max_features=200_000)
    try:
        known = vectorizer.fit_transform(_split_texts(train, fields))
    except ValueError:  # scikit-learn's word for a vocabulary without a term, as of very few samples
        log.warning("no term stands in two training texts; TF-IDF + ridge falls back to the constant")
        return np.full(len(test), _mean(train.labels, weight), np.float32)
    unseen = vectorizer.transform(_split_texts(validation, fields))
    chosen, best = best_ridge(
        TFIDF_ALPHAS, known, train.labels, weight, lambda ridge: plcc(clamp(ridge.predict(unseen)), validation.labels)
    )
    log.info("TF-IDF + ridge: alpha %g, validation PLCC %.4f", chosen.alpha, best)
    return clamp(chosen.predict(vectorizer.transform(_split_texts(test, fields)))).astype(np.float32)


def _split_texts(split: ShardDataset, fields: Sequence[str]) -> list[str]:
    return [assemble(split.metadata(i), fields) for i in range(len(split))]
