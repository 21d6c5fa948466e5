"""The shards of one split, open for reading at any place, wherever they are.

In: ``<location>/<category>/`` tars, indexes and manifests. Out: columns of an index, bytes of a tar. Guaranteed: what
is open at once is a few hundred shards, however many there are; a file behind a URL is read through the cache with its
sha256 checked; token ids are those of the tokenizer asked for.
"""

import logging
import mmap
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock

from prep.core import files
from prep.core.errors import UserError, first_sentence
from shards import sampler, tokens
from shards.location import File, ShardLocation, index_file, mapped
from shards.manifest import Manifest
from shards.tar import index_tar
from shards.tokens import TokenizationConfig

log = logging.getLogger(__name__)

Opened = TypeVar("Opened")

_OPEN = 3 * sampler.WINDOW  # shards open at once in a process: those of the batches at hand and the next ones


class TornError(ValueError):
    """A tar that ends before one of its members."""


class Index:
    """The index of one shard, its columns as arrays mapped from the file."""

    def __init__(self, table: pa.Table) -> None:
        self.keys = table["key"].combine_chunks()
        self.jpg = table["jpg_offset"].to_numpy(), table["jpg_length"].to_numpy()
        self.json = table["json_offset"].to_numpy(), table["json_length"].to_numpy()
        self.label = table["average_rating"].to_numpy()
        self.rating_number = table["rating_number"].to_numpy()
        self.review_count = table["review_count"].to_numpy()
        self.has_image = table["has_image"].to_numpy()
        lists = table["tokens"].combine_chunks()
        self.token_starts, self.token_ids = lists.offsets.to_numpy(), lists.values.to_numpy()
        self.pad_id = int(table.schema.metadata[b"pad_id"])


