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
- they have at least `MIN_COMMON` required words in common, since "Rocky 2" and "Rocky 3" say too little;
- only one of them has required words that the other lacks, at most one for `COMMON_PER_EXTRA` in common. If the other
  is cut ("..."), words after the last common one do not count.

Candidates come from MinHash (Broder, "On the resemblance and containment of documents", 1997) in bands (Indyk and
Motwani, "Approximate nearest neighbors", 1998): titles that agree in `ROWS` minima of a band are compared. The minima
are over the first `HEAD` required words, because the ends of titles are cut. With Jaccard similarity s two titles share
a band with probability 1 - (1 - s ** ROWS) ** BANDS: 0.998 for 9 of 11 words, 0.93 for 7 of 10. One more band is the
set of all required words. Python's MinHash libraries keep a bucket as a list without a limit; here a bucket is a slice
of a sorted array, from which `MAX_COMPARED` titles are taken.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.core.hashes import hashes

MIN_COMMON = 5  # required words in common
COMMON_PER_EXTRA = 8  # required words in common for each that only one of two near duplicates has
HEAD = 10  # required words, from the first, over which minima are taken
BANDS, ROWS = 10, 4
MAX_COMPARED = 16  # titles of a band with which a title is compared; of more, those with the lowest content hash
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
_DIGIT = re.compile(r"\d")
_YEAR = re.compile(r"\((?=(?:19|20)\d\d\))")
_LAST_PARENTHESES = re.compile(r"[(\[]([^()\[\]]*)[)\]][\W_]*$")

SIGNATURES = pa.schema(
    [
        ("key", pa.uint64()),  # hash of the first word of the store or title, and of the years and numbers of parts
        ("store", pa.uint64()),  # hash of the store, 0 for none
        ("cut", pa.bool_()),
        ("words", pa.list_(pa.uint32())),  # hashes of the distinct words in order, odd if optional; empty if too few
    ]
)

