"""Lint: read all shards of a location completely, and report every violation with its file.

Input: a `ShardLocation`. Output: results shard by shard, in the order of the manifests, with their `Violation`s.
Guarantees: a violation in one file does not stop the check of others; the same files give the same violations in the
same order; no name from a tar is used as a path. Several processes read one shard at a time each; memory use is these
shards plus the ids of one category.
"""

import hashlib
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum
from functools import partial
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, cast, get_type_hints

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from prep.core.errors import UserError, first_sentence
from prep.core.tables.raw import ASIN
from prep.core.tables.shards import INDEX, METADATA_FIELDS, IndexRow, SampleMetadata
from shards import manifest
from shards.images.pixels import decode
from shards.location import File, ShardLocation, index_file
from shards.manifest import Manifest, Shard, Tokenization

_FIELD_TYPES: dict[str, type] = get_type_hints(SampleMetadata)


class LintRule(StrEnum):
    """The rules; their values are the names of expectations in the gate."""

    MANIFEST = "a manifest of this category, its parts and its image size"
    FILES = "the files named in the manifest"
    BYTES = "size and sha256 as in the manifest"
    TAR = "tars of whole samples, each a JPEG and its JSON"
    INDEX = "indexes made with the manifest's tokenizer, fields and length"
    COUNT = "samples as in the manifest"
    METADATA = "JSON with every fact, of its type, of this item and category"
    IMAGE = "JPEGs of the image size, 1x1 without an image"
    MEMBERS = "each member at its offset, with the key and facts of the index"
    ONCE = "each sample once"


class Violation(NamedTuple):
    """One violation of a rule."""

    where: str  # the file, relative to the location
    what: str
    rule: LintRule


class LintResult(NamedTuple):
    """The result of one check step."""

    violations: Sequence[Violation]
    shards: int = 0
    samples: int = 0


class _Wanted(NamedTuple):
    """What the manifest requires of every sample of a category."""

    category: str
    image_size: int
    tokens: Tokenization


class _Read(NamedTuple):
    """The result of reading one shard."""

    violations: list[Violation]
    keys: pa.Array  # of the samples in its tar


def lint(location: ShardLocation, categories: Sequence[str] | None = None) -> Iterator[LintResult]:
    """Check the shards of `categories` (default: all of the location).

    Raises:
        UserError: the location does not exist, or must be listed and cannot be listed.
    """
    if not categories:
        categories = location.categories()
        if location.local_path is not None:
            folders = sorted(p.name for p in location.local_path.iterdir() if p.is_dir() and not p.name.startswith("."))
            categories = folders  # includes folders without a manifest
    for category in categories:
        yield from _category(location, category)


def _category(location: ShardLocation, category: str) -> Iterator[LintResult]:
    name = f"{category}/{manifest.MANIFEST_FILE}"
    try:
        about = location.manifest(category)
        wanted = _Wanted(category, about.image_size, about.tokens)
    except UserError as error:
        yield LintResult([Violation(name, str(error), LintRule.MANIFEST)])
        return
    except (KeyError, TypeError, ValueError):
        yield LintResult([Violation(name, "has no parameters.images.resolution", LintRule.MANIFEST)])
        return
    yield LintResult([*_manifest_violations(name, about, category), *_unknown_files(location, about, category)])
    keys = []
    with ProcessPoolExecutor(min(len(about.shards), os.cpu_count() or 1)) as pool:
        for read in pool.map(partial(_shard, location, wanted), about.shards):
            keys.append(read.keys)
            yield LintResult(read.violations, 1, len(read.keys))
    yield LintResult(list(_repeated(category, about.shards, keys)))


def _manifest_violations(where: str, about: Manifest, category: str) -> Iterator[Violation]:
    if about.category != category:
        yield Violation(where, f"is of category {about.category!r}", LintRule.MANIFEST)
    for name, count in Counter(shard.name for shard in about.shards).items():
        if count > 1:
            yield Violation(where, f"names {name} {count} times", LintRule.MANIFEST)
    for shard in about.shards:
        if shard.part != (shard.split if shard.band is None else f"{shard.split}-{shard.band:02d}"):
            yield Violation(where, f"has {shard.name} in split {shard.split}, band {shard.band}", LintRule.MANIFEST)


def _unknown_files(location: ShardLocation, about: Manifest, category: str) -> Iterator[Violation]:
    """Yield the tars and indexes of a local folder that its manifest does not list; skipped for remote locations."""
    if location.local_path is None:
        return
    named = {name for shard in about.shards for name in (shard.name, shard.index)}
    found = {path.name for path in (location.local_path / category).iterdir() if path.suffix in {".tar", ".arrow"}}
    for name in sorted(found - named):
        yield Violation(f"{category}/{name}", "is not listed in the manifest", LintRule.FILES)


