"""The manifest of a category's shards: their files, and the parameters and source revision they were made from.

Input: ``manifest.json``. Output: a `Manifest`. Guarantees: file names match the pattern of `shards.shard`, so none
points outside the folder; an unknown format is rejected.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from prep.core.errors import UserError
from prep.core.params import rename_keys

FORMAT = 4  # increment it when an older reader would misread a manifest or an index
_READABLE = (2, 3, FORMAT)
MANIFEST_FILE = "manifest.json"
# The parameters that a manifest records: those that the samples depend on.
STATED = (
    *("join", "groups", "sample", "shards", "images.prefer", "images.request", "images.resolution", "images.fit"),
    *("images.quality", "decontaminate"),
)
# What decides the split of an item, by dotted key: a section, or a parameter of a section.
OF_SPLITS = ("source", "join", "groups", "sample.salt", "sample.validation", "sample.test")

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
PositiveInt = Annotated[int, Meta(ge=1)]


class Shard(Struct, frozen=True):
    """One tar and its index."""

    name: Annotated[str, Meta(pattern=r"^[a-z]+(-[0-9]+)+\.tar$")]
    split: str
    band: int | None  # only in the training split
    samples: PositiveInt
    bytes: PositiveInt
    sha256: Sha256
    index_bytes: PositiveInt
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

    kind: str
    revision: str


class Tokenization(Struct, frozen=True):
    """How the token ids of the indexes were made."""

    tokenizer: str  # fingerprint
    fields: tuple[str, ...]
    max_tokens: int


class Manifest(Struct, frozen=True):
    """The shards of one category."""

    format: int
    category: str
    source: Source
    parameters: dict[str, Any]  # `STATED`, by section
    tokens: Tokenization
    shards: Annotated[tuple[Shard, ...], Meta(min_length=1)]

    @property
    def image_size(self) -> int:
        """Height and width of the images, px."""
        return int(self.parameters["images"]["resolution"])


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Parse a manifest.

    Args:
        content: JSON.
        where: file name for messages.

    Raises:
        UserError: it is not a manifest, or has an unknown format.
    """
    try:
        version = msgspec.json.decode(content, type=dict[str, Any]).get("format")
        if version not in _READABLE:
            raise UserError(
                f"{where} has format {version!r} and this version reads {', '.join(map(str, _READABLE))}; run "
                "`dvc repro shard`, or use the version of EffiMini that wrote it"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
        if version != FORMAT:
            rename_keys(manifest.parameters)
        return manifest
    except msgspec.DecodeError as error:
        raise UserError(f"{where} is not a manifest ({error}); run `dvc checkout` or `dvc repro shard`") from None
