"""Random access to the shards of one split, local or remote.

Input: ``<location>/<category>/`` tars, indexes and manifests. Output: columns of an index, bytes of a tar. Guarantees:
at most a few hundred shards are mapped at once, however many there are, and none keeps a file descriptor; a remote file
is read through the cache; the sha256 of every file is verified before it is used; token ids are those of the requested
tokenizer.
"""

import io
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prep.core import files, locks
from prep.core.errors import UserError, first_sentence
from prep.core.tables.shards import SampleMetadata
from shards import sampler, tokens
from shards.index import INVALID_TAR, read_checked, read_index, tabular_values
from shards.location import File, ShardLocation, index_file, mapped
from shards.manifest import Manifest
from shards.tokens import TokenizationConfig

log = logging.getLogger(__name__)


def row_type(tabular: int) -> np.dtype[np.void]:
    """Return the type of a sample with `tabular` columns."""
    return np.dtype([*_ROW, ("tabular", np.float32, (tabular,))])


# What a batch needs of a sample, side by side: it takes a few samples of each of many shards, so every column would be
# another miss of the processor's cache.
_ROW = (
    ("key_start", np.int32),
    ("key_end", np.int32),
    ("jpg_offset", np.int64),
    ("jpg_length", np.int32),
    ("token_start", np.int32),
    ("token_end", np.int32),
    ("label", np.float32),
    ("rating_number", np.int64),
    ("review_count", np.int64),
    ("has_image", np.bool_),
)

_OPEN = 3 * sampler.WINDOW  # shards open at once in a process: those of the current and the next batches


class Index:
    """The index of one shard; its columns are arrays mapped from the file, and `rows` a copy of them as `row_type`."""

    def __init__(self, table: pa.Table) -> None:
        self.keys = table["key"].combine_chunks()
        self.jpg = table["jpg_offset"].to_numpy(), table["jpg_length"].to_numpy()
        self.json = table["json_offset"].to_numpy(), table["json_length"].to_numpy()
        self.label = table["average_rating"].to_numpy()
        self.rating_number = table["rating_number"].to_numpy()
        self.review_count = table["review_count"].to_numpy()
        self.has_image = table["has_image"].to_numpy()
        self.tabular = tabular_values(table)
        lists = table["tokens"].combine_chunks()
        self.token_starts, self.token_ids = lists.offsets.to_numpy(), lists.values.to_numpy()
        self.pad_id = int(table.schema.metadata[b"pad_id"])
        _, key_offsets, key_bytes = self.keys.buffers()
        key_starts = np.frombuffer(key_offsets, np.int32)[self.keys.offset :][: len(self.keys) + 1]
        self._key_bytes = memoryview(key_bytes)
        self.rows = np.empty(len(self.keys), row_type(self.tabular.shape[1]))
        columns = (
            *(key_starts[:-1], key_starts[1:], *self.jpg, self.token_starts[:-1], self.token_starts[1:]),
            *(self.label, self.rating_number, self.review_count, self.has_image, self.tabular),
        )
        for name, column in zip(self.rows.dtype.names or (), columns, strict=True):
            self.rows[name] = column

    def key(self, start: int, end: int) -> str:
        """Return the key from byte `start` to byte `end` of all keys."""
        return str(self._key_bytes[start:end], "utf-8")


