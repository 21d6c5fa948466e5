"""The hashed terms of a text: tokens, words, and the first word of the title."""

from itertools import groupby, pairwise

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from effimini.hashed_ngrams import FirstWord, HashedNgrams, HashedTerms
from effimini.words import Words
from shards import tokens as tokens_

from .conftest import ROOT

TITLES = [
    "Main category: Electronics\nTitle: Sony WH-1000XM4 Over-Ear Headphones, 30 h\nFeatures: A 5.0 x 3 mm cable",
    "Title: Crème brûlée torch — refillable; w/ 2 cans\nDescription: Title: not this one",
    "Main category: Toys",
    "Title: ! Unbreakable unbreakables unbreakable\nStore: Alder",
    "Title: ?",
    "",
]
PAGES = [path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokens_.load_tokenizer(str(ROOT / "effimini/minilm"))


def words_of(tokenizer: Tokenizer, ids: list[int]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the first token and the pieces of each word, without tensors."""
    special = tokenizer.get_added_tokens_decoder()
    starts = [place for place, piece in enumerate(ids) if not tokenizer.id_to_token(piece).startswith("##")]
    words = [(start, tuple(ids[start:end])) for start, end in pairwise([*starts, len(ids)])]

    def kept(pieces: tuple[int, ...]) -> bool:
        text = "".join(tokenizer.id_to_token(piece).removeprefix("##") for piece in pieces)
        return len(text) > 1 and any(map(str.isalnum, text)) and pieces[0] not in special

    return [(start, pieces) for start, pieces in words if kept(pieces)]


def hash_of(pieces: tuple[int, ...]) -> int:
    """Return the hash of a word as the docstring of the module says: a sum of pieces times powers, modulo 2^64."""
    total = sum(piece * pow(0x5851F42D4C957F2D, place, 2**64) for place, piece in enumerate(pieces)) % 2**64
    return total - 2**64 if total >= 2**63 else total


@pytest.mark.parametrize("max_tokens", [12, 96, 256])
def test_the_words_of_the_graph_are_those_of_a_plain_function(tokenizer: Tokenizer, max_tokens: int) -> None:
    encoded = tokens_.encode(tokenizer, [*TITLES, *PAGES], max_tokens)
    padded, mask = (torch.from_numpy(array) for array in tokens_.pad(encoded, tokens_.pad_id(tokenizer)))
    words = Words(tokenizer, tokenizer.get_vocab_size(), max_tokens)
    hashes, start, is_word = words(padded, mask)
    for row, ids in enumerate(encoded):
        expected = words_of(tokenizer, ids)
        count = int(is_word[row].sum())
        assert is_word[row].tolist() == [1] * len(expected) + [0] * (len(is_word[row]) - len(expected))
        assert start[row, :count].tolist() == [place for place, _ in expected]
        assert hashes[row, :count].tolist() == [hash_of(pieces) for _, pieces in expected]
    distinct = {pieces for ids in encoded for _, pieces in words_of(tokenizer, ids)}
    assert len({hash_of(pieces) for pieces in distinct}) == len(distinct) > 5


def test_the_first_word_is_that_of_the_title(tokenizer: Tokenizer) -> None:
    encoded = tokens_.encode(tokenizer, TITLES, 96)
    padded, mask = (torch.from_numpy(array) for array in tokens_.pad(encoded, tokens_.pad_id(tokenizer)))
    hashes, found = Words(tokenizer, tokenizer.get_vocab_size(), 96).first_of_title(padded, mask)
    colon = tokenizer.token_to_id(":")
    assert found.squeeze(1).tolist() == [1, 1, 0, 1, 0, 0]
    for row in (0, 1, 3):
        label = encoded[row].index(colon, 6 if row == 0 else 0)
        first = next(pieces for start, pieces in words_of(tokenizer, encoded[row]) if start > label)
        assert hashes[row].item() == hash_of(first)


def values(module: HashedTerms, ids: list[int], padding: int) -> dict[int, float]:
    """Return the value of each bucket of a text."""
    tokens = torch.tensor([ids + [7] * padding])
    mask = torch.tensor([[1] * len(ids) + [0] * padding])
    places, size = (tensor[0].tolist() for tensor in module.places(tokens, mask))
    shown = sorted(pair for pair in zip(places, size, strict=True) if pair[1])
    return {place: sum(value for _, value in same) for place, same in groupby(shown, key=lambda pair: pair[0])}


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("kind", ["ngrams", "first_word"])
def test_a_text_is_the_set_of_its_terms(tokenizer: Tokenizer, kind: str, padding: int) -> None:
    words, buckets = Words(tokenizer, tokenizer.get_vocab_size(), 96), 1 << 22  # without collisions
    module = HashedNgrams(buckets) if kind == "ngrams" else FirstWord(buckets, words)
    for ids in tokens_.encode(tokenizer, TITLES, 96):
        _, found = words.first_of_title(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
        ngrams = {*ids, *pairwise(ids), *((a, None, b) for a, b in zip(ids, ids[2:], strict=False))}
        terms = len(ngrams) if kind == "ngrams" else int(found)
        np.testing.assert_allclose(
            list(values(module, ids, padding).values()), [terms**-0.5] * terms if terms else [], rtol=1e-5
        )
