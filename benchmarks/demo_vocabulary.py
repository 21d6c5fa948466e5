"""Build the small WordPiece vocabulary of ``effimini/minilm`` from the text of the synthetic demo catalogue.

    python -m benchmarks.demo_vocabulary effimini/minilm

Input: the demo generator with the parameters in ``params.yaml``. Output: tokenizer.json and tokenizer_config.json in
the folder. Guarantees: the same catalogue gives the same bytes. Run it again when the words of the demo change.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer  # type: ignore[attr-defined]  # its module has no __all__

from prep.core.fields import LABELS, assemble
from prep.core.files import atomic_write
from prep.core.params import load_params
from prep.core.text import clean, clean_details, clean_list
from prep.core.writers import write_json
from prep.demo import write_catalogue

PIECES = 1500  # at most
COMMON = 5  # minimum count of a word in the catalogue
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def texts(folder: Path) -> list[str]:
    """Return the text of every item line of the catalogue in `folder` that is JSON, in order of the files' names."""
    found = []
    for file in sorted((folder / "raw/meta_categories").iterdir()):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                item = json.loads(line)
            except ValueError:  # the demo has malformed lines on purpose
                continue
            fields = {name: clean(item.get(name)) for name in ("main_category", "title", "store")}
            fields["features"] = clean_list(item.get("features"), " | ")
            fields["description"] = clean_list(item.get("description"), " ")
            fields["details"] = clean_details(json.dumps(item.get("details") or {}))
            found.append(assemble(fields, list(LABELS)))
    return found


def word_piece(lines: list[str]) -> Tokenizer:
    """Build a lower-casing BERT tokenizer: special pieces, characters, then the frequent words of `lines`.

    The library's trainer is not used, because its choice among pieces of equal count differs between runs.
    """
    empty = BertWordPieceTokenizer(lowercase=True)
    words: Counter[str] = Counter()
    for line in lines:
        words.update(word for word, _ in empty.pre_tokenizer.pre_tokenize_str(empty.normalizer.normalize_str(line)))
    characters = sorted({character for word in words for character in word})
    base = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    common = [word for word, count in words.items() if count >= COMMON and len(word) > 1]
    pieces = [*base, *sorted(common, key=lambda word: (-words[word], word))][:PIECES]
    wrapped = BertWordPieceTokenizer({piece: number for number, piece in enumerate(pieces)}, lowercase=True)
    return Tokenizer.from_str(wrapped.to_str())


def main(folder: Path) -> None:
    """Write the tokenizer's files to `folder` and print its size."""
    source = load_params().source
    with TemporaryDirectory() as catalogue:
        write_catalogue(Path(catalogue), source.categories, source.demo.items, source.demo.seed)
        tokenizer = word_piece(texts(Path(catalogue)))
    with atomic_write(folder / "tokenizer.json") as partial:
        partial.write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    special = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    write_json(folder / "tokenizer_config.json", settings | special)
    print(f"{tokenizer.get_vocab_size()} pieces in {folder / 'tokenizer.json'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.demo_vocabulary FOLDER")
    main(Path(sys.argv[1]))
