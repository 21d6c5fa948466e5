"""Damage shards for tests: bytes, members, indexes and manifests of the folder of a category.

A changed file is replaced, not modified: a shard may be a hardlink to the store.
"""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pyarrow as pa

from prep.core import files, writers
from shards import tokens
from shards.tar import index_tar
from shards.tokens import TokenizationConfig
from tests.shards.made import MINILM

Member = tuple[tarfile.TarInfo | str, bytes]


def write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    write(path, content)


def member(tar: Path, number: int) -> tarfile.TarInfo:
    with tarfile.open(tar) as archive:
        return archive.getmembers()[number]


def repack(tar: Path, change: Callable[[list[Member]], object]) -> None:
    """Change the members of a tar, as (name, content), image and JSON alternating."""
    with tarfile.open(tar) as archive:
        members = [(each.name, archive.extractfile(each).read()) for each in archive]
    change(members)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    write(tar, packed.getvalue())


def swap(tar: Path, one: int, other: int) -> None:
    """Exchange the contents of two members."""

    def exchange(members: list[Member]) -> None:
        (a, first), (b, second) = members[one], members[other]
        members[one], members[other] = (a, second), (b, first)

    repack(tar, exchange)


def set_facts(tar: Path, number: int, **values: object) -> None:
    """Change metadata of a sample."""

    def change(members: list[Member]) -> None:
        name, content = members[2 * number + 1]
        members[2 * number + 1] = name, msgspec.json.encode(json.loads(content) | values)

    repack(tar, change)


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of an index."""
    return pa.ipc.open_file(path).read_all().to_pylist()


def set_index(path: Path, change: Callable[[list[dict[str, Any]]], object] = lambda _: None, **about: str) -> None:
    """Change the rows and the metadata of an index."""
    table = pa.ipc.open_file(path).read_all()
    rows = table.to_pylist()
    change(rows)
    schema = table.schema.with_metadata(table.schema.metadata | {name.encode(): value for name, value in about.items()})
    path.unlink()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))


def index(tar: Path, max_tokens: int | None = None) -> None:
    """Rebuild the index of a tar as in its manifest, optionally with another `max_tokens`."""
    made = files.read_json(tar.parent / "manifest.json")["tokens"]
    tokenization = TokenizationConfig(MINILM, tuple(made["fields"]), max_tokens or made["max_tokens"])
    path = tar.with_suffix(".arrow")
    path.unlink(missing_ok=True)
    with patch("shards.tar.SampleMetadata", dict):  # whatever the JSON says
        index_tar(tar, path, tokenization, tokens.load_tokenizer(MINILM))


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Update a manifest to match the files, then change it."""
    manifest = files.read_json(folder / "manifest.json")
    for shard in manifest["shards"]:
        tar = folder / shard["name"]
        shard |= {"bytes": tar.stat().st_size, "sha256": files.sha256(tar)}
        arrow = tar.with_suffix(".arrow")
        shard |= {"index_bytes": arrow.stat().st_size, "index_sha256": files.sha256(arrow)}
    change(manifest)
    writers.write_json(folder / "manifest.json", manifest)
