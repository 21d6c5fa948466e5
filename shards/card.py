"""The dataset card: content of the shards, how they were made, known limits, and how to load them.

Input: manifests, and the number of samples with an image (from the indexes). Output: a README.md in the hub's format;
its YAML header lets ``datasets.load_dataset(<folder>)`` find the splits. Guarantees: the same shards give the same
text; every statement follows from the manifests or the code; demo data is labelled as demo data.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from prep.core.errors import UserError, printable
from prep.core.fields import LABELS
from prep.core.parts import TEST, TRAIN, VALIDATION
from prep.core.tables.shards import METADATA_FIELDS, TABULAR
from prep.core.tables.tabular import COLUMNS
from prep.core.templates import render
from shards.index import read_index
from shards.location import ShardLocation, mapped
from shards.manifest import Fraction, Manifest, Shard

CARD_FILE = "README.md"
WithImage = Mapping[tuple[str, str], int]  # number of samples with an image, by category and split

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B")  # bounds of the hub's size categories


class Field(NamedTuple):
    """A key of a sample's JSON."""

    type: str
    unit: str
    meaning: str


FIELDS = {
    "parent_asin": Field("string", "", "id of the product in the source; unique within a category"),
    "category": Field("string", "", "the source file that contains the item; `main_category` may differ"),
    "main_category": Field("string", "", "main category, cleaned"),
    "title": Field("string", "", "title, cleaned"),
    "features": Field("string", "", "the list of features, each cleaned, joined by ` \\| `"),
    "description": Field("string", "", "the paragraphs of the description, each cleaned, joined by a space"),
    "store": Field("string", "", "store, cleaned"),
    "details": Field("string", "", "the attributes of the item as `key: value; key: value`, cleaned"),
    "average_rating": Field("float", "stars, 1 to 5", "**the label**: the mean rating, as stated in the metadata"),
    "rating_number": Field("int", "ratings", "number of ratings in that mean, as stated in the metadata, or 0"),
    "review_count": Field(
        "int", "reviews",
        "number of reviews of the item in the source's review files, 0 if none; collected at another time than "
        "`rating_number`, so the two may differ",
    ),
    "has_image": Field("bool", "", "whether the JPEG shows the product; if not, it is a white 1x1 px placeholder"),
    "tabular": Field("list of float", "", "the numbers below, in this order; null where one is missing"),
}  # fmt: skip

DEMO = "DEMO DATA: "  # before the title of a dataset from the demo catalogue
# The columns of labels that are published without images and texts.
LABEL_FIELDS = {
    name: FIELDS[name] for name in ("parent_asin", "category", "average_rating", "rating_number", "review_count")
} | {"has_image": Field("bool", "", "whether the shards have an image of the product")}


class _Join(msgspec.Struct):
    reviews: Literal["all", "first_by_user"]


class _Groups(msgspec.Struct):
    max_items_per_key: int


class _Sample(msgspec.Struct):
    require: list[str]
    min_chars: int
    fraction: Fraction
    min_per_category: int
    eval_fraction: Fraction
    validation: Fraction
    test: Fraction
    eval_min_per_category: int = 0  # an older version had none


class _Images(msgspec.Struct):
    prefer: Literal["hi_res", "large"]
    request: int
    resolution: int
    fit: Literal["squash", "letterbox", "crop"]
    quality: int
    resample: Literal["bicubic", "bilinear"] = "bicubic"  # an older version had no other


class _Stated(msgspec.Struct):
    """The parameters that the text of a card states."""

    join: _Join
    groups: _Groups
    sample: _Sample
    images: _Images


