"""Read the index of a shard, which strangers may have written.

Input: the bytes of an Arrow IPC file, and what the manifest says of its shard. Output: a table of schema
`index_schema`.
Guarantees: in a table that is returned nothing is null, every value is in its range and every member lies in the tar;
anything else is a `ValueError` that says what is wrong.
"""

import tarfile
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from prep.core.errors import first_sentence
from prep.core.keys import KEY
from prep.core.tables.shards import COUNTS, STARS, TABULAR, index_schema
from shards.manifest import Shard

# What reading a tar may raise: it is no tar, a member is no file, JSON is no metadata, or headers nest too deeply.
INVALID_TAR = (tarfile.TarError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)
_MAGIC_BYTES = 8  # before the stream in an Arrow IPC file
_RANGES = {"average_rating": STARS, "rating_number": COUNTS, "review_count": COUNTS}


def read_index(
    content: pa.Buffer, shard: Shard, max_tokens: int, vocabulary: int | None = None, tabular: int | None = None
) -> pa.Table:
    """Return the index in `content`, without a copy of it.

    Args:
        content: bytes of the file.
        shard: its entry in the manifest.
        max_tokens: of the manifest.
        vocabulary: number of token ids of the tokenizer; None if it is not known.
        tabular: number of tabular columns in the manifest; None if it is not known.

    Raises:
        ValueError: it is not the index of this shard.
    """
    try:
        table = _read_uncompressed(content.slice(_MAGIC_BYTES))
        metadata = table.schema.metadata or {}
        pad_id = int(metadata.get(b"pad_id", b""))
        expected = _expected(table.schema, tabular)
        table = table.select(expected.names)
        if table.schema.types != expected.types:
            raise ValueError(f"its columns have the types {', '.join(map(str, table.schema.types))}")
        table.validate(full=True)  # before anything else is done with offsets that may lead anywhere
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise ValueError(f"it is not an index: {first_sentence(error)}") from error
    if len(table) != shard.samples:
        raise ValueError(f"it has {len(table)} samples, expected {shard.samples}")
    table = table.combine_chunks()
    tokens = table["tokens"].combine_chunks()
    if any(column.null_count for column in table.columns) or tokens.flatten().null_count:
        raise ValueError("it has null values")
    named = pc.match_substring_regex(table["key"], KEY)
    if not pc.all(named).as_py():
        raise ValueError(f"it has the key {table['key'].filter(pc.invert(named))[0].as_py()!r:.60}, expected an id")
    for name, (least, most) in _RANGES.items():
        _require(name, table[name].to_numpy(), least, most)
    for member in ("jpg", "json"):
        lengths = table[f"{member}_length"].to_numpy()
        _require(f"{member}_length", lengths, 0, shard.bytes)
        _require(f"{member}_offset", table[f"{member}_offset"].to_numpy(), 0, shard.bytes - lengths)
    if TABULAR in table.schema.names:
        values = table[TABULAR].combine_chunks().flatten()
        if values.null_count or np.isinf(values.to_numpy(zero_copy_only=False)).any():
            raise ValueError("it has tabular values that are null or infinite")
    _require("number of tokens", np.diff(tokens.offsets.to_numpy()), 1, max_tokens)
    largest = np.iinfo(np.int32).max if vocabulary is None else vocabulary - 1
    _require("token id", np.append(tokens.flatten().to_numpy(), pad_id), 0, largest)
    return table.replace_schema_metadata(metadata)


def _expected(found: pa.Schema, tabular: int | None) -> pa.Schema:
    """Return the schema of an index with `tabular` columns; if that is not known, with those that are there."""
    if tabular is None:
        kind = found.field(TABULAR).type if TABULAR in found.names else None
        tabular = int(kind.list_size) if kind is not None and pa.types.is_fixed_size_list(kind) else 0
    return index_schema(tabular)


def tabular_values(table: pa.Table) -> npt.NDArray[np.float32]:
    """Return the tabular columns of an index, [N, C], NaN where missing, without a copy."""
    if TABULAR not in table.column_names:
        return np.empty((len(table), 0), np.float32)
    lists = table[TABULAR].combine_chunks()
    return cast(npt.NDArray[np.float32], lists.flatten().to_numpy().reshape(-1, lists.type.list_size))


def read_checked(content: pa.Buffer, tabular: int | None = None) -> pa.Table:
    """Return an index whose bytes `read_index` has accepted before."""
    table = pa.ipc.open_stream(content.slice(_MAGIC_BYTES)).read_all()
    expected = _expected(table.schema, tabular)
    return table.select(expected.names).replace_schema_metadata(table.schema.metadata)


def _read_uncompressed(stream: pa.Buffer) -> pa.Table:
    """Return the table of an Arrow IPC stream, which a file contains; it takes no more memory than the stream.

    Raises:
        ValueError: a batch is compressed, and so may unpack to any size.
        pyarrow.ArrowException: it is not such a stream.
    """
    for message in pa.ipc.MessageReader.open_stream(stream):
        if message.type == "record batch" and _has_compression(message.metadata):
            raise ValueError("it is compressed")
    return pa.ipc.open_stream(stream).read_all()


def _has_compression(metadata: pa.Buffer) -> bool:
    """Return whether the flatbuffer `Message` of a record batch has a `compression`; see Arrow's Message.fbs."""
    content = memoryview(metadata)

    def place_of(table: int, field: int) -> int:
        """Return where a field of a flatbuffer table is, or 0 if the table does not have it."""
        fields = table - int.from_bytes(content[table : table + 4], "little", signed=True)
        if 4 + 2 * field >= int.from_bytes(content[fields : fields + 2], "little"):
            return 0
        offset = int.from_bytes(content[fields + 4 + 2 * field :][:2], "little")
        return offset and table + offset

    def pointed_at(place: int) -> int:
        return place + int.from_bytes(content[place : place + 4], "little")

    header = pointed_at(place_of(pointed_at(0), 2))
    return place_of(header, 3) != 0


def _require(name: str, values: npt.NDArray[Any], least: float, most: float | npt.NDArray[Any]) -> None:
    """Raise if a value is out of range, or not a number."""
    wrong = np.flatnonzero(~((values >= least) & (values <= most)))
    if len(wrong):
        limit = most if isinstance(most, float | int) else most[wrong[0]]
        raise ValueError(f"it has the {name} {values[wrong[0]]}, expected {least} to {limit}")
