"""A linear model on hashed token n-grams next to the network: it captures rare words that a small encoder blurs.

Input: token ids. Output: stars. An n-gram is a token, two adjacent tokens, or two tokens with one between them; a text
is the set of its n-grams, each weighted by 1 / sqrt(their number). Guarantees: fitted by ridge regression on the
training split with the same sample weights as the network; its regularization strength and its fraction of the score
are chosen only on the validation split; training, prediction and export use the same function.

Source: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009, for features without a vocabulary;
Cheng et al., Wide & Deep Learning for Recommender Systems, 2016, for a linear part next to a deep one.
"""

import logging
from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from effimini.metrics import Stars, plcc
from effimini.ridge import best_ridge
from prep.weights import SampleWeights, counts_of, sample_weights
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # regularization strengths of ridge to try
FRACTIONS = np.linspace(0, 1, 21, dtype=np.float32)  # fractions of the score to try
_ONE = 0x9E3779B1  # odd hash multipliers, for few collisions of ids below 2^18
_PAIR, _APART = (0x85EBCA6B, 0xC2B2AE35), (0x27D4EB2F, 0x165667B1)
_TEXTS_PER_BATCH = 256


class HashedNgrams(nn.Module):
    """Predicts stars from the hashed n-grams of a text.

    Args:
        buckets: number of hash buckets; each has a weight.

    Attributes:
        fraction: fraction of the model's score that this module contributes, 0 to 1; the network contributes the rest.
    """

    weight: Tensor
    bias: Tensor
    fraction: Tensor

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(buckets), requires_grad=False)  # fitted, not trained
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("fraction", torch.zeros(()))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return stars, float32 [B], of token ids and mask, int64 [B, T]."""
        places, size = self.places(tokens, mask)
        return self.bias + (self.weight[places] * size).sum(dim=1)

    def places(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bucket of each n-gram, int64 [B, 3T - 3], and its value, float32; 0 at padding.

        An n-gram that occurs k times in a text is listed k times, with 1 / k of its value each time.
        """
        one = tokens * _ONE
        pair = tokens[:, :-1] * _PAIR[0] + tokens[:, 1:] * _PAIR[1]
        apart = tokens[:, :-2] * _APART[0] + tokens[:, 2:] * _APART[1]
        masks = [mask, mask[:, :-1] * mask[:, 1:], mask[:, :-2] * mask[:, 2:]]
        places = [hashes % len(self.weight) for hashes in (one, pair, apart)]
        counts = torch.cat([_repetition_weights(*pair) for pair in zip(places, masks, strict=True)], dim=1)
        return torch.cat(places, dim=1), counts / counts.sum(dim=1, keepdim=True).clamp(min=1).sqrt()


def _repetition_weights(places: Tensor, mask: Tensor) -> Tensor:
    """Return 1 / (occurrences of the n-gram in the text), float32 [B, N]; 0 at padding."""
    same = (places.unsqueeze(2) == places.unsqueeze(1)) & (mask.unsqueeze(1) > 0)
    return mask.float() / same.sum(dim=2).clamp(min=1)


def fit_ngrams(ngrams: HashedNgrams, train: ShardDataset, validation: ShardDataset, weights: SampleWeights) -> Stars:
    """Fit `ngrams` by ridge, and return its unclamped stars for the validation split, float32 [N].

    Args:
        ngrams: the module; its weight and bias are set.
        train: the split to fit on. Buckets that only one text uses are ignored; the others are weighted by inverse
            document frequency.
        validation: the split on which the strength of ridge is chosen, by PLCC.
        weights: the content of data/weights.json.
    """
    train_matrix, validation_matrix = _matrix(ngrams, train), _matrix(ngrams, validation)
    weight = sample_weights(counts_of(train, weights), weights)
    texts = np.bincount(train_matrix.indices, minlength=train_matrix.shape[1])
    idf = np.where(texts > 1, np.log((1 + train_matrix.shape[0]) / (1 + texts)) + 1, 0)
    train_matrix, validation_matrix = (matrix @ sparse.diags_array(idf) for matrix in (train_matrix, validation_matrix))
    chosen, best = best_ridge(
        ALPHAS,
        train_matrix,
        train.labels,
        weight,
        lambda ridge: plcc(ridge.predict(validation_matrix), validation.labels),
    )
    log.info("hashed n-grams: alpha %g, validation PLCC %.4f", chosen.alpha, best)
    with torch.no_grad():
        ngrams.weight.copy_(torch.from_numpy(chosen.coef_ * idf))
        ngrams.bias.fill_(float(chosen.intercept_))
    return cast(Stars, chosen.predict(validation_matrix).astype(np.float32))


def mix(ngrams: HashedNgrams, network: Stars, ngram_stars: Stars, labels: Stars) -> Stars:
    """Choose the fraction of `ngrams` in the score by PLCC, set it, and return the mixed stars.

    Args:
        ngrams: the module; its fraction is set.
        network: stars of the network, float32 [N].
        ngram_stars: stars of `ngrams`, float32 [N].
        labels: labels of the same samples, float32 [N].
    """
    mixed = [fraction * ngram_stars + (1 - fraction) * network for fraction in FRACTIONS]
    best = int(np.argmax([plcc(stars, labels) for stars in mixed]))
    ngrams.fraction.fill_(float(FRACTIONS[best]))
    return cast(Stars, mixed[best])


def _matrix(ngrams: HashedNgrams, split: ShardDataset) -> sparse.csr_array:
    """Return the n-gram features of each text of a split, [N, buckets]."""
    rows, texts = [], split.texts()
    device = ngrams.weight.device
    while batch := [
        torch.from_numpy(ids.astype(np.int64)) for _, ids in zip(range(_TEXTS_PER_BATCH), texts, strict=False)
    ]:
        tokens = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in batch], batch_first=True)
        places, size = (tensor.cpu().numpy() for tensor in ngrams.places(tokens.to(device), mask.to(device)))
        line, column = np.nonzero(size)
        shape = (len(batch), len(ngrams.weight))
        rows.append(sparse.csr_array((size[line, column], (line, places[line, column])), shape=shape))
    return sparse.csr_array(sparse.vstack(rows)) if rows else sparse.csr_array((0, len(ngrams.weight)))
