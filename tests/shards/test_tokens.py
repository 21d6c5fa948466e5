import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from prep.core.errors import UserError
from shards import tokens

ROOT = Path(__file__).parents[2]
MINILM = ROOT / "effimini/minilm"


def test_ids_start_and_end_with_the_special_tokens_and_are_truncated() -> None:
    tokenizer = tokens.load_tokenizer(str(MINILM))
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    short, long = tokens.encode(tokenizer, ["Kettle", "kettle " * 50], 12)
    assert short == [first, tokenizer.token_to_id("kettle"), last]
    assert (len(long), long[0], long[-1]) == (12, first, last)
    assert tokens.pad_id(tokenizer) == 0


def test_encoding_does_not_change_the_fingerprint() -> None:
    tokenizer = tokens.load_tokenizer(str(MINILM))
    before = tokens.tokenizer_fingerprint(tokenizer)
    tokens.encode(tokenizer, ["a"], 8)
    assert (
        tokens.tokenizer_fingerprint(tokenizer)
        == before
        == tokens.tokenizer_fingerprint(tokens.load_tokenizer(str(MINILM)))
    )


def test_a_folder_with_only_a_vocabulary_gives_the_same_ids(tmp_path: Path) -> None:
    whole = tokens.load_tokenizer(str(MINILM))
    pieces = sorted(whole.get_vocab(), key=whole.get_vocab().__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    shutil.copy(MINILM / "tokenizer_config.json", tmp_path)
    texts = ["Main category: Kitchen\nTitle: Sturdy KETTLE, caf\u00e9", ""]
    assert tokens.encode(tokens.load_tokenizer(str(tmp_path)), texts, 32) == tokens.encode(whole, texts, 32)


def test_a_vocabulary_that_keeps_capitals_is_not_lower_cased(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nKettle\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert tokens.encode(tokens.load_tokenizer(str(tmp_path)), ["Kettle kettle"], 8) == [[2, 5, 1, 3]]


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = [
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\u00a0",
    "\ufeff",
    "",
    " ",
    "red",
    "a\u3000",
]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=ascii)
@pytest.mark.parametrize("last", [True, False])
def test_every_line_of_a_vocabulary_is_a_piece_as_in_transformers(
    tmp_path: Path, odd: str, ending: str, last: bool
) -> None:
    pieces = [*SPECIAL, "#", odd, "lamp", "red", odd, "##s", "desk", "##" + odd]
    (tmp_path / "vocab.txt").write_bytes((ending.join(pieces) + ending * last).encode())
    texts = ["red lamps", "a desk", f"red{odd}desk {odd} lamp", "[SEP] # reds", ""]
    theirs = BertTokenizer.from_pretrained(tmp_path)
    assert tokens.encode(tokens.load_tokenizer(str(tmp_path)), texts, 32) == [theirs(text).input_ids for text in texts]


def test_a_vocabulary_without_an_embedding_of_each_piece_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "red", "red"]) + "\n")
    tokenizer = tokens.load_tokenizer(str(tmp_path))
    tokens.check_vocabulary(tokenizer, 7, "here")
    with pytest.raises(UserError, match="the tokenizer of here has 7 tokens and its encoder only 6"):
        tokens.check_vocabulary(tokenizer, 6, "here")


def test_a_vocabulary_that_is_no_utf_8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\n".join(SPECIAL).encode("utf-16"))
    with pytest.raises(UserError, match="vocab.txt is not a tokenizer file"):
        tokens.load_tokenizer(str(tmp_path))


def test_a_missing_or_invalid_tokenizer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"has neither tokenizer\.json nor vocab\.txt"):
        tokens.load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer file"):
        tokens.load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match="is not a local folder, and tokenizer.json cannot be downloaded from the hub"):
        tokens.load_tokenizer("no/such/folder")


def test_no_torch_is_imported() -> None:
    load = "from shards.tokens import load_tokenizer; load_tokenizer('effimini/minilm')"
    code = f"import sys; {load}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


class Counting:
    """A tokenizer that counts the characters that it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **settings: Any) -> Any:
        self.characters += len(text)
        return self._tokenizer.encode(text, **settings)

    def encode_batch(self, texts: list[str]) -> Any:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch(texts)


LONG = ["lamp " * 50_000, "lamp, " * 50_000, "\u4e2d" * 200_000, "[SEP] " * 40_000, "caf\u00e9 \u0e01\u0e32 " * 30_000]


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_of_a_long_text_only_a_beginning_is_tokenized(text: str) -> None:
    tokenizer = tokens.load_tokenizer(str(MINILM))
    counting = Counting(tokenizer)
    found = tokens.encode(cast(Tokenizer, counting), [text], 32)
    assert counting.characters < len(text) / 10
    tokenizer.enable_truncation(32)
    assert found == [tokenizer.encode(text).ids]


def made_of(model: Any, trainer: Any, before: Any = None, normalizer: Any = None) -> Tokenizer:
    """Return a small tokenizer of another kind."""
    tokenizer = Tokenizer(model)
    if before:
        tokenizer.pre_tokenizer = before
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(["a lamp, a red lamp (2 pcs) of caf\u00e9 a a", "ab ba abba"] * 9, trainer)
    return tokenizer


KINDS = {
    "minilm": lambda: tokens.load_tokenizer(str(MINILM)),
    "bytes": lambda: made_of(models.BPE(), trainers.BpeTrainer(vocab_size=300), pre_tokenizers.ByteLevel()),
    "unigram": lambda: made_of(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=60, unk_token="[UNK]", special_tokens=["[UNK]"]),
        pre_tokenizers.Metaspace(),
    ),
    "one_word": lambda: made_of(
        models.BPE(), trainers.BpeTrainer(vocab_size=60), pre_tokenizers.Metaspace(split=False)
    ),
    "no_words": lambda: made_of(models.BPE(), trainers.BpeTrainer(vocab_size=60), None, normalizers.NFC()),
}
PARTS = st.sampled_from(
    [
        "a",
        "lamp",
        " ",
        " ",
        "  ",
        "\n",
        ", ",
        "[SEP]",
        "[CLS",
        "ab" * 60,
        "\u0301",
        "\u00e9",
        "\u4e2d",
        "\x00",
        "\u200d",
    ]
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_beginning_has_the_tokens_of_the_whole_text(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]()
    texts = data.draw(st.lists(st.lists(PARTS, max_size=80).map("".join), min_size=1, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_LONG", 4)
        patch.setattr(tokens, "_MARGIN", 8)
        found = tokens.encode(tokenizer, texts, 5)
    tokenizer.enable_truncation(5)
    assert found == [one.ids for one in tokenizer.encode_batch(texts)]
