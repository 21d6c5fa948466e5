"""Lint: read all shards of a location completely, and report every violation with its file.

Input: a `ShardLocation`. Output: results shard by shard, in the order of the manifests, with their `Violation`s.
Guarantees: a violation in one file does not stop the check of others; the same files give the same violations in the
same order; no name from a tar is used as a path. Several processes read one shard at a time each, and end with this
one, however it ends; memory use is these shards plus the ids of one category.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from enum import StrEnum
from functools import lru_cache, partial
from io import BufferedReader
from itertools import groupby
from multiprocessing import connection, parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple, cast, get_type_hints

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from tokenizers import Tokenizer

from prep.core.errors import UserError, first_sentence
from prep.core.fields import assemble
from prep.core.keys import KEY, item_id
from prep.core.progress import bar
from prep.core.tables.shards import COUNTS, METADATA_FIELDS, STARS, TABULAR, IndexRow, SampleMetadata, index_schema
from shards import manifest, tokens
from shards.images.pixels import decode
from shards.index import INVALID_TAR
from shards.location import File, ShardLocation, index_file
from shards.manifest import Manifest, Shard, Tokenization

_FIELD_TYPES: dict[str, type] = {name: kind for name, kind in get_type_hints(SampleMetadata).items() if name != TABULAR}


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
    TOKENS = "token ids of the tokenizer"
    ONCE = "each sample once"


class Violation(NamedTuple):
    """One violation of a rule."""

    where: str  # the file, relative to the location
    what: str
    rule: LintRule


class ShardRead(NamedTuple):
    """What was read of one shard."""

    shard: Shard
    keys: pa.Array  # of the samples in its tar
    digests: pa.Array  # `metadata_digest` of each; null if it cannot be read


class LintResult(NamedTuple):
    """The result of one check step."""

    violations: Sequence[Violation]
    read: ShardRead | None = None


class _Wanted(NamedTuple):
    """What the manifest requires of every sample of a category."""

    category: str
    image_size: int
    tokens: Tokenization
    tokenizer: str
    tabular: int  # number of columns


class _Row(NamedTuple):
    """A sample of a tar."""

    expected: IndexRow
    metadata: SampleMetadata | None  # None if it cannot be read


def lint(location: ShardLocation, categories: Sequence[str] | None = None, tokenizer: str = "") -> Iterator[LintResult]:
    """Check shards.

    Args:
        location: of the shards.
        categories: to check; None for all of the location.
        tokenizer: name of the tokenizer that the token ids are compared with; "" compares only their number.

    Raises:
        UserError: the location does not exist, or must be listed and cannot be listed; the tokenizer cannot be loaded.
    """
    if not categories:
        categories = location.categories()
        if location.local_path is not None:
            folders = sorted(p.name for p in location.local_path.iterdir() if p.is_dir() and not p.name.startswith("."))
            categories = folders  # includes folders without a manifest
    for category in categories:
        yield from _category(location, category, tokenizer)


def metadata_digest(metadata: Mapping[str, object]) -> int:
    """Return a 64-bit hash of the metadata of a sample, but of `has_image`, which is not in ``data/sample``."""
    values = [metadata.get(name) for name in METADATA_FIELDS if name != "has_image"]
    return int.from_bytes(hashlib.blake2b(msgspec.json.encode(values), digest_size=8).digest(), "big")


def _category(location: ShardLocation, category: str, tokenizer: str) -> Iterator[LintResult]:
    name = f"{category}/{manifest.MANIFEST_FILE}"
    try:
        about = location.parse(category)
    except UserError as error:
        yield LintResult([Violation(name, str(error), LintRule.MANIFEST)])
        return
    wanted = _Wanted(category, about.image_size, about.tokens, tokenizer, len(about.tabular))
    if tokenizer and _tokenizer(tokenizer)[1] != about.tokens.tokenizer:
        yield LintResult([Violation(name, f"is of another tokenizer than {tokenizer}", LintRule.TOKENS)])
        wanted = wanted._replace(tokenizer="")
    wrong = [Violation(name, problem, LintRule.MANIFEST) for problem in manifest.problems(about, category)]
    yield LintResult([*wrong, *_unknown_files(location, about, category)])
    keys = []
    with ProcessPoolExecutor(min(len(about.shards), os.cpu_count() or 1), initializer=_end_with_parent) as pool:
        try:
            results = pool.map(partial(_shard, location, wanted), about.shards)
            for result in bar(results, f"lint {category}: shards", len(about.shards)):
                assert result.read is not None
                keys.append(result.read.keys)
                yield result
        except BrokenProcessPool:
            raise UserError(
                f"{location.full(category)}: a process that read the shards was killed; run again, with more memory or "
                "fewer cores"
            ) from None
    yield LintResult(list(_repeated(category, about.shards, keys)))


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


def _end_with_parent() -> None:
    """End this process when the one that started it ends, also if that was killed."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=wait, daemon=True).start()