def _repeated(category: str, shards: Sequence[Shard], keys: Sequence[pa.Array]) -> Iterator[Violation]:
    """Yield the samples that are also in an earlier tar, or twice in one tar."""
    counts = pc.value_counts(pa.chunked_array(keys, pa.string()))
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    first: dict[str, Shard] = {}
    for shard, own in zip(shards, keys, strict=True):
        for key in own.filter(pc.is_in(own, repeated)).to_pylist():
            if key not in first:
                first[key] = shard
                continue
            other = first[key]
            of = f" of split {other.split}" if other.split != shard.split else ""
            yield Violation(f"{category}/{shard.name}", f"{key} is also in {other.name}{of}", LintRule.ONCE)


def _shard(location: ShardLocation, wanted: _Wanted, shard: Shard) -> _Read:
    """Read a tar and its index."""
    tar = File(f"{wanted.category}/{shard.name}", shard.bytes, shard.sha256)
    index = index_file(wanted.category, shard)
    violations: list[Violation] = []
    rows = None
    if (handle := _opened(location, tar, violations)) is not None:
        with handle:
            rows = _check_tar(handle, tar.name, wanted, violations)
        if len(rows) != shard.samples:
            violations.append(Violation(tar.name, f"has {len(rows)} samples, expected {shard.samples}", LintRule.COUNT))
    if (handle := _opened(location, index, violations)) is not None:
        with handle:
            violations += _index_violations(handle, index.name, wanted.tokens, rows)
    return _Read(violations, pa.array([row["key"] for row in rows or ()], pa.string()))


def _opened(location: ShardLocation, file: File, violations: list[Violation]) -> BufferedReader | None:
    """Open a file and check its size and sha256; return None if it cannot be opened."""
    try:
        handle = location.open(file, _open)
    except FileNotFoundError:
        violations.append(Violation(file.name, "is missing", LintRule.FILES))
        return None
    except (UserError, OSError) as error:
        violations.append(Violation(file.name, str(error), LintRule.FILES))
        return None
    if (size := os.fstat(handle.fileno()).st_size) != file.bytes:
        violations.append(Violation(file.name, f"has {size} bytes, expected {file.bytes}", LintRule.BYTES))
    elif hashlib.file_digest(handle, "sha256").hexdigest() != file.sha256:
        violations.append(Violation(file.name, "has a sha256 that differs from the manifest", LintRule.BYTES))
    handle.seek(0)
    return handle


def _open(path: Path) -> BufferedReader:
    return path.open("rb")


def _check_tar(handle: BufferedReader, where: str, wanted: _Wanted, violations: list[Violation]) -> list[IndexRow]:
    """Read the samples of a tar; return the expected index row of each, as far as it could be read."""
    rows: list[IndexRow] = []
    for key, group in groupby(_members(handle, where, violations), lambda member: member.name.partition(".")[0]):
        members = list(group)
        names = [member.name for member in members]
        if not re.fullmatch(ASIN, key) or names != [f"{key}.jpg", f"{key}.json"]:
            violations.append(
                Violation(where, f"has members {names!r:.200}, expected <parent_asin>.jpg and .json", LintRule.TAR)
            )
            continue
        image, text = members
        row: IndexRow = {
            "key": key,
            "jpg_offset": image.offset_data,
            "jpg_length": image.size,
            "json_offset": text.offset_data,
            "json_length": text.size,
        }
        try:
            metadata = _check_metadata(_content(handle, text), key, wanted.category)
            row["average_rating"] = float(np.float32(metadata["average_rating"]))
            row["rating_number"], row["review_count"] = metadata["rating_number"], metadata["review_count"]
            row["has_image"] = metadata["has_image"]
        except ValueError as error:
            violations.append(Violation(where, f"{key}.json {error}", LintRule.METADATA))
        if problem := _image_problem(_content(handle, image), wanted.image_size if row.get("has_image", True) else 1):
            violations.append(Violation(where, f"{key}.jpg {problem}", LintRule.IMAGE))
        rows.append(row)
    return rows