_CHUNK = 1 << 12  # rows for which candidates or minima are computed at once
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
    keys, names, cuts = [], [], []
    for title, store in zip(titles, stores, strict=True):
        parsed = _parse(title)
        store_words = _WORD.findall(_folded(store))
        telling = len(parsed.words) - sum(parsed.optional) >= MIN_COMMON
        if telling:
            numbers.extend(vocabulary.setdefault(word, len(vocabulary)) for word in parsed.words)
            optional.extend(parsed.optional)
        lengths.append(len(parsed.words) if telling else 0)
        first = next((w for w, free in zip(parsed.words, parsed.optional, strict=True) if not free), "")
        keys.append("\x1f".join([*(store_words or [first])[:1], *parsed.edition]))
        names.append("".join(store_words))
        cuts.append(parsed.cut)
    of_words = (hashes("effimini/title-word", list(vocabulary)) >> np.uint64(33)).astype(np.uint32) << np.uint32(1)
    flat = of_words[np.array(numbers, np.int64)] | np.array(optional, np.uint32)
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int32)
    columns = [
        pa.array(hashes("effimini/title-key", keys)),
        pa.array(np.where([bool(name) for name in names], hashes("effimini/title-store", names), np.uint64(0))),
        pa.array(cuts, pa.bool_()),
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
        telling = np.flatnonzero(np.diff(titles.offsets))
        # Equal signatures are compared once. Those left are in the order of their content, not of their rows.
        _, first = np.unique(_content(titles.take(telling)), return_index=True)
        self._positions: Positions = telling[first]
        self._titles = titles.take(self._positions)
        bands = _bands(self._titles)
        self._order = [np.argsort(band, kind="stable").astype(np.int32) for band in bands]
        self._bands = [band[order] for band, order in zip(bands, self._order, strict=True)]

    def search(self, table: pa.Table) -> Positions:
        """Return the number of one near duplicate of each title of `table`, -1 for none.

        Of several it is the one with the fewest words that only one of the two has, then the one with the most words
        in common, then the first.

        Args:
            table: signatures.
        """
        titles, found = _Titles.of(table), np.full(table.num_rows, -1, np.int64)
        telling = np.flatnonzero(np.diff(titles.offsets))
        for rows in _chunks(telling):
            some = titles.take(rows)
            mine, other = self._candidates(some)
            missing, common = _compare(some, mine, self._titles, other)
            near = missing >= 0
            mine, position, missing, common = mine[near], self._positions[other[near]], missing[near], common[near]
            best = np.lexsort((position, -common, missing, mine))
            _, first = np.unique(mine[best], return_index=True)
            best = best[first]
            found[rows[mine[best]]] = position[best]
        return found

    def _candidates(self, titles: "_Titles") -> tuple[Positions, Positions]:
        """Return the distinct pairs to compare: rows of `titles`, and rows of the index."""
        pairs = [np.empty(0, np.int64)]
        for band, order, keys in zip(self._bands, self._order, _bands(titles), strict=True):
            begin = np.searchsorted(band, keys, "left")
            count = np.minimum(np.searchsorted(band, keys, "right") - begin, MAX_COMPARED)
            row, within = _expanded(count)
            pairs.append(row * len(self._positions) + order[begin[row] + within])
        return np.divmod(np.unique(np.concatenate(pairs)), max(len(self._positions), 1))


class _Parsed(NamedTuple):
    """The words of a title."""

    words: list[str]  # distinct, without variants
    optional: list[bool]
    edition: list[str]  # years and numbers of parts
    cut: bool


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _parse(title: str) -> _Parsed:
    text = _folded(title).rstrip()
    cut = text.endswith("...")  # NFKC replaces an ellipsis by three periods
    found = list(_WORD.finditer(text))
    if cut:
        del found[-1:]  # it may be half a word
    last = _LAST_PARENTHESES.search(text)
    end = last.start() if last and len(_WORD.findall(last[1])) <= MAX_IN_PARENTHESES else len(text)
    years = {match.end() for match in _YEAR.finditer(text)}
    words: dict[str, bool] = {}  # whether a word is optional
    edition, before = [], ""
    for number, match in enumerate(found):
        word = match[0]
        if match.start() in years or (before in _SERIALS and word.isdecimal()):
            edition.append(word)
        elif word not in _VARIANTS and not _DIGIT.search(word):
            coloured = number + 1 < len(found) and found[number + 1][0] in _COLOURS
            optional = coloured or match.start() > end or (len(word) == 2 and word.isascii())
            words[word] = words.get(word, True) and optional
        before = word
    return _Parsed(list(words), list(words.values()), edition, cut)


class _Titles(NamedTuple):
    """Columns of signatures."""

    key: Hashes
    store: Hashes
    cut: Flags
    words: npt.NDArray[np.uint32]
    offsets: Positions  # of each title in `words`, and the end

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """Return the columns of signatures."""
        key, store, cut, words = (table[name].combine_chunks() for name in SIGNATURES.names)
        offsets = words.offsets.to_numpy().astype(np.int64)
        flat = words.values.to_numpy()
        return cls(key.to_numpy(), store.to_numpy(), cut.to_numpy(zero_copy_only=False), flat, offsets)

    def take(self, rows: Positions) -> "_Titles":
        """Return some titles."""
        lengths = np.diff(self.offsets)[rows]
        row, within = _expanded(lengths)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = self.words[self.offsets[rows][row] + within]
        return _Titles(self.key[rows], self.store[rows], self.cut[rows], flat, offsets)


def _expanded(counts: Positions) -> tuple[Positions, Positions]:
    """Return [0, 0, 0, 1, 1] and [0, 1, 2, 0, 1] for the counts [3, 2]."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def _chunks(rows: Positions) -> Iterator[Positions]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _mixed(values: Hashes) -> Hashes:
    """Return a hash of each value, the finalizer of SplitMix64."""
    values = values + _MIX[0]
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    values = (values ^ (values >> np.uint64(27))) * _MIX[2]
    return values ^ (values >> np.uint64(31))


def _content(titles: _Titles) -> Hashes:
    """Return a hash of all that a signature states; every title has words."""
    if not len(titles.key):
        return np.empty(0, np.uint64)
    within = _expanded(np.diff(titles.offsets))[1].astype(np.uint64)
    words = np.add.reduceat(_mixed(titles.words | within << np.uint64(32)), titles.offsets[:-1])
    return _mixed(_mixed(_mixed(words) ^ titles.key) ^ titles.store) ^ titles.cut


def _bands(titles: _Titles) -> npt.NDArray[np.uint64]:
    """Return the keys of every band, [BANDS + 1, titles]; every title has required words."""
    seeds = _mixed(np.arange(BANDS * ROWS, dtype=np.uint64))
    bands = np.empty((BANDS + 1, len(titles.key)), np.uint64)
    for rows in _chunks(np.arange(len(titles.key))):
        some = titles.take(rows)
        row = np.repeat(np.arange(len(rows)), np.diff(some.offsets))
        required = some.words & np.uint32(1) == 0
        words, row = _mixed(some.words[required].astype(np.uint64)), row[required]
        starts = np.searchsorted(row, np.arange(len(rows)))
        bands[BANDS, rows] = _mixed(np.add.reduceat(words, starts) ^ some.key)
        head = np.arange(len(row)) - starts[row] < HEAD
        words, starts = words[head], np.searchsorted(row[head], np.arange(len(rows)))
        for band in range(BANDS):
            key = some.key
            for seed in seeds[band * ROWS : (band + 1) * ROWS]:
                key = _mixed(key ^ np.minimum.reduceat(_mixed(words ^ seed), starts))
            bands[band, rows] = key
    return bands


def _compare(a: _Titles, one: Positions, b: _Titles, other: Positions) -> tuple[Positions, Positions]:
    """Compare titles `one` of `a` with titles `other` of `b`.

    Returns:
        For each pair, the number of required words that only one of the two has, -1 if they are no near duplicates, and
        the number of required words in common.
    """
    a, b = a.take(one), b.take(other)
    extra_a, tail_a, common = _lacking(a, b)
    extra_b, tail_b, _ = _lacking(b, a)
    near = (a.key == b.key) & ((a.store == b.store) | (a.store == 0) | (b.store == 0))
    near &= (extra_a + tail_a == 0) | (extra_b + tail_b == 0)
    near &= (common >= MIN_COMMON) & ((extra_a + extra_b) * COMMON_PER_EXTRA <= common)
    return np.where(near, extra_a + tail_a + extra_b + tail_b, -1), common


def _lacking(a: _Titles, b: _Titles) -> tuple[Positions, Positions, Positions]:
    """Compare each title of `a` with that of `b` in the same row.

    Returns:
        For each row, three numbers of required words of `a`: those that `b` lacks, those that it may lack because it is
        cut, and those that are required in `b` too.
    """
    row, within = _expanded(np.diff(a.offsets))
    mine, theirs = _by_row(a), _by_row(b)
    required = mine & 1 == 0
    common = required & np.isin(mine, theirs)
    shared = common | (required & np.isin(mine | 1, theirs))
    last = np.full(len(a.key), -1)
    np.maximum.at(last, row[shared], within[shared])
    tail = required & ~shared & b.cut[row] & (within > last[row])
    extra = required & ~shared & ~tail
    extras, tails, commons = (np.bincount(row[which], minlength=len(a.key)) for which in (extra, tail, common))
    return extras, tails, commons


def _by_row(titles: _Titles) -> Positions:
    """Return the words of all titles, distinct over titles."""
    row = np.repeat(np.arange(len(titles.key)), np.diff(titles.offsets))
    return row << 32 | titles.words
