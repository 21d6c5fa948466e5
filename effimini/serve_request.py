"""A request for predictions, from its body to validated items.

Input: the fields of a form with an image, or JSON, with one item or many. Output: items as `effimini predict` reads
them from a row of a CSV file, and the options. Guarantees: an unknown field, a value of another type, and an image that
cannot be read are errors of one sentence that names the item; no file of this machine is read.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec

from effimini.model import Config
from effimini.predict import Item, Pixels, item_of, not_count, not_text, training_pixels
from prep.core.errors import UserError, first_sentence, shown
from prep.core.text import present
from shards.images.pixels import Unusable

_Text: TypeAlias = str | None
_List: TypeAlias = str | list[str | None] | None
_Counted: TypeAlias = int | float | str | list[Any] | dict[str, Any] | None


class _Fields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An item as JSON; the fields are columns of the input of `predict`, with values of the dataset's types."""

    parent_asin: _Text = None
    main_category: _Text = None
    title: _Text = None
    features: _List = None
    description: _List = None
    store: _Text = None
    details: str | dict[str, Any] | None = None
    price: int | float | str | None = None
    images: _Counted = None
    videos: _Counted = None
    categories: _List = None
    rating_number: int | float | str | None = None
    image: _Text = None  # base64


class _Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a request may ask for besides scores."""

    interval: float | None = None
    ratings: int | None = None
    strict: bool = True


class _One(_Fields, kw_only=True, forbid_unknown_fields=True):
    """A request for one item: its fields, and those of `_Options`."""

    interval: float | None = None
    ratings: int | None = None
    strict: bool = True


class _Many(_Options, kw_only=True, forbid_unknown_fields=True):
    """A request for many items."""

    items: list[_Fields]


class Asked(NamedTuple):
    """A request of the right form, whose values are not validated yet."""

    rows: list[dict[str, str]]  # cells by column
    images: list[bytes | str | None]  # files, or their base64
    many: bool
    interval: float | None
    ratings: int | None
    strict: bool


def of_json(body: bytes) -> Asked:
    """Read a request in JSON.

    Raises:
        msgspec.DecodeError: it is not JSON.
        UserError: it is JSON of another form.
    """
    try:
        content = msgspec.json.decode(body)
    except msgspec.ValidationError as error:  # a number out of range
        raise msgspec.DecodeError(str(error)) from None
    except RecursionError:
        raise msgspec.DecodeError("it nests too deeply") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8 at byte {error.start}") from None
    many = isinstance(content, dict) and "items" in content
    try:
        asked = msgspec.convert(content, _Many) if many else msgspec.convert(content, _One)
    except msgspec.ValidationError as error:
        raise UserError(f"the request is not as documented: {first_sentence(error)}; correct that field") from None
    items = asked.items if isinstance(asked, _Many) else [asked]
    return _asked(items, [item.image for item in items], many, asked)


def of_form(fields: Sequence[tuple[str, str]], image: bytes | None) -> Asked:
    """Read a request from the fields of a form, without the field image, and an uploaded image.

    Raises:
        UserError: a field is unknown or repeated, or an option is of another type.
    """
    content = dict(fields)
    if len(content) < len(fields):
        raise UserError("a field is repeated; give each once, or post many items as JSON")
    given = {name: content.pop(name) for name in _Options.__struct_fields__ if name in content}
    try:
        options = msgspec.convert({name: text for name, text in given.items() if text}, _Options, strict=False)
        item = msgspec.convert(content, _Fields)
    except msgspec.ValidationError as error:
        raise UserError(f"the form is not as documented: {first_sentence(error)}; correct that field") from None
    return _asked([item], [image or item.image], False, options)


def _asked(items: Sequence[_Fields], images: list[Any], many: bool, options: _One | _Options) -> Asked:
    names = [name for name in _Fields.__struct_fields__ if name != "image"]
    rows = [{name: _cell(getattr(item, name)) for name in names} for item in items]
    for number, row in enumerate(rows, 1):
        row["parent_asin"] = row["parent_asin"].strip() or str(number)
    return Asked(rows, images, many, options.interval, options.ratings, options.strict)


def _cell(value: object) -> str:
    """Return a value as a cell of the CSV file."""
    if value is None or isinstance(value, str):
        return present(value)
    return msgspec.json.encode(value).decode()


def read_items(asked: Asked, config: Config) -> list[Item]:
    """Validate the rows and decode the images.

    Raises:
        UserError: an id is repeated, a list contains values other than strings, a count is not a whole number, an
            image is not base64, or it cannot be read and the request is strict; the message names the item.
    """
    counts = asked.interval is not None and asked.ratings is None
    first: dict[str, int] = {}
    for number, row in enumerate(asked.rows, 1):
        if (before := first.setdefault(row["parent_asin"], number)) != number:
            raise UserError(
                f"items {before} and {number} both have the parent_asin {shown(row['parent_asin'])}; "
                "give each item its own"
            )
        if (found := not_text(row)) is not None:
            raise UserError(
                f"item {number} has features or a description that is no text or list of texts, {found}; correct it"
            )
        if counts and (found := not_count(row)) is not None:
            raise UserError(
                f"the rating_number of item {number} is no whole number, {found}; correct it or leave it out"
            )
    return [
        item_of(row, config, counts, *_image(image, config, number, asked.strict))
        for number, (row, image) in enumerate(zip(asked.rows, asked.images, strict=True), 1)
    ]


def _image(sent: bytes | str | None, config: Config, number: int, strict: bool) -> tuple[Pixels | None, str]:
    """Return the pixels of an image, or None and what is wrong with it."""
    if not sent:
        return None, ""
    try:
        data = base64.b64decode(sent, validate=True) if isinstance(sent, str) else sent
    except (binascii.Error, ValueError) as error:
        raise UserError(
            f"the image of item {number} is not base64 ({first_sentence(error)}); encode the bytes of its file, or "
            "upload the file in a form"
        ) from None
    try:
        return training_pixels(data, config), ""
    except (Unusable, OSError) as error:
        if strict:
            raise UserError(
                f"the image of item {number} cannot be read ({error}); send another file, or none"
            ) from None
        return None, str(error)