class Shards:
    """The shards of one split, by number.

    Attributes:
        location: where they are.
        manifests: of the categories, in order.
        split: its name.
        categories: of each shard.
        sizes: samples of each shard.
        image_size: height and width of the images, px.
        fingerprint: equal fingerprints, equal samples in equal places.
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
            location: of the folder that holds one of shards a category.
            categories: which of them, in this order.
            split: train, validation or test.
            tokenization: the text's tokenizer, fields and length; indexes made otherwise are made anew in the local
                store. None takes the token ids as they stand.

        Raises:
            UserError: a manifest is absent, the split holds no sample, the categories do not fit together, the
                tokenizer cannot be had, or the cache is too small to read from.
        """
        self.location, self.split = location, split
        self.manifests = manifests = [location.manifest(category) for category in categories]
        pairs = [(m.category, shard) for m in manifests for shard in m.shards if shard.split == split]
        if not pairs:
            raise UserError(f"{location.url} holds no {split} sample of {', '.join(categories)}; run `dvc repro shard`")
        self.categories = [category for category, _ in pairs]
        self._shards = [shard for _, shard in pairs]
        self._check_alike(manifests)
        self._check_cache()
        self._tokenization = tokenization and self._foreign(tokenization, manifests[0])
        self.sizes = [shard.samples for shard in self._shards]
        self.image_size = manifests[0].image_size
        parts = [(category, s.name, s.sha256, s.index_sha256) for category, s in pairs]
        self.fingerprint = files.fingerprint(parts, self._tokenization and self._tokenization[1])
        self._indexes: OrderedDict[int, Index] = OrderedDict()
        self._tars: OrderedDict[int, memoryview] = OrderedDict()
        self._prefetched: tuple[int, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open: it belongs to one thread."""
        return {**self.__dict__, "_indexes": OrderedDict(), "_tars": OrderedDict(), "_prefetched": ()}

    def index(self, shard: int) -> Index:
        """Return the index of a shard.

        Raises:
            UserError: it is absent, or is none.
        """
        return _kept(self._indexes, shard, self._open_index)

    def member(self, shard: int, row: int, kind: Literal["jpg", "json"]) -> memoryview:
        """Return the bytes of a sample's image or facts, as they stand in the tar.

        Raises:
            UserError: the tar or its index is absent, or the index is none.
            TornError: the tar ends before it.
        """
        offsets, lengths = getattr(self.index(shard), kind)
        first, length = int(offsets[row]), int(lengths[row])
        content = _kept(self._tars, shard, self._open_tar)[first : first + length]
        if len(content) != length:
            raise TornError("the tar ends before it")
        return content

    def name(self, shard: int) -> str:
        """Return what a tar is called in a sentence."""
        return self.location.full(self._tar_file(shard).name)

    def prefetch(self, shards: npt.NDArray[np.int64]) -> None:
        """Begin to download shards that will be read, indexes first; nothing for a local folder.

        Args:
            shards: in the order of reading.
        """
        wanted = tuple(shards.tolist())
        if self.location.local_path is None and self._prefetched != wanted:
            self._prefetched = wanted
            self.location.prefetch([self._index_file(s) for s in wanted] + [self._tar_file(s) for s in wanted])

    def _open_index(self, shard: int) -> Index:
        if self._tokenization is not None:
            return Index(mapped(self._made_anew(shard, *self._tokenization)))
        return Index(self.location.index(self.categories[shard], self._shards[shard]))

    def _open_tar(self, shard: int) -> memoryview:
        return self._of_tar(shard, _mapped)

    def _of_tar(self, shard: int, opener: Callable[[Path], Opened]) -> Opened:
        try:
            return self.location.open(self._tar_file(shard), opener)
        except FileNotFoundError:
            raise UserError(f"{self.name(shard)} does not exist; run `dvc checkout` or `dvc repro shard`") from None

    def _made_anew(self, shard: int, tokenization: TokenizationConfig, indexed_by: str) -> Path:
        """Return an index of the shard with the token ids of another tokenizer, from the local store."""
        path = files.store() / "tokens" / f"{self._shards[shard].sha256}.{indexed_by}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # readers meet at the same shards
            if not path.exists():
                with files.atomic_write(path) as partial:
                    tokenizer = tokens.load_tokenizer(tokenization.name)
                    try:
                        self._of_tar(shard, lambda tar: index_tar(tar, partial, tokenization, tokenizer))
                    except (tarfile.TarError, ValueError, KeyError) as error:
                        raise UserError(
                            f"{self.name(shard)} cannot be indexed ({first_sentence(error)}); run `effimini lint`"
                        ) from error
        return path

    def _foreign(self, tokenization: TokenizationConfig, manifest: Manifest) -> tuple[TokenizationConfig, str] | None:
        """Return how indexes must be made anew and the name of it; None where they fit as they are."""
        tokenizer = tokens.tokenizer_fingerprint(tokens.load_tokenizer(tokenization.name))
        if (tokenizer, tokenization.fields, tokenization.max_tokens) == msgspec.structs.astuple(manifest.tokens):
            return None
        log.info(
            "%s: the %s indexes were made with another tokenizer, text.fields or text.max_tokens; "
            "token ids are made anew in %s",
            self.location.url,
            self.split,
            files.store() / "tokens",
        )
        return tokenization, files.fingerprint(tokenizer, tokenization.fields, tokenization.max_tokens)[:16]

    def _check_alike(self, manifests: Sequence[Manifest]) -> None:
        """Refuse categories that cannot stand in one batch."""
        for manifest in manifests[1:]:
            for what in ("image_size", "tokens"):
                if getattr(manifest, what) != getattr(manifests[0], what):
                    raise UserError(
                        f"{self.location.url}: {manifest.category} and {manifests[0].category} differ in {what}; "
                        "run `dvc repro shard` for both with the same parameters"
                    )

    def _check_cache(self) -> None:
        """Refuse a cache that cannot hold the shards read at once: reading would download them again and again."""
        sizes = sorted((shard.bytes + shard.index_bytes for shard in self._shards), reverse=True)
        limit = self.location.cache_bytes
        if self.location.local_path is None and (needed := sum(sizes[:_OPEN])) > limit:
            raise UserError(
                f"{self.location.url}: the {min(_OPEN, len(sizes))} shards read at once take {needed / 1e9:.3g} GB and "
                f"the cache {limit / 1e9:.3g} GB; raise stream.cache_gb"
            )

    def _tar_file(self, shard: int) -> File:
        metadata = self._shards[shard]
        return File(f"{self.categories[shard]}/{metadata.name}", metadata.bytes, metadata.sha256)

    def _index_file(self, shard: int) -> File:
        return index_file(self.categories[shard], self._shards[shard])


def _mapped(tar: Path) -> memoryview:
    """Map a tar, so that no member costs a system call; while open it may be replaced or deleted, but not cut."""
    with tar.open("rb") as file:
        if tar.stat().st_size == 0:  # which cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _kept(opened: OrderedDict[int, Opened], shard: int, open_it: Callable[[int], Opened]) -> Opened:
    """Return an open shard, opening it if need be; the one used longest ago is let go."""
    if shard in opened:
        opened.move_to_end(shard)
        return opened[shard]
    while len(opened) >= _OPEN:
        opened.popitem(last=False)
    opened[shard] = open_it(shard)
    return opened[shard]
