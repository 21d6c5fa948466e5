"""The manifest of a category's shards: their files, and the parameters and source revision they were made from.

Input: ``manifest.json``, which strangers may have written. Output: a `Manifest`. Guarantees: every value has its type
and a bound; file names match the pattern of `shards.shard`, so none points outside the folder; an unknown format is
rejected.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from prep.core.errors import UserError
from prep.core.fields import LABELS
from prep.core.formats import VERSION, check_format
from prep.core.params import rename_keys
from prep.core.parts import TEST, TRAIN, VALIDATION

FORMAT = 5  # increment it when an older reader would misread a manifest or an index
_READABLE = (2, 3, 4, FORMAT)  # before 5, shards have no tabular columns
# The first version of EffiMini that reads FORMAT; set it when FORMAT is incremented. Unset, so that no byte of the
# manifests of this format changes: 0.1.0.
NEEDS: str | UnsetType = UNSET
MANIFEST_FILE = "manifest.json"
LIMIT = 100_000_000  # bytes of a manifest that are read; one of 100,000 shards has a third of it
# The parameters that a manifest records: those that the samples depend on.
STATED = (
    *("join", "groups", "sample", "shards", "images.prefer", "images.request", "images.resolution", "images.fit"),
    *("images.resample", "images.quality", "decontaminate"),
)
# What decides the split of an item, by dotted key: a section, or a parameter of a section.
OF_SPLITS = ("source", "join", "groups", "sample.split", "sample.salt", "sample.validation", "sample.test")

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
CATEGORY = r"[A-Za-z0-9_]{1,100}"  # its name, and so that of its folder
Name = Annotated[str, Meta(pattern=rf"^{CATEGORY}\Z")]
Text = Annotated[str, Meta(max_length=1000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Bytes = Annotated[int, Meta(ge=1, le=2**40)]  # of a file
_Scalar = bool | Annotated[int, Meta(ge=-(2**53), le=2**53)] | float | Text | None
_Field = Annotated[str, Meta(pattern=rf"^({'|'.join(LABELS)})\Z")]
_LEAST_SAMPLE = 2048  # bytes of a sample in a tar: two headers, and a block of each member


class Shard(Struct, frozen=True):
    """One tar and its index."""

    name: Annotated[str, Meta(pattern=r"^[a-z]+(-[0-9]+)+\.tar\Z", max_length=100)]
    split: Annotated[str, Meta(pattern=rf"^({TRAIN}|{VALIDATION}|{TEST})\Z")]
    band: Annotated[int, Meta(ge=0, le=1000)] | None  # only in the training split
    samples: Annotated[int, Meta(ge=1, le=2**30)]
    bytes: Bytes
    sha256: Sha256
    index_bytes: Bytes
    index_sha256: Sha256

    @property
    def index(self) -> str:
        """File name of its index."""
        return self.name.removesuffix(".tar") + ".arrow"

    @property
    def part(self) -> str:
        """The part of the sample that its items belong to."""
        return self.name.rpartition("-")[0]


class Source(Struct, frozen=True):
    """The source of the raw files."""

    kind: Literal["demo", "mirror", "hub", "table"]
    revision: Text


class Tokenization(Struct, frozen=True):
    """How the token ids of the indexes were made."""

    tokenizer: Sha256  # fingerprint
    fields: Annotated[tuple[_Field, ...], Meta(min_length=1, max_length=100)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**16)]


class Manifest(Struct, frozen=True):
    """The shards of one category."""

    format: int
    category: Name
    source: Source
    parameters: dict[Name, dict[Name, _Scalar | list[_Scalar]]]  # `STATED`, by section
    tokens: Tokenization
    shards: Annotated[tuple[Shard, ...], Meta(min_length=1, max_length=1_000_000)]
    tabular: Annotated[tuple[Name, ...], Meta(max_length=1000)] = ()  # names of the tabular columns, in order
    needs: Annotated[str, Meta(pattern=rf"^{VERSION}\Z")] | UnsetType = NEEDS  # version of EffiMini, to read it

    @property
    def image_size(self) -> int:
        """Height and width of the images, px."""
        return int(_read(self).images.resolution)

    @property
    def fraction(self) -> float | None:
        """Fraction of the training items; None if it is not recorded."""
        return _read(self).sample.fraction


class _Images(Struct):
    resolution: Annotated[int, Meta(ge=1, le=1024)]


class _Sample(Struct):
    fraction: Fraction | None = None


class _Read(Struct):
    """The parameters that a reader needs."""

    images: _Images
    sample: _Sample = msgspec.field(default_factory=_Sample)


def _read(about: Manifest) -> _Read:
    return msgspec.convert(about.parameters, _Read)


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Parse a manifest.

    Args:
        content: JSON.
        where: file name for messages.

    Raises:
        UserError: it is not a manifest, or has an unknown format.
    """
    try:
        check_format(content, _READABLE, where, "make the shards again with `dvc repro shard`")
        manifest = msgspec.json.decode(content, type=Manifest)
        if manifest.format != FORMAT:
            rename_keys(manifest.parameters)
        _read(manifest)
        return manifest
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{where} is not a manifest ({error}); run `dvc checkout` or `dvc repro shard`") from None


def problems(about: Manifest, category: str) -> Iterator[str]:
    """Yield what the manifest of the folder `category` states wrongly: its category, and the shards that it lists."""
    if about.category != category:
        yield f"is of category {about.category!r}"
    for name, count in Counter(about.tabular).items():
        if count > 1:
            yield f"names the tabular column {name} {count} times"
    for name, count in Counter(shard.name for shard in about.shards).items():
        if count > 1:
            yield f"names {name} {count} times"
    for shard in about.shards:
        if shard.part != (shard.split if shard.band is None else f"{shard.split}-{shard.band:02d}"):
            yield f"has {shard.name} in split {shard.split}, band {shard.band}"
        if shard.samples * _LEAST_SAMPLE > shard.bytes:
            yield f"has {shard.name} with {shard.samples:,} samples in {shard.bytes:,} bytes"
