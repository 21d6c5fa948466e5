"""Convert text to token ids, with the tokenizer of the text encoder.

Input: the name of a text encoder: that of the package (`PACKAGED`), a local folder, or a hub name (downloaded once
into the hub's cache). Output: token ids, truncated, including the tokenizer's special first and last tokens, and padded
batches of them. Guarantees: a tokenizer that cannot be loaded is an error; equal fingerprints mean equal ids; the hub
is never asked for `PACKAGED`. torch is not imported.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer  # type: ignore[attr-defined]  # its module has no __all__
from tokenizers.models import WordPiece

from prep.core.errors import UserError, first_sentence

PACKAGED = "effimini/minilm"  # the encoder that is a folder of the package; on the hub, anyone could register the name
_PADS = ("[PAD]", "<pad>")
# Characters for each of max_tokens; of a longer text only a beginning is tokenized, if that has enough tokens.
_LONG = 64
_MARGIN = 256  # characters at the end of a beginning whose tokens may be others than in the whole text


class TokenizationConfig(NamedTuple):
    """How the metadata of a sample becomes token ids."""

    name: str  # model.text.name
    fields: tuple[str, ...]  # text.fields
    max_tokens: int


def encoder_source(name: str) -> str:
    """Return where a library finds the text encoder `name`: the package's folder for `PACKAGED`, else the name."""
    return str(Path(__file__).parent.parent / PACKAGED) if name == PACKAGED else name


def load_tokenizer(name: str) -> Tokenizer:
    """Load the tokenizer `name`, without truncation or padding.

    Args:
        name: `PACKAGED`, a folder with tokenizer.json, or with vocab.txt and tokenizer_config.json (older BERT), or a
            hub name.

    Raises:
        UserError: the folder has no tokenizer, or `name` is not a folder and cannot be downloaded from the hub.
    """
    for file in ("tokenizer.json", "vocab.txt"):
        path = _file(name, file)
        if path is None:
            continue
        try:
            tokenizer = Tokenizer.from_file(str(path)) if file == "tokenizer.json" else _word_piece(name, path)
        except Exception as error:  # tokenizers raises bare Exception on any malformed file
            raise UserError(
                f"{path} is not a tokenizer file ({first_sentence(error)}); model.text.name is {name}"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    raise UserError(
        f"{name} has neither tokenizer.json nor vocab.txt; set model.text.name to an encoder with a tokenizer"
    )


def check_vocabulary(tokenizer: Tokenizer, rows: int, name: str) -> None:
    """Check that an encoder has an embedding for every id of its tokenizer.

    Args:
        tokenizer: the tokenizer.
        rows: rows of the encoder's embedding.
        name: where both are from, for the message.

    Raises:
        UserError: it has not.
    """
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1  # more than there are pieces if some are repeated
    if ids > rows:
        raise UserError(
            f"the tokenizer of {name} has {ids} tokens and its encoder only {rows}, so they do not match; use a folder "
            "with a matching tokenizer"
        )


def encode(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> list[list[int]]:
    """Return the ids of each text, truncated to `max_tokens` including the special tokens, not padded."""
    texts = [_beginning(tokenizer, text, max_tokens) for text in texts]
    tokenizer.enable_truncation(max_tokens)
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    finally:
        tokenizer.no_truncation()


def _beginning(tokenizer: Tokenizer, text: str, max_tokens: int) -> str:
    """Return a beginning of a long text with the same first `max_tokens` tokens, or the text.

    A tokenizer splits a text into words before it makes tokens of each, so a beginning has the tokens of the text,
    those of its last words aside. If it does not split, the text is one word, of which no beginning is taken.
    """
    length = _LONG * max_tokens
    while length < len(text):
        encoding = tokenizer.encode(text[:length], add_special_tokens=False)
        ends = (end for _, end in encoding.offsets)
        words = [word for word, end in zip(encoding.word_ids, ends, strict=True) if end <= length - _MARGIN]
        if words and words.index(words[-1]) >= max_tokens:  # tokens before the last of these words
            return text[:length]
        length *= 2
    return text


def pad(
    ids: Sequence[Sequence[int] | npt.NDArray[np.integer]], filler: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ids padded with `filler` to the longest text, and a mask (1 for tokens, 0 for padding), both [B, T]."""
    padded = np.full((len(ids), max(map(len, ids))), filler, np.int64)
    mask = np.zeros_like(padded)
    for row, shown, text in zip(padded, mask, ids, strict=True):
        row[: len(text)] = text
        shown[: len(text)] = 1
    return padded, mask


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return the hex sha256 of the serialised tokenizer (vocabulary, normaliser and post-processor)."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id of the padding token.

    Raises:
        UserError: the vocabulary has none.
    """
    for pad in _PADS:
        if (found := tokenizer.token_to_id(pad)) is not None:
            return int(found)
    raise UserError(
        f"the tokenizer of model.text.name has none of the padding tokens {', '.join(_PADS)}; use another encoder"
    )


def _file(name: str, file: str) -> Path | None:
    """Return the path of a tokenizer file, or None if the folder or the hub repository does not have it."""
    if (folder := Path(encoder_source(name))).is_dir():
        path = folder / file
        return path if path.exists() else None
    import httpx  # noqa: PLC0415 -- a local folder needs no network client
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
    )

    from prep.hub import is_reachable  # noqa: PLC0415

    try:  # without the hub, hf_hub_download would look for the file in its cache only after many attempts
        return Path(hf_hub_download(name, file, local_files_only=not is_reachable()))
    except RemoteEntryNotFoundError:
        return None
    except (LocalEntryNotFoundError, HFValidationError, OSError, httpx.HTTPError) as error:
        raise UserError(
            f"model.text.name {name} is not a local folder, and {file} cannot be downloaded from the hub "
            f"({first_sentence(error)}); correct the name, connect to the network, or name a folder with the encoder"
        ) from error


def _word_piece(name: str, vocabulary: Path) -> Tokenizer:
    """Build BERT's tokenizer from vocab.txt; lower-cases unless tokenizer_config.json disables it."""
    settings_file = _file(name, "tokenizer_config.json")
    settings = json.loads(settings_file.read_text(encoding="utf-8")) if settings_file else {}
    # Reads the same pieces as transformers. str.splitlines would also split at U+2028 and others, which are pieces.
    wrapped = BertWordPieceTokenizer(
        WordPiece.read_file(str(vocabulary)),
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    return Tokenizer.from_str(wrapped.to_str())