@lru_cache(maxsize=1)
def _tokenizer(name: str) -> tuple[Tokenizer, str]:
    """Return a tokenizer and its fingerprint."""
    loaded = tokens.load_tokenizer(name)
    return loaded, tokens.tokenizer_fingerprint(loaded)


def _shard(location: ShardLocation, wanted: _Wanted, shard: Shard) -> LintResult:
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
            violations += _index_violations(handle, index.name, wanted, rows)
    read = rows or ()
    keys = pa.array([row.expected["key"] for row in read], pa.string())
    digests = pa.array([row.metadata and metadata_digest(row.metadata) for row in read], pa.uint64())
    return LintResult(violations, ShardRead(shard, keys, digests))


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


def _check_tar(handle: BufferedReader, where: str, wanted: _Wanted, violations: list[Violation]) -> list[_Row]:
    """Read the samples of a tar; return the expected index row of each, as far as it could be read."""
    rows: list[_Row] = []
    for key, group in groupby(_members(handle, where, violations), lambda member: member.name.partition(".")[0]):
        members = list(group)
        names = [member.name for member in members]
        if not re.fullmatch(KEY, key) or names != [f"{key}.jpg", f"{key}.json"]:
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
        metadata = None
        try:
            metadata = _check_metadata(_content(handle, text), key, wanted)
            row["average_rating"] = float(np.float32(metadata["average_rating"]))
            row["rating_number"], row["review_count"] = metadata["rating_number"], metadata["review_count"]
            row["has_image"] = metadata["has_image"]
            if wanted.tabular:
                row["tabular"] = np.array(metadata["tabular"], np.float32).tolist()
        except ValueError as error:
            violations.append(Violation(where, f"{key}.json {error}", LintRule.METADATA))
        if problem := _image_problem(_content(handle, image), wanted.image_size if row.get("has_image", True) else 1):
            violations.append(Violation(where, f"{key}.jpg {problem}", LintRule.IMAGE))
        rows.append(_Row(row, metadata))
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
    except INVALID_TAR as error:
        violations.append(Violation(where, f"is not a complete tar ({first_sentence(error)})", LintRule.TAR))
        return
    handle.seek(end)
    if handle.read(tarfile.BLOCKSIZE).strip(b"\0"):
        violations.append(Violation(where, f"has no tar header at byte {end}", LintRule.TAR))
        return
    blocks = iter(partial(handle.read, 1 << 20), b"")  # a tar may end with any number of zeros
    if any(block.strip(b"\0") for block in blocks) or handle.tell() < end + 2 * tarfile.BLOCKSIZE:
        violations.append(Violation(where, "does not end with blocks of zeros", LintRule.TAR))


def _content(handle: BufferedReader, member: tarfile.TarInfo) -> bytes:
    handle.seek(member.offset_data)
    return handle.read(member.size)


def _check_metadata(encoded: bytes, key: str, wanted: _Wanted) -> SampleMetadata:
    """Decode and check the metadata of a sample.

    Raises:
        ValueError: it is not valid metadata of the sample `key`.
    """
    try:
        metadata = msgspec.json.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"cannot be read ({first_sentence(error)})") from None
    fields = [name for name in METADATA_FIELDS if name != TABULAR or wanted.tabular]
    if not isinstance(metadata, dict) or list(metadata) != fields:
        found = list(metadata) if isinstance(metadata, dict) else metadata
        raise ValueError(f"has {found!r:.200}, expected the keys {fields}")
    for name, kind in _FIELD_TYPES.items():
        if type(metadata[name]) is not kind:
            raise ValueError(f"has {name} {metadata[name]!r:.60}, expected type {kind.__name__}")
    for name, expected in (("parent_asin", item_id(key)), ("category", wanted.category)):
        if metadata[name] != expected:
            raise ValueError(f"has {name} {metadata[name]!r:.60}, expected {expected!r}")
    for name, (least, most) in {"average_rating": STARS, "rating_number": COUNTS, "review_count": COUNTS}.items():
        if not least <= metadata[name] <= most:
            raise ValueError(f"has {name} {metadata[name]!r:.60}, expected {least} to {most}")
    if wanted.tabular:
        _check_tabular(metadata[TABULAR], wanted.tabular)
    return cast(SampleMetadata, metadata)


