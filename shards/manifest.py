"""The manifest of a category's shards: what each holds, and the parameters and source revision it was made from.

In: ``manifest.json``. Out: a `Manifest`. Guaranteed: names are those that `shards.shard` gives, so that none leads out
of the folder; an unknown format is refused.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from prep.core.errors import UserError
from prep.core.params import rename_keys

FORMAT = 4  # raise it when a reader of before would misread a manifest or an index
_READABLE = (2, 3, FORMAT)
MANIFEST_FILE = "manifest.json"
# The parameters that a manifest states: those that the samples depend on.
STATED = (
    *("join", "groups", "sample", "shards", "images.prefer", "images.request", "images.resolution", "images.fit"),
    "images.quality",
)
# What decides in which split an item stands, by dotted key: a section, or a parameter of one.
OF_SPLITS = ("source", "join", "groups", "sample.salt", "sample.validation", "sample.test")

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
PositiveInt = Annotated[int, Meta(ge=1)]


class Shard(Struct, frozen=True):
    """One tar and its index."""

    name: Annotated[str, Meta(pattern=r"^[a-z]+(-[0-9]+)+\.tar$")]
    split: str
    band: int | None  # of the training split
    samples: PositiveInt
    bytes: PositiveInt
    sha256: Sha256
    index_bytes: PositiveInt
    index_sha256: Sha256

    @property
    def index(self) -> str:
        """The name of its index."""
        return self.name.removesuffix(".tar") + ".arrow"

    @property
    def part(self) -> str:
        """The part of the sample it holds items of."""
        return self.name.rpartition("-")[0]


class Source(Struct, frozen=True):
    """Where the raw files came from."""

    kind: str
    revision: str


class Tokenization(Struct, frozen=True):
    """How the token ids of the indexes were made."""

    tokenizer: str  # its fingerprint
    fields: tuple[str, ...]
    max_tokens: int


class Manifest(Struct, frozen=True):
    """What the shards of one category are."""

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
    """Read a manifest.

    Args:
        content: JSON.
        where: it came from, for the sentence.

    Raises:
        UserError: it is no manifest, or one of another format.
    """
    try:
        form = msgspec.json.decode(content, type=dict[str, Any]).get("format")
        if form not in _READABLE:
            raise UserError(
                f"{where} has format {form!r} and this version reads {', '.join(map(str, _READABLE))}; run "
                "`dvc repro shard`, or use the version of EffiMini that wrote it"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
        if form != FORMAT:
            rename_keys(manifest.parameters)
        return manifest
    except msgspec.DecodeError as error:
        raise UserError(f"{where} is no manifest ({error}); run `dvc checkout`, or `dvc repro shard`") from None
