"""Near-duplicate titles: items that are variants of one product, such as another colour, size or model number.

Input: titles and stores of items.
Output: signatures, and for each item the position of one near duplicate among the items of an index.
Guarantees: pure functions of titles and stores, the same on every machine. Whether an item has a near duplicate does
not depend on the order of rows. An item is compared with at most (`BANDS` + 1) * `MAX_COMPARED` others, so time is
linear in rows, whatever the titles.

A title is the sequence of its distinct words without variant words: words with a digit, units, counts, sizes, colours.
Words that may name a variant (two letters, before a colour, in parentheses at the end) are *optional*, all others are
*required*. Two titles are near duplicates if

- their stores are equal; if one has none, its first required word is the first word of the other's store; if both have
  none, their first required words are equal;
- they name the same years in parentheses and numbers of parts, volumes or seasons: another year is another film;
- they say enough, since "Rocky 2" and "Rocky 3" do not: each has at least `MIN_REQUIRED` required words, and one of
  them at least `MIN_TELLING` with those variant words that are no plain numbers;
- only one of them has required words that the other lacks, at most one for `COMMON_PER_EXTRA` in common. If the other
  is cut ("..."), words after the last common one do not count if `MIN_TELLING` are in common.

Candidates come from MinHash (Broder, "On the resemblance and containment of documents", 1997) in bands (Indyk and
Motwani, "Approximate nearest neighbors", 1998): titles that agree in `ROWS` minima of a band are compared. The minima
are over the first `HEAD` required words, because the ends of titles are cut. With Jaccard similarity s two titles share
a band with probability 1 - (1 - s ** ROWS) ** BANDS: 0.998 for 9 of 11 words, 0.93 for 7 of 10. One more band is the
set of all required words. Python's MinHash libraries keep a bucket as a list without a limit; here a bucket is a slice
of a sorted array, from which `MAX_COMPARED` titles are taken.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.core.hashes import hashes
from prep.core.text import normalized

FORMAT = 1  # increment it when a signature or the choice of a near duplicate changes for the same titles
MIN_REQUIRED = 3  # required words of a title, all of them in common
MIN_TELLING = 5  # required words and variant words other than plain numbers; required words in common with a cut title
COMMON_PER_EXTRA = 10  # required words in common for each that only one of two near duplicates has
HEAD = 10  # required words, from the first, over which minima are taken
BANDS, ROWS = 10, 4
MAX_COMPARED = 16  # titles of a band with which a title is compared; of more, those with the lowest content hash
MAX_WORDS = 64  # words of a title; a longer one counts as cut
MAX_IN_PARENTHESES = 6  # words in parentheses at the end of a title that name a variant

# Words that name a variant, and words that a number of a part follows; the only words of a language in this module.
COLOURS = """black white red blue green grey gray silver gold golden pink purple yellow orange brown beige navy violet
maroon cyan turquoise teal ivory cream charcoal lavender magenta burgundy bronze copper transparent clear multi
multicolor multicolour schwarz weiß weiss rot blau grün grau silber gelb rosa braun noir blanc rouge bleu vert gris
argent jaune negro blanco rojo azul verde plata amarillo nero bianco rosso giallo preto branco"""
UNITS = """mm cm m km mtr meter meters metre metres ft feet foot in inch inches yard yards kb mb gb tb mah w watt watts
v volt volts amp amps hz mhz ghz mg mcg g gm gram grams kg ml l liter liters litre litres oz ounce ounces fl lb lbs
pound pounds iu pack packs pc pcs piece pieces count counts ct set sets box boxes pair pairs unit units size stück
stücke pièces piezas unidades pz"""
SIZES = "xs s xl xxl xxxl small medium large mini pro plus max ultra lite prime"
SERIALS = "part vol volume season episode chapter teil staffel saison tome temporada"

_COLOURS, _SERIALS = frozenset(COLOURS.split()), frozenset(SERIALS.split())
_VARIANTS = frozenset([*COLOURS.split(), *UNITS.split(), *SIZES.split()])

_WORD = re.compile(r"[^\W_]+")
_YEAR = re.compile(r"\(((?:19|20)\d\d)\)")
_NO_WORD = re.compile(r"[\W_]*+")
_PARENTHESES = re.compile(r"(?:[(\[][^()\[\]]*+[)\]]\s*+)+")

SIGNATURES = pa.schema(
    [
        ("key", pa.uint64()),  # hash of the first word of the store or title, and of the years and numbers of parts
        ("store", pa.uint64()),  # hash of the store, 0 for none
        ("cut", pa.bool_()),
        ("telling", pa.bool_()),  # whether the title has MIN_TELLING words
        ("words", pa.list_(pa.uint32())),  # hashes of the distinct words in order, odd if optional; [] if too few
    ]
)

_CHUNK = 1 << 12  # titles, or pairs of titles, that are handled at once
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of SplitMix64

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def signatures(titles: Sequence[str], stores: Sequence[str]) -> pa.Table:
    """Return what is compared of each title, in the order of `titles`, with the schema `SIGNATURES`.

    Args:
        titles: clean titles.
        stores: the store of each, "" for none.
    """
    vocabulary: dict[str, int] = {}
    numbers, optional, lengths = array("q"), array("b"), array("q")
    keys, names, cut, telling = [], [], [], []
    for title, store in zip(titles, stores, strict=True):
        parsed = _parse(title)
        store_words = _WORD.findall(_folded(store))
        if parsed.comparable:
            numbers.extend(vocabulary.setdefault(word, len(vocabulary)) for word in parsed.words)
            optional.extend(parsed.optional)
        lengths.append(len(parsed.words) if parsed.comparable else 0)
        first = next((w for w, free in zip(parsed.words, parsed.optional, strict=True) if not free), "")
        keys.append("\x1f".join([*(store_words or [first])[:1], *parsed.edition]))
        names.append("".join(store_words))
        cut.append(parsed.cut)
        telling.append(parsed.telling)
    of_words = (hashes("effimini/title-word", list(vocabulary)) >> np.uint64(33)).astype(np.uint32) << np.uint32(1)
    flat = of_words[np.array(numbers, np.int64)] | np.array(optional, np.uint32)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int32)
    columns = [
        pa.array(hashes("effimini/title-key", keys)),
        pa.array(np.where([bool(name) for name in names], hashes("effimini/title-store", names), np.uint64(0))),
        pa.array(cut, pa.bool_()),
        pa.array(telling, pa.bool_()),
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
    ]
    return pa.table([column.cast(field.type) for column, field in zip(columns, SIGNATURES, strict=True)], SIGNATURES)


class TitleIndex:
    """Finds near duplicates among the titles that it was made of, in about 250 bytes of memory per title.

    Args:
        parts: signatures; titles are numbered over all of them, from 0.
    """

    def __init__(self, parts: Iterable[pa.Table]) -> None:
        table = pa.concat_tables([SIGNATURES.empty_table(), *parts])
        titles = _Titles.of(table)
        comparable = np.flatnonzero(np.diff(titles.offsets))
        # Equal signatures are compared once. Those left are in the order of their content, not of their rows.
        _, first = np.unique(_by_chunk(_content, titles, comparable), return_index=True)
        self._positions: Positions = comparable[first]
        self._titles = _Titles.of(table.take(pa.array(self._positions)))
        everything = np.arange(len(first))
        self._masks = _by_chunk(_masks, self._titles, everything)
        self._bands = _by_chunk(_bands, self._titles, everything)
        self._order = np.argsort(self._bands, axis=1, kind="stable").astype(np.int32)
        for band, order in zip(self._bands, self._order, strict=True):
            band[:] = band[order]

    def search(self, table: pa.Table) -> Positions:
        """Return the number of one near duplicate of each title of `table`, -1 for none.

        Of several it is one with the same required words if there is any; then the one with the fewest words that only
        one of the two has, then the one with the most words in common, then the first.

        Args:
            table: signatures.
        """
        titles, found = _Titles.of(table), np.full(table.num_rows, -1, np.int64)
        for rows in _chunks(np.flatnonzero(np.diff(titles.offsets))):
            some = titles.take(rows)
            bands = _bands(some)
            found[rows] = self._nearest(some, bands, [BANDS])
            rest = np.flatnonzero(found[rows] < 0)
            found[rows[rest]] = self._nearest(some.take(rest), bands[:, rest], range(BANDS))
        return found

    def _nearest(self, titles: "_Titles", bands: Hashes, searched: Iterable[int]) -> Positions:
        """Return the number of one near duplicate of each title that shares a band of `searched`, -1 for none."""
        found, candidates = np.full(len(titles.key), -1), self._candidates(titles, bands, searched)
        parts = []
        for some in _chunks(np.arange(len(candidates[0]))):
            row, other = (column[some] for column in candidates)
            missing, common = _compare(titles, row, self._titles, other)
            near = missing >= 0
            parts.append(np.stack([row, missing, -common, self._positions[other]])[:, near])
        pairs = np.concatenate(parts, axis=1)
        best = pairs[:, np.lexsort(pairs[::-1])]
        row, first = np.unique(best[0], return_index=True)
        found[row] = best[-1, first]
        return found

    def _candidates(self, titles: "_Titles", bands: Hashes, searched: Iterable[int]) -> tuple[Positions, Positions]:
        """Return the distinct pairs to compare: rows of `titles`, and rows of the index."""
        pairs, masks = [np.empty(0, np.int64)], _masks(titles)
        for number in searched:
            band, order, keys = self._bands[number], self._order[number], bands[number]
            begin = np.searchsorted(band, keys, "left")
            count = np.minimum(np.searchsorted(band, keys, "right") - begin, MAX_COMPARED)
            row, within = _expanded(count)
            other = order[begin[row] + within]
            possible = ~(_differ(masks, row, self._masks, other) & _differ(self._masks, other, masks, row))
            pairs.append(row[possible] * len(self._positions) + other[possible])
        return np.divmod(np.unique(np.concatenate(pairs)), max(len(self._positions), 1))


class _Parsed(NamedTuple):
    """The words of a title."""

    words: list[str]  # distinct, without variants
    optional: list[bool]
    edition: list[str]  # years and numbers of parts
    cut: bool
    comparable: bool  # whether it has MIN_REQUIRED required words
    telling: bool  # whether it has MIN_TELLING words


def _folded(text: str) -> str:
    return normalized("NFKC", text).casefold()


def _parse(title: str) -> _Parsed:
    text = _folded(title).rstrip()
    cut = text.endswith("...")  # NFKC replaces an ellipsis by three periods
    edition: list[str] = _YEAR.findall(text)
    text = _YEAR.sub(" ", text)
    end_of_words = len(text) - _NO_WORD.match(text[::-1]).end()  # type: ignore[union-attr]  # matches any text
    last = next((found for found in _PARENTHESES.finditer(text) if found.end() >= end_of_words), None)
    found = _WORD.findall(text[: last.start()] if last else text)
    inside = _WORD.findall(last[0]) if last else []
    end = len(found) if len(inside) <= MAX_IN_PARENTHESES else len(found) + len(inside)
    found = (found + inside)[: -1 if cut else None]  # the last word may be half of one
    words: dict[str, bool] = {}  # whether a word is optional
    variants = set()
    for number, (word, before, after) in enumerate(zip(found, ["", *found], [*found[1:], ""], strict=False)):
        if word.isalpha() and word not in _VARIANTS:
            optional = after in _COLOURS or number >= end or (len(word) == 2 and word.isascii())
            words[word] = words.get(word, True) and optional
        elif not word.isdecimal():
            variants.add(word)
        elif before in _SERIALS:
            edition.append(word)
    kept = list(words.items())[:MAX_WORDS]
    required = sum(not optional for _, optional in kept)
    return _Parsed(
        [word for word, _ in kept],
        [optional for _, optional in kept],
        edition,
        cut or len(kept) < len(words),
        comparable=required >= MIN_REQUIRED,
        telling=required + len(variants) >= MIN_TELLING,
    )


class _Titles(NamedTuple):
    """Columns of signatures."""

    key: Hashes
    store: Hashes
    cut: Flags
    telling: Flags
    words: npt.NDArray[np.uint32]
    offsets: Positions  # of each title in `words`, and the end

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Return the columns of signatures."""
        key, store, cut, telling, words = (table[name].combine_chunks() for name in SIGNATURES.names)
        is_cut, is_telling = (column.to_numpy(zero_copy_only=False) for column in (cut, telling))
        offsets = words.offsets.to_numpy().astype(np.int64)
        return cls(key.to_numpy(), store.to_numpy(), is_cut, is_telling, words.values.to_numpy(), offsets)

    def take(self, rows: Positions) -> "_Titles":
        """Return some titles."""
        lengths = np.diff(self.offsets)[rows]
        row, within = _expanded(lengths)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        words = self.words[self.offsets[rows][row] + within]
        return _Titles(self.key[rows], self.store[rows], self.cut[rows], self.telling[rows], words, offsets)


