"""A linear model of the text's terms, beside the network: it keeps the rare words that a small encoder blurs.

In: token ids. Out: stars. A term is a token, two that follow one another, or two with one between them; a text is the
set of its terms, each divided by the root of their number. Guaranteed: fitted in closed form on the training split with
the same sample weights as the network; its strength and its share of the score are chosen on validation alone; the same
function in training, prediction and export.

Source: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009, for terms without a vocabulary;
Cheng et al., Wide & Deep Learning for Recommender Systems, 2016, for a linear part beside a deep one.
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

ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # strengths of ridge tried
FRACTIONS = np.linspace(0, 1, 21, dtype=np.float32)  # of the score, tried
_ONE = 0x9E3779B1  # these are odd, so that few ids below 2^18 fall together
_PAIR, _APART = (0x85EBCA6B, 0xC2B2AE35), (0x27D4EB2F, 0x165667B1)
_TEXTS_PER_BATCH = 256  # at once


class HashedNgrams(nn.Module):
    """Stars from the terms of a text.

    Args:
        buckets: of the hashed terms; each has a weight.

    Attributes:
        fraction: of the whole model's score, from 0 to 1; the network has the rest.
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
        """Return stars, float32 [B], of ids and mask int64 [B, T]."""
        places, size = self.places(tokens, mask)
        return self.bias + (self.weight[places] * size).sum(dim=1)

    def places(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bucket of each term, int64 [B, 3T - 3], and its size, float32: 0 for what is no term.

        A term that stands k times in a text stands k times here, a k-th of its size each time.
        """
        one = tokens * _ONE
        pair = tokens[:, :-1] * _PAIR[0] + tokens[:, 1:] * _PAIR[1]
        apart = tokens[:, :-2] * _APART[0] + tokens[:, 2:] * _APART[1]
        there = [mask, mask[:, :-1] * mask[:, 1:], mask[:, :-2] * mask[:, 2:]]
        places = [each % len(self.weight) for each in (one, pair, apart)]
        shares = torch.cat([_repetition_weights(*each) for each in zip(places, there, strict=True)], dim=1)
        return torch.cat(places, dim=1), shares / shares.sum(dim=1, keepdim=True).clamp(min=1).sqrt()


def _repetition_weights(places: Tensor, there: Tensor) -> Tensor:
    """Return one divided by how often a text has the term, float32 [B, N], 0 where none is."""
    same = (places.unsqueeze(2) == places.unsqueeze(1)) & (there.unsqueeze(1) > 0)
    return there.float() / same.sum(dim=2).clamp(min=1)


def fit_ngrams(ngrams: HashedNgrams, train: ShardDataset, validation: ShardDataset, weights: SampleWeights) -> Stars:
    """Fit `ngrams` by ridge, and return its stars of the validation split, float32 [N], not clamped.

    Args:
        ngrams: its weight and bias are set.
        train: what it is fitted on. A term of a single text counts nothing; the others count the more, the fewer texts
            have them (inverse document frequency).
        validation: what the strength of ridge is chosen on, by PLCC.
        weights: the content of data/weights.json.
    """
    known, unseen = _matrix(ngrams, train), _matrix(ngrams, validation)
    weight = sample_weights(counts_of(train, weights), weights)
    texts = np.bincount(known.indices, minlength=known.shape[1])
    rare = np.where(texts > 1, np.log((1 + known.shape[0]) / (1 + texts)) + 1, 0)
    known, unseen = (matrix @ sparse.diags_array(rare) for matrix in (known, unseen))
    chosen, best = best_ridge(
        ALPHAS, known, train.labels, weight, lambda ridge: plcc(ridge.predict(unseen), validation.labels)
    )
    log.info("terms: alpha %g, validation PLCC %.4f", chosen.alpha, best)
    with torch.no_grad():
        ngrams.weight.copy_(torch.from_numpy(chosen.coef_ * rare))
        ngrams.bias.fill_(float(chosen.intercept_))
    return cast(Stars, chosen.predict(unseen).astype(np.float32))


def mix(ngrams: HashedNgrams, network: Stars, ngram_stars: Stars, labels: Stars) -> Stars:
    """Choose the share of `ngrams` in the score by PLCC, set it, and return the mixed stars.

    Args:
        ngrams: its share is set.
        network: stars of the network alone, float32 [N].
        ngram_stars: stars of `ngrams`.
        labels: of the same samples.
    """
    mixed = [fraction * ngram_stars + (1 - fraction) * network for fraction in FRACTIONS]
    best = int(np.argmax([plcc(stars, labels) for stars in mixed]))
    ngrams.fraction.fill_(float(FRACTIONS[best]))
    return cast(Stars, mixed[best])


def _matrix(ngrams: HashedNgrams, split: ShardDataset) -> sparse.csr_array:
    """Return the terms of each text of a split, [N, buckets]."""
    rows, texts = [], split.texts()
    device = ngrams.weight.device
    while batch := [
        torch.from_numpy(ids.astype(np.int64)) for _, ids in zip(range(_TEXTS_PER_BATCH), texts, strict=False)
    ]:
        tokens = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in batch], batch_first=True)
        places, size = (each.cpu().numpy() for each in ngrams.places(tokens.to(device), mask.to(device)))
        line, column = np.nonzero(size)
        shape = (len(batch), len(ngrams.weight))
        rows.append(sparse.csr_array((size[line, column], (line, places[line, column])), shape=shape))
    return sparse.csr_array(sparse.vstack(rows)) if rows else sparse.csr_array((0, len(ngrams.weight)))
