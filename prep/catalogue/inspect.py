"""Propose how the columns of a table map to the fields of an item, and count what would be dropped.

Input: a table, and the choices that a user has made.
Output: the mapping, the categories, and the rows that a run would use and drop, by reason.
Guarantees: the whole table is read, by the functions that the pipeline uses; nothing is stored.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Group
from rich.markup import escape
from rich.table import Table as Printed

from prep import records, sample
from prep.catalogue import mapping
from prep.catalogue.convert import line, table_rows
from prep.catalogue.rows import Row, Table, open_table
from prep.core import progress
from prep.core.errors import UserError, shown
from prep.core.params import Params, parse_params

_LOOKED_AT = 1000  # rows whose cells say what a column may be
_ROWS = 1000  # rows parsed at once
_SIMILAR = ("title", "average_rating", "rating_number", "description", "price")  # fields whose names may be longer
_SHORT = 3  # letters of a name that may be in another word
_LONGEST_ID = 120  # characters
_NAMED = 20  # categories that are printed
_SCALES = ((1.0, 5.0), (0.0, 10.0), (0.0, 100.0))
_IMAGE = re.compile(r"(?:https?://\S+|\S.*\.(?:jpe?g|png|webp|gif|avif|bmp|tiff?))", re.IGNORECASE)

# Names that tables use, of letters and digits only; the first one that a table has is proposed.
_NAMES: dict[str, str] = {
    "parent_asin": "parentasin asin id sku productid itemid uniqid uniqueid productcode itemcode article articleid ean "
    "gtin upc isbn handle code key",
    "title": "title name productname itemname producttitle itemtitle displayname shortname product item",
    "average_rating": "averagerating avgrating meanrating rating ratings stars starrating reviewrating productrating "
    "avgstars score reviewscore userrating customerrating ratingvalue",
    "rating_number": "ratingnumber ratingcount ratingscount numratings numberofratings nratings noofratings "
    "totalratings numreviews numberofreviews reviewcount reviewscount reviewnumber noofreviews "
    "totalreviews reviews votes votecount ratings count n",
    "images": "images image imageurl imageurls imagelink imglink img imgurl photo photos photourl picture pictures "
    "pictureurl thumbnail thumbnailurl imagepath imagepaths imagefile filename mainimage primaryimage",
    "category": "category department maincategory categoryname producttype section productcategory genre",
    "main_category": "maincategory category department categoryname producttype section productcategory genre",
    "features": "features about aboutproduct bulletpoints bullets highlights keyfeatures featurebullets",
    "description": "description productdescription desc longdescription shortdescription summary text body",
    "store": "store brand manufacturer vendor seller maker brandname publisher",
    "price": "price saleprice currentprice discountedprice discountprice amount actualprice listprice cost",
    "categories": "categories categorypath breadcrumbs breadcrumb subcategory subcategories tags",
    "date": "date datefirstavailable firstavailable listed listedat created createdat launchdate releasedate released "
    "dateadded published publishedat year",
    "details": "details specifications specs attributes technicaldetails productdetails",
}


class TableColumn(msgspec.Struct, frozen=True):
    """A column of the table, as its first rows have it."""

    column: str
    filled: float  # fraction of the rows
    example: str
    fields: list[str]  # that it is mapped to


class Inspection(msgspec.Struct, frozen=True):
    """What a table has, and what a run would make of it."""

    location: str
    columns: list[TableColumn]
    rating_scale: list[float]
    rows: int
    categories: dict[str, int]  # rows by category
    images: dict[str, int]  # by kind: url, path, bytes, missing (paths without a file)
    usable: int
    dropped: dict[str, int]  # rows by reason
    examples: dict[str, str]  # what was found, of reasons of the parser


def inspect(
    location: str,
    content: Any,
    where: Path,
    chosen: Mapping[str, Sequence[str]],
    scale: Sequence[float] | None = None,
    image_folder: str = "",
) -> Inspection:
    """Return what a table has, and write into `content` the parameters with which a run reads it.

    Args:
        location: ``source.location``.
        content: the content of a parameter file; its filter of the sample decides what is dropped.
        where: the file, for messages.
        chosen: columns by field, in place of what would be proposed; without columns the field is left out.
        scale: the lowest and the highest rating; None to propose one.
        image_folder: ``source.table.image_folder``.

    Raises:
        UserError: the table cannot be read, a name in `chosen` is unknown, or no id or rating can be found.
    """
    table = open_table(location)
    _check(location, table, chosen)
    first = [row for row in islice(table.rows(table.columns), _LOOKED_AT) if isinstance(row, dict)]
    proposed = _propose(table.columns, first, chosen)
    columns = {name: list(chosen.get(name, proposed.get(name, ()))) for name in mapping.FIELDS}
    columns = {name: found for name, found in columns.items() if found}
    for name, what in {"parent_asin": "ids", "average_rating": "average ratings"}.items():
        if name not in columns:
            raise UserError(
                f"no column of {location} looks like {what}; name it with --map {name}=COLUMN; the columns are "
                f"{', '.join(table.columns)}"
            )
    scale = list(scale or _scale(_cells(first, columns["average_rating"][0])))
    _write(content, location, columns, scale, image_folder)
    found = _Count(table, columns, parse_params(content, where))
    if "category" in columns:
        content["source"]["categories"] = [*found.categories]
    return Inspection(
        location=location,
        columns=[_column(name, first, columns) for name in table.columns],
        rating_scale=scale,
        rows=found.rows,
        categories=found.categories,
        images=dict(found.images),
        usable=found.rows - found.dropped.total(),
        dropped=dict(found.dropped.most_common()),
        examples=found.examples,
    )


def inspection_table(found: Inspection) -> Group:
    """Return the result of `inspect` as tables to print."""
    columns = Printed("column", "filled", "example", "field", title=found.location)
    for one in found.columns:
        columns.add_row(escape(one.column), f"{one.filled:.0%}", escape(one.example), ", ".join(one.fields))
    rows = Printed("rows", "", "for example", title="what a run would use")
    rows.add_row("used", f"{found.usable:,}")
    for reason, count in found.dropped.items():
        rows.add_row(reason, f"{count:,}", escape(found.examples.get(reason, "")))
    counts = ", ".join(f"{escape(name)} {count:,}" for name, count in islice(found.categories.items(), _NAMED))
    images = ", ".join(f"{name} {count:,}" for name, count in found.images.items()) or "none"
    rows.caption = (
        f"ratings from {found.rating_scale[0]:g} to {found.rating_scale[1]:g}; categories: {counts}; images: {images}"
    )
    return Group(columns, rows)


class _Count:
    """Reads a whole table and counts."""

    def __init__(self, table: Table, columns: Mapping[str, Sequence[str]], params: Params) -> None:
        self.rows = 0
        self.images: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._folder = params.source.table.image_folder or table.folder
        location = params.source.location
        categories: Counter[str] = Counter()
        seen: set[str] = set()
        left = iter(progress.bar(table_rows(table, params.source), location, total=0))
        while rows := list(islice(left, _ROWS)):
            lines = b"".join(line(row, params.source.table, self._image) for row in rows)
            items, rejects = records.parse_lines("items", lines, self.rows + 1)
            self.rows += len(rows)
            for reject in rejects:
                self.dropped[reject.reason] += 1
                self.examples.setdefault(reject.reason, reject.found and f"row {reject.line}: {reject.found}")
            self.dropped.update(sample.unusable(items, params))
            ids = items["parent_asin"].to_pylist()
            self.dropped["duplicate_id"] += len(ids) - len(set(ids) - seen)
            seen.update(ids)
            if "category" in columns:
                names = (
                    mapping.category_name(row.get(columns["category"][0])) for row in rows if isinstance(row, dict)
                )
                categories.update(names)
        self.dropped = +self.dropped
        if "short_text" in self.dropped:
            self.examples["short_text"] = f"sample.min_chars is {params.sample.min_chars}"
        self.categories = dict(sorted(categories.items())) or {params.source.categories[0]: self.rows}

    def _image(self, found: Sequence[object]) -> str | None:
        """Count the image of an item, and return that it has one."""
        chosen = mapping.chosen_image(found, self._folder)
        if chosen is None:
            return None
        if isinstance(chosen, bytes):
            kind = "bytes"
        elif not mapping.image_name(chosen, self._folder).startswith(mapping.HOST):
            kind = "url"
        else:
            kind = "path" if mapping.is_file(chosen, self._folder) else "missing"
        self.images[kind] += 1
        return f"{mapping.HOST}{kind}"


def _check(location: str, table: Table, chosen: Mapping[str, Sequence[str]]) -> None:
    """Check the names that a user chose.

    Raises:
        UserError: one is unknown.
    """
    for name, columns in chosen.items():
        if name not in mapping.FIELDS:
            raise UserError(f"--map {name} is not a field; the fields are {', '.join(mapping.FIELDS)}")
        if missing := [column for column in columns if column not in table.columns]:
            known = ", ".join(table.columns)
            raise UserError(f"--map {name}={missing[0]}: {location} has no such column; its columns are {known}")


def _propose(
    columns: Sequence[str], rows: Sequence[Row], chosen: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return a column for each field that one looks like."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(columns)}
    taken = {column for given in chosen.values() for column in given}
    found: dict[str, tuple[str, ...]] = {}
    for field, names in _NAMES.items():
        named = [plain[name] for name in names.split() if name in plain]
        if field in _SIMILAR:
            named += [plain[own] for name in names.split() for own in plain if name in own and len(name) > _SHORT]
        if field == "images":
            named += [name for name in columns if name not in named]
        fits = _FITS.get(field, any)
        free = (name for name in named if name not in taken or field == "main_category")
        if field not in chosen and (column := next((name for name in free if fits(_cells(rows, name))), None)):
            found[field] = (column,)
            taken.add(column)
    ids = (name for name in columns if name not in taken and _are_ids(_cells(rows, name)))
    if "parent_asin" not in {*chosen, *found} and (column := next(ids, None)):
        found["parent_asin"] = (column,)
    return found


def _cells(rows: Sequence[Row], column: str) -> list[Any]:
    """Return the cells of a column that are not empty."""
    return [cell for row in rows if (cell := row.get(column)) is not None]


def _are_ids(cells: Sequence[Any]) -> bool:
    texts = list(map(str, cells))
    short = all(len(text) <= _LONGEST_ID for text in texts) and not any(
        isinstance(cell, (float, bytes)) for cell in cells
    )
    return bool(texts) and short and len(set(texts)) > 0.9 * len(texts)


def _are_ratings(cells: Sequence[Any]) -> bool:
    numbers = _numbers(cells)
    return len(numbers) > 0.5 * len(cells) and max(numbers) <= _SCALES[-1][1]


def _are_counts(cells: Sequence[Any]) -> bool:
    numbers = _numbers(cells)
    return len(numbers) > 0.5 * len(cells) and all(number == int(number) for number in numbers)


def _are_images(cells: Sequence[Any]) -> bool:
    images = [one for cell in cells for one in islice(mapping.images_in(cell), 1)]
    found = [one for one in images if isinstance(one, bytes) or (isinstance(one, str) and _IMAGE.fullmatch(one))]
    return len(found) > 0.5 * len(cells)


_FITS: dict[str, Callable[[Sequence[Any]], bool]] = {
    "parent_asin": _are_ids,
    "average_rating": _are_ratings,
    "rating_number": _are_counts,
    "images": _are_images,
}


def _numbers(cells: Sequence[Any]) -> list[float]:
    found = (mapping.number(cell) for cell in cells)
    return [number for number in found if isinstance(number, (int, float)) and not isinstance(number, bool)]


def _scale(cells: Sequence[Any]) -> Sequence[float]:
    """Return the scale of ratings: the smallest known one that holds them."""
    highest = max(_numbers(cells), default=5.0)
    return next((scale for scale in _SCALES if highest <= scale[1]), _SCALES[-1])


def _column(name: str, rows: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> TableColumn:
    cells = _cells(rows, name)
    example = shown(cells[0]) if cells else ""
    if cells and isinstance(cells[0], (bytes, Mapping)):
        image = next(mapping.images_in(cells[0]), None)
        example = f"{len(image):,} bytes" if isinstance(image, bytes) else example
    fields = [field for field, given in columns.items() if name in given]
    return TableColumn(name, len(cells) / max(1, len(rows)), example, fields)


def _write(
    content: Any, location: str, columns: Mapping[str, list[str]], scale: Sequence[float], image_folder: str
) -> None:
    """Set the parameters in the content of a parameter file."""
    names = {field: found[0] if len(found) == 1 else found for field, found in columns.items()}
    source = {"kind": "table", "location": location, "metadata": "jsonl", "reviews": False}
    content["source"].update(source)
    content["source"]["table"].update({"columns": names, "rating_scale": list(scale), "image_folder": image_folder})
    content["source"]["categories"] = ["Products"]
    required = {"title": "title", "rating_number": "rating_number", "images": "image"}
    content["sample"]["require"] = ["average_rating", *(name for field, name in required.items() if field in columns)]
    content["sample"]["fraction"] = 1.0
    if "rating_number" not in columns:
        content["weights"]["count"] = "none"
    elif content["weights"]["count"] == "review_count":
        content["weights"]["count"] = "rating_number"