class Shards:
    """The shards of one split, by number.

    Attributes:
        location: of the shards.
        manifests: of the categories, in order.
        split: name of the split.
        categories: category of each shard.
        sizes: number of samples of each shard.
        image_size: height and width of the images, px.
        tabular: names of the tabular columns; empty for shards of an older format.
        fingerprint: if equal, the samples and their order are equal.
    """

    def __init__(
        self,
        location: ShardLocation,
        categories: Sequence[str],
        split: str,
        tokenization: TokenizationConfig | None,
    ) -> None:
        """Read the manifests of `categories`.

        Args:
            location: with one folder of shards per category.
            categories: to read, in this order.
            split: train, validation or test.
            tokenization: tokenizer, fields and length of the text; indexes made with other values are rebuilt in the
                local store. None uses the token ids of the indexes.

        Raises:
            UserError: a manifest is missing, the split has no samples, the categories are incompatible, the tokenizer
                cannot be loaded, or the cache is too small.
        """
        self.location, self.split = location, split
        self.manifests = manifests = [location.manifest(category) for category in categories]
        pairs = [(m.category, shard) for m in manifests for shard in m.shards if shard.split == split]
        if not pairs:
            raise UserError(f"{location.url} has no {split} samples of {', '.join(categories)}; run `dvc repro shard`")
        self.categories = [category for category, _ in pairs]
        self._shards = [shard for _, shard in pairs]
        self._check_compatible(manifests)
        self._check_cache()
        self.tabular = manifests[0].tabular
        # arguments of `read_index`
        self._limits: tuple[int, int | None, int] = (manifests[0].tokens.max_tokens, None, len(self.tabular))
        self._tokenization = tokenization and self._retokenization(tokenization, manifests[0])
        self.sizes = [shard.samples for shard in self._shards]
        self.image_size = manifests[0].image_size
        identity = [(category, s.name, s.sha256, s.index_sha256) for category, s in pairs]
        self.fingerprint = files.fingerprint(identity, self._tokenization and self._tokenization[1])
        self._prefetched: tuple[int, ...] = ()
        self._checked: set[int] = set()  # shards whose indexes of another tokenizer were checked
        self._keep_open()

    def __getstate__(self) -> dict[str, Any]:
        """Omit open files: they belong to one process."""
        return {name: value for name, value in self.__dict__.items() if name not in {"_index", "_tar"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_prefetched": ()}
        self._keep_open()

    def _keep_open(self) -> None:
        """Keep the shards used last open, for all threads: what one has mapped, the others need not map again."""
        self._index, self._tar = lru_cache(_OPEN)(self._open_index), lru_cache(_OPEN)(self._open_tar)

    def index(self, shard: int) -> Index:
        """Return the index of a shard.

        Raises:
            UserError: it is missing or invalid.
        """
        return self._index(shard)

    def unverified(self, shard: int) -> pa.Table:
        """Return the keys and tokens of a shard's index, mapped, without comparing the sha256 of a local file.

        For those who look at many shards once: what is read is what is asked for.

        Raises:
            UserError: it is missing, or not an index of so many samples.
        """
        try:
            if self._tokenization is None:
                content = self.location.open(self._index_file(shard), mapped)
            else:
                content = mapped(self._reindexed(shard, *self._tokenization))
            table = read_checked(content, len(self.tabular)).select(["key", "tokens"]).combine_chunks()
            if len(table) != self.sizes[shard]:
                raise ValueError(f"it has {len(table)} samples, expected {self.sizes[shard]}")
            table["key"].validate(full=True)
            table["tokens"].validate()
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            name = self.location.full(self._index_file(shard).name)
            raise UserError(
                f"{name} cannot be read ({first_sentence(error)}); run `dvc checkout`, or `effimini lint` to find "
                "other damage"
            ) from error
        return table

    def member(self, shard: int, row: int, kind: Literal["jpg", "json"]) -> memoryview:
        """Return the bytes of a sample's image or metadata, as stored in the tar.

        Raises:
            UserError: the tar or its index is missing or damaged.
        """
        offsets, lengths = getattr(self.index(shard), kind)
        return self.content(shard, int(offsets[row]), int(lengths[row]))

    def metadata(self, shard: int, row: int) -> SampleMetadata:
        """Return the metadata of a sample.

        Raises:
            UserError: the tar or its index is missing or damaged, or the JSON is not metadata.
        """
        try:
            return msgspec.json.decode(self.member(shard, row, "json"), type=SampleMetadata)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(
                f"{self.name(shard)}: {self.index(shard).keys[row].as_py()} cannot be read ({first_sentence(error)}); "
                "run `effimini lint`, then `dvc checkout`"
            ) from None

    def content(self, shard: int, first: int, length: int) -> memoryview:
        """Return `length` bytes of a tar, from byte `first` on.

        Raises:
            UserError: the tar is missing or damaged.
        """
        return self._tar(shard)[first : first + length]

    def name(self, shard: int) -> str:
        """Return the full name of a tar, for messages."""
        return self.location.full(self._tar_file(shard).name)

    def prefetch(self, shards: npt.NDArray[np.int64]) -> None:
        """Start downloading shards, indexes first; does nothing for a local folder.

        Args:
            shards: numbers of the shards, in the order of reading.
        """
        wanted = tuple(shards.tolist())
        if self.location.local_path is None and self._prefetched != wanted:
            self._prefetched = wanted
            self.location.prefetch([self._index_file(s) for s in wanted] + [self._tar_file(s) for s in wanted])

    def _open_index(self, shard: int) -> Index:
        if self._tokenization is None:
            return Index(self.location.index(self.categories[shard], self._shards[shard], *self._limits))
        content = mapped(self._reindexed(shard, *self._tokenization))
        if shard not in self._checked:
            try:
                read_index(content, self._shards[shard], *self._limits)
            except ValueError as error:
                raise self._not_indexed(shard, error) from error
            self._checked.add(shard)
        return Index(read_checked(content, len(self.tabular)))

    def _open_tar(self, shard: int) -> memoryview:
        return memoryview(self.location.content(self._tar_file(shard))).cast("B")

    def _reindexed(self, shard: int, tokenization: TokenizationConfig, indexed_by: str) -> Path:
        """Return an index of the shard with the token ids of another tokenizer, cached in the local store."""
        from shards.tar import index_tar  # noqa: PLC0415 -- imports torch, which those who only look need not wait for

        path = files.store() / "tokens" / f"{self._shards[shard].sha256}.{indexed_by}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with locks.lock_file(path.with_suffix(".lock")):  # several readers may need the same shard
            if not files.intact(path):
                with files.atomic_write(path) as partial:
                    tokenizer = tokens.load_tokenizer(tokenization.name)
                    try:
                        index_tar(io.BytesIO(self._tar(shard)), partial, tokenization, tokenizer)
                    except INVALID_TAR as error:
                        raise self._not_indexed(shard, error) from error
                    files.seal(path, files.digest(partial))
        return path

    def _not_indexed(self, shard: int, error: Exception) -> UserError:
        return UserError(f"{self.name(shard)} cannot be indexed ({first_sentence(error)}); run `effimini lint`")

    def _retokenization(
        self, tokenization: TokenizationConfig, manifest: Manifest
    ) -> tuple[TokenizationConfig, str] | None:
        """Return the tokenization to rebuild indexes with, and its fingerprint; None if the indexes already match."""
        loaded = tokens.load_tokenizer(tokenization.name)
        tokenizer = tokens.tokenizer_fingerprint(loaded)
        self._limits = tokenization.max_tokens, loaded.get_vocab_size(), len(self.tabular)
        if (tokenizer, tokenization.fields, tokenization.max_tokens) == msgspec.structs.astuple(manifest.tokens):
            return None
        log.info(
            "%s: the %s indexes were made with another tokenizer, text.fields or text.max_tokens; "
            "token ids are recomputed in %s",
            self.location.url,
            self.split,
            files.store() / "tokens",
        )
        return tokenization, files.fingerprint(tokenizer, tokenization.fields, tokenization.max_tokens)[:16]

    def _check_compatible(self, manifests: Sequence[Manifest]) -> None:
        """Reject categories that cannot be in one batch."""
        for manifest in manifests[1:]:
            for what in ("image_size", "tokens", "tabular"):
                if getattr(manifest, what) != getattr(manifests[0], what):
                    raise UserError(
                        f"{self.location.url}: {manifest.category} and {manifests[0].category} differ in {what}; "
                        "run `dvc repro shard` for both with the same parameters"
                    )

    def _check_cache(self) -> None:
        """Reject a cache smaller than the shards read at once: they would be downloaded again and again."""
        sizes = sorted((shard.bytes + shard.index_bytes for shard in self._shards), reverse=True)
        limit = self.location.cache_bytes
        if self.location.local_path is None and (needed := sum(sizes[:_OPEN])) > limit:
            raise UserError(
                f"{self.location.url}: the {min(_OPEN, len(sizes))} shards read at once need {needed / 1e9:.3g} GB and "
                f"the cache is limited to {limit / 1e9:.3g} GB; raise stream.cache_gb"
            )

    def _tar_file(self, shard: int) -> File:
        metadata = self._shards[shard]
        return File(f"{self.categories[shard]}/{metadata.name}", metadata.bytes, metadata.sha256)

    def _index_file(self, shard: int) -> File:
        return index_file(self.categories[shard], self._shards[shard])