def _members(handle: BufferedReader, where: str, violations: list[Violation]) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar in order, up to the first that is not a regular file; check the end of the tar."""
    try:
        with tarfile.open(fileobj=handle, mode="r:") as archive:
            for member in archive:
                if member.type != tarfile.REGTYPE or member.size < 0:
                    violations.append(
                        Violation(where, f"has a member {member.name!r:.200} that is not a regular file", LintRule.TAR)
                    )
                    return
                yield member
            end = archive.offset  # tarfile treats an invalid header as the end
    except (tarfile.TarError, ValueError, OverflowError) as error:
        violations.append(Violation(where, f"is not a complete tar ({first_sentence(error)})", LintRule.TAR))
        return
    handle.seek(end)
    rest = handle.read()
    if rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        violations.append(Violation(where, f"has no tar header at byte {end}", LintRule.TAR))
    elif len(rest) < 2 * tarfile.BLOCKSIZE or rest.strip(b"\0"):
        violations.append(Violation(where, "does not end with blocks of zeros", LintRule.TAR))


def _content(handle: BufferedReader, member: tarfile.TarInfo) -> bytes:
    handle.seek(member.offset_data)
    return handle.read(member.size)


def _check_metadata(encoded: bytes, key: str, category: str) -> SampleMetadata:
    """Decode and check the metadata of a sample.

    Raises:
        ValueError: it is not valid metadata of the sample `key` of `category`.
    """
    try:
        metadata = msgspec.json.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"cannot be read ({first_sentence(error)})") from None
    if not isinstance(metadata, dict) or tuple(metadata) != METADATA_FIELDS:
        found = list(metadata) if isinstance(metadata, dict) else metadata
        raise ValueError(f"has {found!r:.200}, expected the keys {list(METADATA_FIELDS)}")
    for name, kind in _FIELD_TYPES.items():
        if type(metadata[name]) is not kind:
            raise ValueError(f"has {name} {metadata[name]!r:.60}, expected type {kind.__name__}")
    for name, expected in (("parent_asin", key), ("category", category)):
        if metadata[name] != expected:
            raise ValueError(f"has {name} {metadata[name]!r:.60}, expected {expected!r}")
    return cast(SampleMetadata, metadata)


def _image_problem(jpeg: bytes, size: int) -> str:
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)  # check the size before decoding
        if (height, width) != (size, size):
            return f"has {width}x{height} px, expected {size}x{size}"
        decode(jpeg)
    except ValueError as error:
        return f"cannot be decoded ({first_sentence(error)})"
    return ""


def _index_violations(
    handle: BufferedReader, where: str, tokens: Tokenization, rows: Sequence[IndexRow] | None
) -> Iterator[Violation]:
    """Yield the violations of an index, compared with the rows of its tar (None if the tar could not be opened)."""
    try:
        index = pa.ipc.open_file(handle).read_all()
        index.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Violation(where, f"is not an index ({first_sentence(error)})", LintRule.INDEX)
        return
    if not index.schema.equals(INDEX):
        yield Violation(
            where, f"has columns {index.schema.names}, whose names or types are not those of an index", LintRule.INDEX
        )
        return
    recorded = {
        k.decode(errors="replace"): v.decode(errors="replace") for k, v in (index.schema.metadata or {}).items()
    }
    required = {"tokenizer": tokens.tokenizer, "fields": " ".join(tokens.fields), "max_tokens": str(tokens.max_tokens)}
    for name, expected in required.items():
        if recorded.get(name) != expected:
            yield Violation(
                where, f"is stale: made with {name} {recorded.get(name)}, expected {expected}", LintRule.INDEX
            )
    lengths = pc.fill_null(pc.list_value_length(index["tokens"]), 0)
    if wrong := pc.sum(pc.or_(pc.less(lengths, 1), pc.greater(lengths, tokens.max_tokens))).as_py():
        yield Violation(
            where, f"has {wrong} samples with no token ids or more than {tokens.max_tokens}", LintRule.INDEX
        )
    if rows is not None:
        yield from _index_differences(index.drop_columns("tokens").to_pylist(), rows, where)


def _index_differences(index: Sequence[IndexRow], rows: Sequence[IndexRow], where: str) -> Iterator[Violation]:
    """Yield how an index differs from its tar: the first difference, and the number of samples with one."""
    if len(index) != len(rows):
        yield Violation(where, f"has {len(index)} samples, its tar has {len(rows)}", LintRule.MEMBERS)
    different = [
        (row["key"], name, found.get(name), expected)
        for found, row in zip(index, rows, strict=False)
        for name, expected in row.items()
        if found.get(name) != expected
    ]
    if different:
        key, name, found, expected = different[0]
        others = f", and {more} more samples differ" if (more := len({key for key, *_ in different}) - 1) else ""
        yield Violation(where, f"has {name} {found!r:.60} for {key}, its tar has {expected}{others}", LintRule.MEMBERS)
