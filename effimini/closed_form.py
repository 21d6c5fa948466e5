"""A ridge regression next to the network, on hashed terms of the text and on similarities between encoder features.

Input: token ids, and features of frozen encoders if there is a kernel. Output: stars. Guarantees: all blocks are fitted
together, by ridge regression on the training split with the same sample weights as the network; the strength of
regularization, the use of the first word and the fraction of the score are chosen only on the validation split, before
a refit on both; the memory of the fit is bounded by `FITTED` samples; training, prediction and export use the same
function.

Source: Cheng et al., Wide & Deep Learning for Recommender Systems, 2016, for a linear part next to a deep one. The
blocks and their scales are those with the highest PLCC in cross-validation on 2,400 films and 3,377 electronics.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, islice, product
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor, nn

from effimini.hashed_ngrams import FirstWord, HashedNgrams, HashedTerms
from effimini.kernel import Kernel
from effimini.metrics import Array, Stars, plcc
from effimini.ridge import evenly_spaced, joint_ridge
from effimini.words import Words
from prep.core.progress import bar
from prep.weights import SampleWeights, counts_of, sample_weights
from shards.stream import ShardDataset

log = logging.getLogger(__name__)

# Variance of each block's features, summed. The first word is tried with and without: where it says nothing, it harms.
SCALES = {"ngrams": (0.5,), "first_word": (0.1, 0.0), "kernel": (0.5,)}
# Weight of the kernel's inputs in squared distances: a middle and the last layer of the text encoder, the image.
# The last is that of the tabular columns: half of it of their ranks, and half of what is missing.
MIDDLE_WEIGHT, LAST_WEIGHT, IMAGE_WEIGHT, COLUMNS_WEIGHT = 1.0, 2.0, 1.0, 4.0
ALPHAS = (0.2, 0.35, 0.5, 0.8, 2.0, 5.0)  # regularization strengths to try
FRACTIONS = np.linspace(0, 1, 21, dtype=np.float32)  # fractions of the score to try
FITTED = 200_000  # training samples to fit on at most; each takes 4 bytes for each landmark, and 10 kB
_TEXTS_PER_BATCH = 256


class ClosedForm(nn.Module):
    """Predicts stars as the sum of what its blocks add to a constant.

    Args:
        ngrams: number of buckets of hashed n-grams; 0: none.
        first_words: number of buckets of first words of titles; 0: none.
        words: joins the tokens of words.
        kernel: None if there is none.

    Attributes:
        fraction: fraction of the model's score that this module contributes, 0 to 1; the network contributes the rest.
    """

    bias: Tensor
    fraction: Tensor

    def __init__(self, ngrams: int, first_words: int, words: Words, kernel: Kernel | None) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({"ngrams": HashedNgrams(ngrams)} if ngrams else {})
        if first_words:
            self.terms["first_word"] = FirstWord(first_words, words)
        self.kernel = kernel
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("fraction", torch.zeros(()))

    def forward(self, tokens: Tensor, mask: Tensor, features: Tensor, tabular: Tensor | None = None) -> Tensor:
        """Return stars, float32 [B].

        Args:
            tokens: int64 [B, T].
            mask: int64 [B, T], 1 at tokens and 0 at padding.
            features: the inputs of the kernel, [B, K]; not used without one.
            tabular: as of `Kernel.forward`.
        """
        added = [block(tokens, mask) for block in self.terms.values()]
        if self.kernel is not None:
            added.append(self.kernel(features, tabular))
        return cast(Tensor, self.bias + sum(added))


class _Samples(NamedTuple):
    """Samples to fit on."""

    texts: Callable[[], Iterator[Array]]  # reads their token ids
    labels: Stars
    weight: Stars
    features: Array | None  # the inputs of the kernel [N, K]
    tabular: Array


class _Block(NamedTuple):
    """A part of the regression."""

    features: Any  # those of the samples it is fitted on, sparse or float32 [N, F]
    predict: Callable[[ShardDataset, Array | None, Array], Array]  # what weights [F, A] add to a split [V, A]
    keep: Callable[[Array], Any]  # sets the weights [F] of the module


def fit(
    module: ClosedForm,
    train: ShardDataset,
    validation: ShardDataset,
    weights: SampleWeights,
    features: tuple[Array, Array] | None = None,
    *,
    refit: bool = False,
) -> Stars:
    """Fit `module`, and return the unclamped stars for the validation split of a fit on `train` alone, float32 [N].

    Args:
        module: its weights, bias and landmarks are set.
        train: the split to fit on. Terms are weighted by inverse document frequency.
        validation: the split on which the strength of regularization and the scales are chosen, by PLCC.
        weights: the content of data/weights.json.
        features: the encoder features for the kernel of both splits, float32 [N, K]; None without a kernel.
        refit: whether to fit the module again on both splits after the choice.
    """
    of_train, of_validation = features or (None, None)
    samples = _gather([train], [of_train], weights)
    if len(samples.labels) < len(train):
        log.info(
            "the closed form is fitted on %d of %d training samples, to save memory", len(samples.labels), len(train)
        )
    blocks = _blocks(module, samples)
    candidates = list(product(ALPHAS, product(*(SCALES[name] for name in blocks))))
    found, bias = _solve(candidates, blocks, samples)
    stars = bias + sum(
        block.predict(validation, of_validation, part) for block, part in zip(blocks.values(), found, strict=True)
    )
    scores = [plcc(column, validation.labels) for column in stars.T]
    best = int(np.argmax(scores))
    chosen, held_out = candidates[best], stars[:, best].astype(np.float32)
    used = ", ".join(name for name, scale in zip(blocks, chosen[1], strict=True) if scale)
    log.info("closed form of %s: alpha %g, validation PLCC %.4f", used, chosen[0], scores[best])
    if refit:
        del blocks, samples  # before the next ones take their memory
        samples = _gather([train, validation], [of_train, of_validation], weights)
        blocks = _blocks(module, samples)
        (found, bias), best = _solve([chosen], blocks, samples), 0
    for block, part in zip(blocks.values(), found, strict=True):
        block.keep(part[:, best])
    module.bias.fill_(float(bias[best]))
    return held_out


@torch.no_grad()
def predict(module: ClosedForm, split: ShardDataset, features: Array | None) -> Stars:
    """Return the unclamped stars of `module` for a split, float32 [N].

    Args:
        module: a fitted module.
        split: the samples.
        features: their encoder features for the kernel, float32 [N, K]; None without a kernel.
    """
    device, found, first = module.bias.device, [], 0
    for tokens, mask in _padded(split.texts(), device):
        rows = slice(first, first + len(tokens))
        inputs = np.empty((len(tokens), 0), np.float32) if features is None else features[rows]
        tensors = (torch.tensor(columns, device=device) for columns in (inputs, split.tabular[rows]))
        found.append(module(tokens, mask, *tensors).cpu().numpy())
        first = rows.stop
    return cast(Stars, np.concatenate(found))


def mix(module: ClosedForm, network: Stars, closed_form: Stars, labels: Stars) -> Stars:
    """Choose the fraction of `module` in the score by PLCC, set it, and return the mixed stars.

    Args:
        module: the module; its fraction is set.
        network: stars of the network, float32 [N].
        closed_form: stars of `module`, float32 [N].
        labels: labels of the same samples, float32 [N].
    """
    mixed = [fraction * closed_form + (1 - fraction) * network for fraction in FRACTIONS]
    best = int(np.argmax([plcc(stars, labels) for stars in mixed]))
    module.fraction.fill_(float(FRACTIONS[best]))
    return cast(Stars, mixed[best])


def _gather(splits: Sequence[ShardDataset], features: Sequence[Array | None], weights: SampleWeights) -> _Samples:
    """Return the samples of all splits, or `FITTED` evenly spaced ones if there are more."""
    ends = np.cumsum([len(split) for split in splits])
    chosen = np.zeros(ends[-1], bool)
    chosen[evenly_spaced(ends[-1], FITTED)] = True
    rows = [np.flatnonzero(part) for part in np.split(chosen, ends[:-1])]

    def join(columns: Iterable[Array]) -> Array:
        return np.concatenate([column[of_split] for column, of_split in zip(columns, rows, strict=True)])

    return _Samples(
        texts=lambda: compress(chain.from_iterable(split.texts() for split in splits), chosen),
        labels=join(split.labels for split in splits),
        weight=join(sample_weights(counts_of(split, weights), weights) for split in splits),
        features=None if features[0] is None else join(cast(Sequence[Array], features)),
        tabular=join(split.tabular for split in splits),
    )


def _blocks(module: ClosedForm, samples: _Samples) -> dict[str, _Block]:
    blocks = {name: _hashed(cast(HashedTerms, block), samples) for name, block in module.terms.items()}
    if module.kernel is not None:
        blocks["kernel"] = _similar(module.kernel, samples)
    return blocks


def _solve(
    candidates: Sequence[tuple[float, Sequence[float]]], blocks: Mapping[str, _Block], samples: _Samples
) -> tuple[list[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """Return `joint_ridge` of the blocks."""
    return joint_ridge(candidates, [block.features for block in blocks.values()], samples.labels, samples.weight)


def _hashed(module: HashedTerms, samples: _Samples) -> _Block:
    matrix = sparse.csr_array(sparse.vstack(list(_matrices(module, samples.texts()))))
    texts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    idf = (np.log((1 + matrix.shape[0]) / (1 + texts)) + 1).astype(np.float32)

    def predict(split: ShardDataset, _: Array | None, weights: Array) -> Array:
        scaled = weights * idf[:, None]
        return np.concatenate([part @ scaled for part in _matrices(module, split.texts())])

    return _Block(matrix @ sparse.diags_array(idf), predict, lambda weights: _set(module, weights * idf))


def _similar(module: Kernel, samples: _Samples) -> _Block:
    assert samples.features is not None
    module.choose_landmarks(samples.features, samples.tabular)
    found, inverse = module.map(samples.features, samples.tabular)

    def predict(split: ShardDataset, features: Array | None, weights: Array) -> Array:
        assert features is not None
        similarities = module.similarities(features, split.tabular)
        return np.concatenate([similar @ (inverse.T @ weights) for _, similar in similarities])

    return _Block(found, predict, lambda weights: _set(module, inverse.T @ weights))


@torch.no_grad()
def _set(module: HashedTerms | Kernel, weights: Array) -> None:
    module.weight.copy_(torch.from_numpy(weights))


@torch.no_grad()
def _matrices(module: HashedTerms, texts: Iterator[Array]) -> Iterator[sparse.csr_array]:
    """Yield the terms of a batch of texts, [B, buckets], float32."""
    buckets = len(module.weight)
    for tokens, mask in bar(_padded(texts, module.weight.device), "closed form: batches of texts"):
        places, size = (tensor.cpu().numpy() for tensor in module.places(tokens, mask))
        line, column = np.nonzero(size)
        yield sparse.csr_array((size[line, column], (line, places[line, column])), shape=(len(tokens), buckets))


def _padded(texts: Iterator[Array], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the tokens and the mask of a batch of texts, int64 [B, T]."""
    while ids := [torch.from_numpy(text.astype(np.int64)) for text in islice(texts, _TEXTS_PER_BATCH)]:
        tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in ids], batch_first=True)
        yield tokens.to(device), mask.to(device)
