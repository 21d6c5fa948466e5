"""How often an epoch reads each sample, where the categories have weights.

Input: the shards' sizes and categories, the weight of some categories, a seed. Output: for an epoch, how often it reads
each sample of a shard, and how many samples of each shard. Guarantees: with weight w, any k epochs in a row read a
sample k * w times, rounded down or up; so if k * w is whole, every sample of the category equally often. An epoch reads
w times the samples of the category, rounded down or up. A shard is computed without the others, and nothing depends on
the total number of samples.

Sample g of the n of a category has the offset o = ((g * step + shift) mod n) / n, and has been read floor(e * w + o)
times before epoch e (from 0). Step and n have no common divisor, so the offsets are 0, 1/n, ..., (n - 1)/n, and the
reads of all samples add up to floor(n * e * w) (Hermite's identity). Step / n is near the golden ratio, so that the
offsets of every run of samples, such as those of a shard, are spread over [0, 1).
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import count
from math import ceil, floor, gcd

import numpy as np
import numpy.typing as npt

from prep.core.errors import UserError

Counts = npt.NDArray[np.int64]
_GOLDEN = (5**0.5 - 1) / 2


class Mixture:
    """The weights of categories: ``mixture.reads(shard, epoch)`` returns how often the epoch reads each sample.

    Attributes:
        fewest, most: samples that an epoch reads; no epoch reads fewer or more.
    """

    def __init__(
        self, sizes: Sequence[int], categories: Sequence[str], weights: Mapping[str, float], seed: int | None
    ) -> None:
        """Place the samples of each category.

        Args:
            sizes: number of samples of each shard.
            categories: category of each shard.
            weights: of categories, above 0, taken as they are written in decimals; the others weigh 1.
            seed: another one gives the fractional parts to other samples; None: as 0.

        Raises:
            UserError: a weight is not above 0, or of a category without samples.
        """
        if unknown := [name for name in weights if name not in categories]:
            raise UserError(
                f"train.mixture names {unknown[0]}, which has no training samples here; the categories that have are "
                f"{', '.join(dict.fromkeys(categories))}"
            )
        if wrong := [name for name, weight in weights.items() if not weight > 0]:
            raise UserError(f"train.mixture.{wrong[0]} is {weights[wrong[0]]}; set it above 0")
        self._sizes, names = np.asarray(sizes, np.int64), np.asarray(categories)
        self._first = np.empty_like(self._sizes)  # position of each shard's samples in its category
        self._parts: list[tuple[_Category, npt.NDArray[np.intp]]] = []  # with their shards
        self._part_of: dict[str, _Category] = {}
        self._categories = categories
        for name in dict.fromkeys(categories):
            own = np.flatnonzero(names == name)
            ends = np.cumsum(self._sizes[own])
            self._first[own] = ends - self._sizes[own]
            self._part_of[name] = _Category(int(ends[-1]), Fraction(str(weights.get(name, 1))), seed or 0)
            self._parts.append((self._part_of[name], own))
        self.fewest, self.most = (
            sum(rounded(part.samples * part.weight) for part, _ in self._parts) for rounded in (floor, ceil)
        )

    def sizes(self, epoch: int) -> Counts:
        """Return how many samples of each shard the epoch reads, repeats counted."""
        found = np.empty_like(self._sizes)
        for part, own in self._parts:
            first = self._first[own]
            begins, ends = (part.reads_before(edge, epoch) for edge in (first, first + self._sizes[own]))
            found[own] = ends - begins
        return found

    def reads(self, shard: int, epoch: int) -> Counts:
        """Return how often the epoch reads each sample of a shard."""
        first = int(self._first[shard])
        samples = np.arange(first, first + int(self._sizes[shard]))
        return self._part_of[self._categories[shard]].reads(samples, epoch)


class _Category:
    """The samples of a category, numbered from 0 through its shards, and their weight."""

    def __init__(self, samples: int, weight: Fraction, seed: int) -> None:
        self.samples, self.weight = samples, weight
        self._step = next(step for step in count(max(1, round(_GOLDEN * samples))) if gcd(step, samples) == 1)
        self._shift = int(np.random.default_rng(seed).integers(samples)) if samples else 0

    def reads(self, samples: Counts, epoch: int) -> Counts:
        """Return how often the epoch reads each of `samples`."""
        ranks = (samples * self._step + self._shift) % self.samples
        found = np.zeros_like(samples)
        for sign, whole, start in self._edges(epoch):
            found += sign * (whole + (ranks >= start))
        return found

    def reads_before(self, samples: Counts, epoch: int) -> Counts:
        """Return how many samples the epoch reads among the first `samples` ones, for each of several numbers."""
        n, step, shift = self.samples, self._step, self._shift
        found = np.zeros_like(samples)
        for sign, whole, start in self._edges(epoch):
            # (g * step + shift - start) // n is one more where rank >= start; the rest of the sum is in both edges
            found += sign * (whole * samples + _floor_sums(samples, n, step, shift - start))
        return found

    def _edges(self, epoch: int) -> Iterator[tuple[int, int, int]]:
        """Yield, for the end and the start of an epoch: a sign, the reads of every sample, the rank with one more."""
        for sign, before in ((1, epoch + 1), (-1, epoch)):
            whole, part = divmod(before * self.weight, 1)
            yield sign, int(whole), self.samples - floor(self.samples * part)


def _floor_sums(counts: Counts, divisor: int, factor: int, offset: int) -> Counts:
    """Return the sum of floor((factor * i + offset) / divisor) over 0 <= i < n, for each n of `counts`.

    As floor_sum of the AtCoder Library: Euclid's algorithm, in O(log divisor) rounds.
    """
    found, n, offsets = np.zeros_like(counts), counts, np.full_like(counts, offset)
    while n.any():
        found = found + n * (n - 1) // 2 * (factor // divisor) + n * (offsets // divisor)
        last = n * (factor % divisor) + offsets % divisor
        n, offsets = last // divisor, last % divisor
        divisor, factor = factor % divisor, divisor
    return found
