import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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