def _check_tabular(values: object, columns: int) -> None:
    """Check the values of the tabular columns.

    Raises:
        ValueError: they are not a finite number or null for each column.
    """
    if not isinstance(values, list) or len(values) != columns:
        raise ValueError(f"has {TABULAR} {values!r:.60}, expected a list of {columns} values")
    largest = np.finfo(np.float32).max
    for value in values:
        if value is not None and (type(value) is not float or not abs(value) <= largest):
            raise ValueError(f"has {value!r:.60} in {TABULAR}, expected a number or null")


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
    handle: BufferedReader, where: str, wanted: _Wanted, rows: Sequence[_Row] | None
) -> Iterator[Violation]:
    """Yield the violations of an index, compared with the rows of its tar (None if the tar could not be opened)."""
    try:
        index = pa.ipc.open_file(handle).read_all()
        index.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield Violation(where, f"is not an index ({first_sentence(error)})", LintRule.INDEX)
        return
    if not index.schema.equals(index_schema(wanted.tabular)):
        yield Violation(
            where, f"has columns {index.schema.names}, whose names or types are not those of an index", LintRule.INDEX
        )
        return
    recorded = {
        k.decode(errors="replace"): v.decode(errors="replace") for k, v in (index.schema.metadata or {}).items()
    }
    made = wanted.tokens
    required = {"tokenizer": made.tokenizer, "fields": " ".join(made.fields), "max_tokens": str(made.max_tokens)}
    for name, expected in required.items():
        if recorded.get(name) != expected:
            yield Violation(
                where, f"is stale: made with {name} {recorded.get(name)}, expected {expected}", LintRule.INDEX
            )
    lengths = pc.fill_null(pc.list_value_length(index["tokens"]), 0)
    if wrong := pc.sum(pc.or_(pc.less(lengths, 1), pc.greater(lengths, made.max_tokens))).as_py():
        yield Violation(where, f"has {wrong} samples with no token ids or more than {made.max_tokens}", LintRule.INDEX)
    if rows is not None:
        yield from _index_differences(index.drop_columns("tokens").to_pylist(), [row.expected for row in rows], where)
        if wanted.tokenizer:
            yield from _token_differences(index["tokens"].to_pylist(), rows, wanted, where)


def _index_differences(index: Sequence[IndexRow], rows: Sequence[IndexRow], where: str) -> Iterator[Violation]:
    """Yield how an index differs from its tar: the first difference, and the number of samples with one."""
    if len(index) != len(rows):
        yield Violation(where, f"has {len(index)} samples, its tar has {len(rows)}", LintRule.MEMBERS)
    different = [
        (row["key"], name, found.get(name), expected)
        for found, row in zip(index, rows, strict=False)
        for name, expected in row.items()
        if not _same(found.get(name), expected)
    ]
    if different:
        key, name, found, expected = different[0]
        others = f", and {more} more samples differ" if (more := len({key for key, *_ in different}) - 1) else ""
        yield Violation(where, f"has {name} {found!r:.60} for {key}, its tar has {expected}{others}", LintRule.MEMBERS)


def _same(found: object, expected: object) -> bool:
    """Return whether two values are equal; NaN in a list is equal to NaN."""
    if isinstance(found, list) and isinstance(expected, list):
        return np.array_equal(np.array(found, np.float32), np.array(expected, np.float32), equal_nan=True)
    return found == expected


def _token_differences(
    index: Sequence[Sequence[int]], rows: Sequence[_Row], wanted: _Wanted, where: str
) -> Iterator[Violation]:
    """Yield how the token ids of an index differ from those of the texts in its tar, like `_index_differences`."""
    pairs = [(row, found) for row, found in zip(rows, index, strict=False) if row.metadata]
    texts = [assemble(row.metadata or {}, wanted.tokens.fields) for row, _ in pairs]
    expected = tokens.encode(_tokenizer(wanted.tokenizer)[0], texts, wanted.tokens.max_tokens)
    different = [
        row.expected["key"] for (row, found), ids in zip(pairs, expected, strict=True) if list(found or ()) != ids
    ]
    if different:
        others = f", and of {len(different) - 1} more samples" if len(different) > 1 else ""
        yield Violation(where, f"has other token ids than the text of {different[0]}{others}", LintRule.TOKENS)
