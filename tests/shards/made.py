"""Synthetic shards for tests, of any number and size, with real tars, indexes and manifests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from tokenizers import Tokenizer

from prep.core import files, writers
from shards import manifest, tokens
from shards.manifest import Manifest, Shard, Source, Tokenization
from shards.tar import index_tar, write_tar
from shards.tokens import TokenizationConfig

MINILM = str(Path(__file__).parent.parent.parent / "effimini/minilm")
HOW = TokenizationConfig(MINILM, ("title", "description"), 32)
SIDE = 16


def jpeg(number: int) -> bytes:
    """Return a JPEG whose pixels are all about `number` modulo 256."""
    pixels = np.full((SIDE, SIDE, 3), number % 256, np.uint8)
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=95)
    return encoded


def make_shards(
    folder: Path,
    sizes: Mapping[str, Sequence[int]],
    category: str = "Made",
    tokenization: TokenizationConfig = HOW,
    *,
    words: int = 6,
    tabular: tuple[str, ...] = ("price", "image_count"),
) -> Path:
    """Write ``folder/<category>`` with tars of the given sizes for each split; sample n has n in its key and count.

    Without names in `tabular` they are as before format 5.
    """
    directory = folder / category
    directory.mkdir(parents=True)
    tokenizer = tokens.load_tokenizer(tokenization.name)
    shards, number = [], 0
    for split, counts in sizes.items():
        for place, count in enumerate(counts):
            tar = directory / f"{split}-{place:03d}.tar"
            write_tar(tar, [sample(number + i, category, words, len(tabular)) for i in range(count)])
            number += count
            shards.append(seal(tar, split, count, tokenization, tokenizer))
    about = Manifest(
        format=manifest.FORMAT,
        category=category,
        source=Source("demo", ""),
        parameters={"sample": {"fraction": 1.0}, "images": {"resolution": SIDE}},
        tokens=Tokenization(tokens.tokenizer_fingerprint(tokenizer), tokenization.fields, tokenization.max_tokens),
        shards=tuple(shards),
        tabular=tabular,
    )
    writers.write_json(directory / manifest.MANIFEST_FILE, about)
    return folder


def sample(number: int, category: str, words: int, tabular: int = 2) -> tuple[dict[str, object], bytes]:
    metadata: dict[str, object] = {
        "parent_asin": f"B{number:09d}",
        "category": category,
        "main_category": "",
        "title": f"thing {number}",
        "features": "",
        "description": " ".join(["good"] * (number * 7919 % words)),
        "store": "",
        "details": "",
        "average_rating": 1 + number % 40 / 10,
        "rating_number": number,
        "review_count": 2 * number,
        "has_image": True,
    }
    if tabular:
        metadata["tabular"] = [None if (number + i) % 3 == 0 else number / 4 + i for i in range(tabular)]
    return metadata, jpeg(number)


def seal(tar: Path, split: str, samples: int, tokenization: TokenizationConfig, tokenizer: Tokenizer) -> Shard:
    """Index a tar and return its manifest entry."""
    index = tar.with_suffix(".arrow")
    index_tar(tar, index, tokenization, tokenizer)
    return Shard(
        name=tar.name,
        split=split,
        band=None,
        samples=samples,
        bytes=tar.stat().st_size,
        sha256=files.sha256(tar),
        index_bytes=index.stat().st_size,
        index_sha256=files.sha256(index),
    )