def _expanded(counts: Positions) -> tuple[Positions, Positions]:
    """Return [0, 0, 0, 1, 1] and [0, 1, 2, 0, 1] for the counts [3, 2]."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def _chunks(rows: Positions) -> Iterator[Positions]:
    """Yield `_CHUNK` rows at a time; no rows are one empty chunk."""
    for start in range(0, max(len(rows), 1), _CHUNK):
        yield rows[start : start + _CHUNK]


def _by_chunk(function: Callable[[_Titles], Hashes], titles: _Titles, rows: Positions) -> Hashes:
    """Return what the function returns for some titles, in little memory."""
    return np.concatenate([function(titles.take(some)) for some in _chunks(rows)], axis=-1)


def _mixed(values: Hashes) -> Hashes:
    """Return a hash of each value, the finalizer of SplitMix64."""
    values = values + _MIX[0]
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    values = (values ^ (values >> np.uint64(27))) * _MIX[2]
    return values ^ (values >> np.uint64(31))


def _content(titles: _Titles) -> Hashes:
    """Return a hash of all that a signature states; every title has words."""
    within = _expanded(np.diff(titles.offsets))[1].astype(np.uint64)
    words = np.add.reduceat(_mixed(titles.words | within << np.uint64(32)), titles.offsets[:-1])
    return _mixed(_mixed(_mixed(words) ^ titles.key) ^ titles.store) ^ (titles.cut + np.uint64(2) * titles.telling)


def _bands(titles: _Titles) -> Hashes:
    """Return the keys of every band, [BANDS + 1, titles]; every title has required words."""
    rows = np.arange(len(titles.key))
    required = titles.words & np.uint32(1) == 0
    row = np.repeat(rows, np.diff(titles.offsets))[required]
    words, starts = _mixed(titles.words[required].astype(np.uint64)), np.searchsorted(row, rows)
    every = _mixed(np.add.reduceat(words, starts) ^ titles.key)
    head = np.arange(len(row)) - starts[row] < HEAD
    words, starts = words[head], np.searchsorted(row[head], rows)
    bands = []
    for seeds in _mixed(np.arange(BANDS * ROWS, dtype=np.uint64)).reshape(BANDS, ROWS):
        key = titles.key
        for seed in seeds:
            key = _mixed(key ^ np.minimum.reduceat(_mixed(words ^ seed), starts))
        bands.append(key)
    return np.stack([*bands, every])


def _masks(titles: _Titles) -> Hashes:
    """Return two sets of each title, [2, titles]: its required words and all its words, a word being one bit of 64."""
    bits = np.uint64(1) << (titles.words >> np.uint32(1) & np.uint32(63)).astype(np.uint64)
    required = np.where(titles.words & np.uint32(1) == 0, bits, np.uint64(0))
    return np.stack([np.bitwise_or.reduceat(which, titles.offsets[:-1]) for which in (required, bits)])


def _differ(a: Hashes, one: Positions, b: Hashes, other: Positions) -> Flags:
    """Return where a title of `a` has a required word that the other surely lacks."""
    missing: Hashes = a[0][one] & ~b[1][other]
    return missing > 0


def _compare(a: _Titles, one: Positions, b: _Titles, other: Positions) -> tuple[Positions, Positions]:
    """Compare titles `one` of `a` with titles `other` of `b`.

    Returns:
        For each pair, the number of required words that only one of the two has, -1 if they are no near duplicates, and
        the number of required words in common.
    """
    a, b = a.take(one), b.take(other)
    mine, theirs = _padded(a, 1), _padded(b, 3)  # padded by different optional words
    same = (mine >> np.uint32(1))[:, :, np.newaxis] == (theirs >> np.uint32(1))[:, np.newaxis, :]
    extra_a, tail_a = _lacking(mine, same.any(axis=2), b.cut)
    extra_b, tail_b = _lacking(theirs, same.any(axis=1), a.cut)
    same &= (theirs & np.uint32(1) == 0)[:, np.newaxis, :]
    common = (same.any(axis=2) & (mine & np.uint32(1) == 0)).sum(axis=1)
    near = (a.key == b.key) & (a.telling | b.telling) & ((a.store == b.store) | (a.store == 0) | (b.store == 0))
    near &= (extra_a + tail_a == 0) | (extra_b + tail_b == 0)
    near &= common >= np.where(tail_a + tail_b > 0, MIN_TELLING, MIN_REQUIRED)
    near &= (extra_a + extra_b) * COMMON_PER_EXTRA <= common
    return np.where(near, extra_a + tail_a + extra_b + tail_b, -1), common


def _padded(titles: _Titles, fill: int) -> npt.NDArray[np.uint32]:
    """Return the words of titles, [titles, most words]."""
    lengths = np.diff(titles.offsets)
    words = np.full((len(lengths), lengths.max(initial=0)), fill, np.uint32)
    words[_expanded(lengths)] = titles.words
    return words


def _lacking(words: npt.NDArray[np.uint32], shared: Flags, cut: Flags) -> tuple[Positions, Positions]:
    """Count the required words of titles that the title compared with lacks.

    Args:
        words: those of each title.
        shared: which of them the other title has.
        cut: whether the other title is cut.

    Returns:
        For each title the number of words that the other lacks, and that of those that it may lack since it is cut.
    """
    required = words & np.uint32(1) == 0
    position = np.arange(words.shape[1])
    last = np.where(required & shared, position, -1).max(axis=1, initial=-1)
    lacking = required & ~shared
    tail = lacking & cut[:, np.newaxis] & (position > last[:, np.newaxis])
    return (lacking & ~tail).sum(axis=1), tail.sum(axis=1)
