"""Linear models on hashed parts of a text: they capture rare words that a small encoder blurs.

Input: token ids. Output: stars above or below the mean. `HashedNgrams` knows tokens, two adjacent tokens, and two
tokens with one between them; `FirstWord` the first word of the title, often a brand. A text is the set of its terms,
each weighted by 1 / sqrt(their number). Guarantees: fitting, prediction and export use the same function.

Source: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009, for features without a vocabulary.
"""

from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor, nn

from effimini.words import Words

_ONE = 0x9E3779B1  # odd hash multipliers, for few collisions of ids below 2^18
_PAIR, _APART = (0x85EBCA6B, 0xC2B2AE35), (0x27D4EB2F, 0x165667B1)

Terms: TypeAlias = list[tuple[Tensor, Tensor]]  # by kind: hashes and mask, int64 [B, K]


class HashedTerms(nn.Module, ABC):
    """Adds up a weight for each term of a text.

    Args:
        buckets: number of hash buckets; each has a weight.
    """

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(buckets), requires_grad=False)  # fitted, not trained

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return what the terms add to the stars, float32 [B], of token ids and mask, int64 [B, T]."""
        places, size = self.places(tokens, mask)
        return (self.weight[places] * size).sum(dim=1)

    @abstractmethod
    def terms(self, tokens: Tensor, mask: Tensor) -> Terms:
        """Return the hash of each term, and 0 for those with padding, by kind of term."""

    def places(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bucket of each term, int64 [B, K], and its value, float32; 0 at padding.

        A term that occurs k times in a text is listed k times, with 1 / k of its value each time.
        """
        found = [(hashes % len(self.weight), shown) for hashes, shown in self.terms(tokens, mask)]
        counts = torch.cat([_repetition_weights(*kind) for kind in found], dim=1)
        places = torch.cat([kind[0] for kind in found], dim=1)
        return places, counts / counts.sum(dim=1, keepdim=True).clamp(min=1).sqrt()


class HashedNgrams(HashedTerms):
    """Terms are tokens, pairs of adjacent tokens, and pairs with one token between them."""

    def terms(self, tokens: Tensor, mask: Tensor) -> Terms:
        """Return the terms."""
        pairs = tokens[:, :-1] * _PAIR[0] + tokens[:, 1:] * _PAIR[1]
        apart = tokens[:, :-2] * _APART[0] + tokens[:, 2:] * _APART[1]
        masks = (mask, mask[:, :-1] * mask[:, 1:], mask[:, :-2] * mask[:, 2:])
        return list(zip((tokens * _ONE, pairs, apart), masks, strict=True))


class FirstWord(HashedTerms):
    """The term is the first word of the title.

    Args:
        buckets: number of hash buckets.
        words: joins the tokens of words.
    """

    def __init__(self, buckets: int, words: Words) -> None:
        super().__init__(buckets)
        self.words = words

    def terms(self, tokens: Tensor, mask: Tensor) -> Terms:
        """Return the term."""
        hashes, found = self.words.first_of_title(tokens, mask)
        return [(hashes * _ONE, found)]


def _repetition_weights(places: Tensor, mask: Tensor) -> Tensor:
    """Return 1 / (occurrences of the term in the text), float32 [B, K]; 0 at padding."""
    same = (places.unsqueeze(2) == places.unsqueeze(1)) & (mask.unsqueeze(1) > 0)
    return mask.float() / same.sum(dim=2).clamp(min=1)
