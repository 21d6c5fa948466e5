"""Generated text: words drawn from a Zipf distribution over a generated vocabulary.

Input: a script (`figures.SCRIPTS`), and for each text a number and a length. Output: texts. Guarantees: a text is a
function of its number, its length and its script, the same in every process; none is copied from a real one.

A text is cut from a stream of some millions of words, which takes a slice instead of a draw per word.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.rehearsal.figures import SCRIPTS

Numbers = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

VOCABULARY, WORDS = 40_000, 2_000_000  # of the plain stream; the others have an eighth of the words
LONGEST = 30_000  # characters of a text
_ONSETS = (
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "j",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "br",
    "ch",
    "st",
    "th",
    "tr",
    "pl",
)
_VOWELS, _CODAS = "aeiou", ("", "", "n", "r", "s", "t")
_MARKS = {
    "typographic": ("\xae", "\u2122", "\u2019s", "\u2013 ", "\u2022"),
    "emoji": ("\U0001f600", "\U0001f381", "☀️", "✅", "\U0001f33f"),
    "html": ("<br>", "<b>", "</b>", "<p>", "&amp;"),
}
_ACCENTS = str.maketrans("aeioucn", "áéíöüçñ")


class Stream(NamedTuple):
    """A long text, and where its words begin."""

    text: str
    starts: npt.NDArray[np.int64]  # of words followed by LONGEST characters


def mixed(numbers: Numbers, salt: int) -> Numbers:
    """Return a hash of each number (splitmix64)."""
    with np.errstate(over="ignore"):
        z = numbers + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(numbers: Numbers, salt: int) -> Floats:
    """Return a hash of each number as a fraction in [0, 1)."""
    return (mixed(numbers, salt) >> np.uint64(11)) * 2.0**-53


@cache
def vocabulary() -> list[str]:
    """Return the words, the most frequent first; frequent words are shorter."""
    rng = np.random.default_rng(2023)
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        syllables = 1 + rng.binomial(3, min(0.75, 0.08 * np.log1p(len(words))))
        parts = [(_ONSETS[rng.integers(23)], _VOWELS[rng.integers(5)]) for _ in range(syllables)]
        words["".join(map("".join, parts)) + _CODAS[rng.integers(6)]] = None
    return list(words)


@cache
def stream(script: str) -> Stream:
    """Return the stream of a script."""
    rng = np.random.default_rng(SCRIPTS.index(script))
    count = WORDS if script == "plain" else WORDS // 8
    weights = 1 / (np.arange(VOCABULARY) + 2.7) ** 1.05  # Zipf and Mandelbrot
    words = np.array(vocabulary(), object)[np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count))]
    if script == "accented":
        words = np.array([word.translate(_ACCENTS) for word in words], object)
    elif script == "cjk":
        words = np.array(["".join(chr(0x4E00 + hash_ % 6000) for hash_ in map(ord, word)) for word in words], object)
    numeric = np.flatnonzero(rng.random(count) < 0.06)
    words[numeric] = [str(number) for number in rng.integers(1, 500, len(numeric))]
    ends = np.flatnonzero(rng.random(count) < 1 / 13)
    words[ends] = words[ends] + "."
    words[ends[:-1] + 1] = [word.capitalize() for word in words[ends[:-1] + 1]]
    commas = np.flatnonzero(rng.random(count) < 1 / 15)
    words[commas] = words[commas] + ","
    if marks := _MARKS.get(script):
        marked = np.flatnonzero(rng.random(count) < 1 / 12)
        words[marked] = words[marked] + np.array(marks, object)[rng.integers(0, len(marks), len(marked))]
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    return Stream(" ".join(words), starts[: np.searchsorted(starts, starts[-1] - LONGEST)])


def texts(numbers: Numbers, lengths: npt.NDArray[np.int64], scripts: npt.NDArray[np.int64]) -> list[str]:
    """Return a text for each number.

    Args:
        numbers: equal numbers with equal lengths and scripts give equal texts.
        lengths: characters.
        scripts: indices in `SCRIPTS`.
    """
    begin = np.empty(len(numbers), np.int64)
    streams = []
    for index, script in enumerate(SCRIPTS):
        rows = scripts == index
        streams.append(stream(script).text if rows.any() else "")
        if rows.any():
            starts = stream(script).starts
            begin[rows] = starts[(numbers[rows] % np.uint64(len(starts))).astype(np.int64)]
    ends = begin + np.minimum(lengths, LONGEST)
    return [streams[s][a:b] for s, a, b in zip(scripts.tolist(), begin.tolist(), ends.tolist(), strict=True)]