class _CardRow(NamedTuple):
    """Counts of a set of shards."""

    name: str
    samples: int
    with_image: int
    shards: int
    bytes: int


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the card of a category into the folder of its shards."""
    counted = _count(
        [manifest],
        lambda about, shard: _image_examples(read_index(mapped(folder / shard.index), shard, about.tokens.max_tokens)),
    )
    (folder / CARD_FILE).write_text(dataset_card([manifest], counted, beside=True), encoding="utf-8")


def of_location(
    location: ShardLocation, categories: Sequence[str] | None = None, *, licence: str = "", content: bool = True
) -> str:
    """Return one card for `categories` of a location (default: all), to be placed next to their folders.

    Args:
        location: the shards.
        categories: the categories.
        licence: of the published data, by the hub's name; "" if none is stated.
        content: False if the labels are published as parquet instead of the shards.

    Raises:
        UserError: there is no manifest, an index cannot be read, or the categories were made with different parameters.
    """

    def images(manifest: Manifest, shard: Shard) -> int:
        return _image_examples(location.index(manifest.category, shard, manifest.tokens.max_tokens))

    manifests = [location.manifest(category) for category in categories or location.categories()]
    return dataset_card(manifests, _count(manifests, images), beside=False, licence=licence, content=content)


def dataset_card(
    manifests: Sequence[Manifest], with_image: WithImage, *, beside: bool, licence: str = "", content: bool = True
) -> str:
    """Return a card.

    Args:
        manifests: one per category, all made with the same parameters.
        with_image: see `WithImage`.
        beside: True if the card is in the folder of the tars, False if it is next to the folders of the categories.
        licence: see `of_location`.
        content: see `of_location`.

    Raises:
        UserError: the categories were made with different parameters.
    """
    parameters = _parameters_text(manifests)
    filters = {"code": _code, "number": "{:,}".format, "percent": lambda fraction: f"{100 * fraction:.4g} %"}
    rows = [(m.category, shard) for m in manifests for shard in m.shards]
    splits = [split for split in (TRAIN, VALIDATION, TEST) if any(shard.split == split for _, shard in rows)]
    first, known = manifests[0], {column.name: column for column in COLUMNS}
    try:
        stated = msgspec.convert(first.parameters, _Stated)
    except msgspec.ValidationError as error:
        raise UserError(
            f"the manifest of {first.category} lacks what a card states ({error}); run `dvc repro shard`"
        ) from error
    return render(
        "shards",
        "card.md.jinja",
        {
            "by_category": [_card_row(m.category, [(m.category, s) for s in m.shards], with_image) for m in manifests],
            "by_split": [
                _card_row(split, [(c, s) for c, s in rows if s.split == split], with_image) for split in splits
            ],
            "categories": [m.category for m in manifests],
            "configs": _configs(rows, splits, beside, "-*.tar" if content else ".parquet"),
            "content": content,
            "licence": licence,
            "metadata": {name: FIELDS[name] for name in METADATA_FIELDS if name != TABULAR or first.tabular},
            "columns": LABEL_FIELDS,
            "title": title([m.category for m in manifests], first.source.kind).removeprefix(DEMO),
            "tabular": [(name, known.get(name)) for name in first.tabular],
            "beside": beside,
            "images": stated.images,
            "join": stated.join,
            "labels": [LABELS[field] for field in first.tokens.fields],
            "max_items_per_key": stated.groups.max_items_per_key,
            "parameters": parameters,
            "rules": stated.sample,
            "size": _size_category(sum(shard.samples for _, shard in rows)),
            "source": first.source,
            "total": _card_row("all", rows, with_image),
        },
        filters,
    )


def title(categories: Sequence[str], kind: str) -> str:
    """Return the title of a dataset of these categories, from a source of this kind."""
    of = categories[0] if len(categories) == 1 else f"{len(categories)} categories"
    return f"{DEMO if kind == 'demo' else ''}Product ratings from image and text: {of}"


def _configs(
    rows: Sequence[tuple[str, Shard]], splits: Sequence[str], beside: bool, ending: str
) -> dict[str, dict[str, list[str]]]:
    """Return the files of each split: of all categories, and if there are several, of each."""
    held = sorted({(category, shard.split) for category, shard in rows})
    categories = list(dict.fromkeys(category for category, _ in rows))
    choices = {"default": categories} | ({c: [c] for c in categories} if len(categories) > 1 else {})
    paths = {(c, split): f"{'' if beside else f'{c}/'}{split}{ending}" for c, split in held}
    found = {
        name: {split: [paths[c, split] for c in sorted(chosen) if (c, split) in paths] for split in splits}
        for name, chosen in choices.items()
    }
    return {name: {split: files for split, files in of.items() if files} for name, of in found.items()}


def _image_examples(index: pa.Table) -> int:
    """Return the number of samples in an index that have an image."""
    return int(pc.sum(index["has_image"]).as_py())


def _count(manifests: Sequence[Manifest], images: Callable[[Manifest, Shard], int]) -> WithImage:
    counted: Counter[tuple[str, str]] = Counter()
    for manifest in manifests:
        for shard in manifest.shards:
            counted[manifest.category, shard.split] += images(manifest, shard)
    return counted


def _card_row(name: str, shards: Sequence[tuple[str, Shard]], with_image: WithImage) -> _CardRow:
    pairs = sorted({(category, shard.split) for category, shard in shards})
    return _CardRow(
        name,
        sum(shard.samples for _, shard in shards),
        sum(with_image[pair] for pair in pairs),
        len(shards),
        sum(shard.bytes for _, shard in shards),
    )


def _parameters_text(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Return the parameters of all the manifests by dotted key.

    Raises:
        UserError: the manifests differ in a parameter.
    """
    by_manifest = [
        {"source.kind": m.source.kind, "source.revision": m.source.revision}
        | {f"{section}.{key}": value for section, values in m.parameters.items() for key, value in values.items()}
        | {"text.fields": m.tokens.fields, "text.max_tokens": m.tokens.max_tokens, "tokenizer": m.tokens.tokenizer}
        | {"tabular columns": m.tabular}
        for m in manifests
    ]
    for manifest, found in zip(manifests, by_manifest, strict=True):
        for key in by_manifest[0] | found:
            if found.get(key) != by_manifest[0].get(key):
                raise UserError(
                    f"{manifest.category} was made with {key} {found.get(key)} and {manifests[0].category} with "
                    f"{by_manifest[0].get(key)}; run `dvc repro` for both with the same parameters"
                )
    return by_manifest[0]


def _size_category(samples: int) -> str:
    """Return the hub's size category for a number of samples."""
    power = max(0, len(str(samples)) - 3)
    return f"{_SIZES[power - 1]}<n<{_SIZES[power]}" if power else f"n<{_SIZES[0]}"


def _code(value: Any) -> str:
    """Return a value as a code span that is safe in a Markdown table cell."""
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    shown = printable(" ".join(shown.replace("`", "'").replace("|", "\\|").split()))
    return f"`{shown}`" if shown else "(empty)"
