"""Write a tar of samples (plain WebDataset, deterministic bytes) and an index that allows random access.

Input: samples as metadata and JPEG bytes, in order. Output: a tar with ``<key>.jpg`` and ``<key>.json`` per sample, and
its Arrow index. Guarantees: the JSON of every sample has the same keys and types and no null but in the list of tabular
values, because `datasets` infers the schema from the first samples; the bytes of the tar do not depend on the fraction,
the tokenizer or the clock.
"""

import tarfile
from collections.abc import Iterable, Mapping
from math import nan
from pathlib import Path
from typing import BinaryIO

import msgspec
import pyarrow as pa
import webdataset
from tokenizers import Tokenizer

from prep.core.fields import assemble
from prep.core.keys import item_key
from prep.core.tables.shards import METADATA_FIELDS, TABULAR, IndexRow, SampleMetadata, index_schema
from shards import tokens
from shards.tokens import TokenizationConfig


def write_tar(path: Path, samples: Iterable[tuple[SampleMetadata, bytes]]) -> None:
    """Write samples, as (metadata, JPEG bytes), to a tar at `path`; other keys of the metadata are dropped."""
    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
        for metadata, jpeg in samples:
            given: Mapping[str, object] = metadata
            ordered = {name: given[name] for name in METADATA_FIELDS if name != TABULAR or name in given}
            tar.write({"__key__": item_key(metadata["parent_asin"]), "jpg": jpeg, "json": msgspec.json.encode(ordered)})


def index_tar(tar: Path | BinaryIO, path: Path, tokenization: TokenizationConfig, tokenizer: Tokenizer) -> None:
    """Write the Arrow IPC index of `tar` to `path`: offsets of the members, the metadata a loader needs, token ids.

    The metadata of the schema records the tokenizer's fingerprint, the fields, the maximal length and the padding id.

    Raises:
        INVALID_TAR: it is not a tar of samples.
    """
    rows: list[IndexRow] = []
    texts = []
    with tarfile.open(tar, "r:") if isinstance(tar, Path) else tarfile.open(fileobj=tar, mode="r:") as archive:
        members = list(archive)
        for image, text in zip(members[::2], members[1::2], strict=True):
            extracted = archive.extractfile(text)
            if extracted is None:
                raise ValueError(f"{text.name!r:.200} is not a file")
            metadata = msgspec.json.decode(extracted.read(), type=SampleMetadata)
            texts.append(assemble(metadata, tokenization.fields))
            rows.append(
                {
                    "key": item_key(metadata["parent_asin"]),
                    "jpg_offset": image.offset_data,
                    "jpg_length": image.size,
                    "json_offset": text.offset_data,
                    "json_length": text.size,
                    "average_rating": metadata["average_rating"],
                    "rating_number": metadata["rating_number"],
                    "review_count": metadata["review_count"],
                    "has_image": metadata["has_image"],
                    "tabular": [nan if value is None else value for value in metadata.get("tabular", ())],
                }
            )
    ids = tokens.encode(tokenizer, texts, tokenization.max_tokens)
    encoded = [{**row, "tokens": row_ids} for row, row_ids in zip(rows, ids, strict=True)]
    about = {
        "tokenizer": tokens.tokenizer_fingerprint(tokenizer),
        "fields": " ".join(tokenization.fields),
        "max_tokens": str(tokenization.max_tokens),
        "pad_id": str(tokens.pad_id(tokenizer)),
    }
    schema = index_schema(len(rows[0]["tabular"]) if rows else 0).with_metadata(about)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(encoded, schema))
