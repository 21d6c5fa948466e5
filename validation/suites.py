"""What each table must hold: the expectations, declared.

In: the parameters and a category. Out: a `Suite` a table, whose rules carry the names and arguments of
Great Expectations' own classes. Nothing is run here and Great Expectations is not imported.

Besides its rules every suite expects the columns and types of `prep.core.tables`, no null in a column declared
required there, and, where it has a key, that the key is unique over all files of the category.
"""

from typing import Any, NamedTuple

import pyarrow as pa

from prep.core.params import Limits, Params
from prep.core.parts import TEST, TRAIN, VALIDATION
from prep.core.tables.groups import GROUPS
from prep.core.tables.images import IMAGES, OUTCOMES
from prep.core.tables.items import JOINED
from prep.core.tables.predictions import PREDICT_INPUT as INPUT_ROWS
from prep.core.tables.predictions import PREDICTIONS
from prep.core.tables.raw import ASIN, ITEMS, REJECTS, REVIEWS
from prep.core.tables.sample import SAMPLE, TEXTS
from prep.core.tables.shards import INDEX

# The dataset begins in May 1996; a time in seconds instead of milliseconds lies before 1995.
TIMES = (788_918_400_000, 4_102_444_800_000)  # 1995 to 2100, ms since 1970
LONGEST = 20_000  # characters of a text; the hub's have a few thousand


class Rule(NamedTuple):
    """One expectation: its name in gate files and sentences, and the class that checks it."""

    name: str
    kind: str
    arguments: dict[str, Any]
    fail_above: float = 0.0  # of the rows that may break it; more stop the run
    warn_above: float = 0.0  # of the rows that may break it without a warning

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it looks at."""
        return tuple(value for key, value in self.arguments.items() if key.startswith("column"))


class Suite(NamedTuple):
    """What a table must hold."""

    schema: pa.Schema
    label: tuple[str, ...]  # the columns that name a row to the user
    key: tuple[str, ...]  # the columns that are unique together; none: rows may repeat
    rules: tuple[Rule, ...]


def not_null(column: str, limits: Limits | None = None) -> Rule:
    """Every row has a value; `limits` are the shares that may lack one."""
    kind, arguments = "ExpectColumnValuesToNotBeNull", {"column": column}
    if limits is None:
        return Rule(f"{column} not null", kind, arguments)
    return Rule(
        f"{column} present (validation.null_fraction.{column})", kind, arguments, limits.fail_above, limits.warn_above
    )


def not_empty(name: str, *columns: str, limits: Limits | None = None) -> Rule:
    """One of the texts or lists `columns` is not empty; `limits` are the shares of rows where all may be."""
    words = f"{name} present" + ("" if limits is None else f" (validation.null_fraction.{name})")
    fail_above, warn_above = (0.0, 0.0) if limits is None else (limits.fail_above, limits.warn_above)
    return Rule(words, "ExpectColumnValuesToBeBetween", _sized(1, None, *columns), fail_above, warn_above)


def at_most(size: int, column: str, limits: Limits) -> Rule:
    """A text has not more than `size` characters; `limits` are the shares of longer ones."""
    words = f"{column} of at most {size} characters (validation.long_text_fraction)"
    return Rule(
        words, "ExpectColumnValuesToBeBetween", _sized(None, size, column), limits.fail_above, limits.warn_above
    )


def sized(column: str, low: int, high: int) -> Rule:
    """A list has from `low` to `high` elements."""
    return Rule(f"{low} to {high} {column}", "ExpectColumnValuesToBeBetween", _sized(low, high, column))


def _sized(low: int | None, high: int | None, *columns: str) -> dict[str, Any]:
    return {"column": f"size of {' + '.join(columns)}", "min_value": low, "max_value": high}


def between(column: str, low: float, high: float | None = None, fail_above: float = 0.0) -> Rule:
    """Every value there is lies in [low, high]."""
    words = f"{column} at least {low}" if high is None else f"{column} between {low} and {high}"
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Rule(words, "ExpectColumnValuesToBeBetween", arguments, fail_above)


def one_of(column: str, values: tuple[str, ...]) -> Rule:
    """Every value is one of `values`."""
    words = f"{column} one of {', '.join(values)}"
    return Rule(words, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)})


def matches(column: str, regex: str) -> Rule:
    """Every value matches `regex`."""
    return Rule(f"{column} like {regex}", "ExpectColumnValuesToMatchRegex", {"column": column, "regex": regex})


def ordered(low: str, high: str) -> Rule:
    """Where both have a value, that of `low` is not above that of `high`."""
    arguments = {
        "column_A": high,
        "column_B": low,
        "or_equal": True,
        "ignore_row_if": "either_value_is_missing",
    }
    return Rule(f"{low} at most {high}", "ExpectColumnPairValuesAToBeGreaterThanB", arguments)


def none(column: str, words: str) -> Rule:
    """No row has a value, which would say what is wrong with it."""
    return Rule(words, "ExpectColumnValuesToBeNull", {"column": column})


def _suite(schema: pa.Schema, label: tuple[str, ...], key: tuple[str, ...], *rules: Rule) -> Suite:
    required = (not_null(field.name) for field in schema if not field.nullable)
    return Suite(schema, label, key, (*required, *rules))


# What comes from outside at prediction time, as `effimini.predict` lays it out.
PREDICT_INPUT_SUITE = _suite(
    INPUT_ROWS,
    ("line",),
    ("parent_asin",),
    not_null("parent_asin"),
    none("not_text", "features and description as text or lists of texts"),
    none("outside", "image paths that stay in the images folder"),
    none("missing", "images that exist"),
)


def suite(table: str, params: Params, category: str = "") -> Suite:
    """Return the suite of a table of `category`.

    Raw rows stand as they came, so that a share of them, ``download.max_bad_fraction``, may be out of range;
    join and sample drop those. What a source may lack is judged on the joined items, one row an item.

    Args:
        table: its name in gate files: items, reviews, rejects, joined, groups, sample, images, index, predictions.
        params: those that the table's gate reads (`validation.checks.GATES`).
        category: a name of ``source.categories``; predictions are of all.
    """
    return SUITES[table](params, category)


_ASIN = ("parent_asin",)


def _items_suite(params: Params, _: str) -> Suite:
    bad = params.download.max_bad_fraction
    return _suite(
        ITEMS,
        _ASIN,
        ("line",),
        matches("parent_asin", ASIN),
        between("line", 1),
        between("average_rating", 0, 5, fail_above=bad),
        between("rating_number", 0, fail_above=bad),
        matches("details", r"^\{"),
    )


def _reviews_suite(params: Params, _: str) -> Suite:
    bad = params.download.max_bad_fraction
    return _suite(
        REVIEWS,
        _ASIN,
        (),
        matches("parent_asin", ASIN),
        between("rating", 0, 5, fail_above=bad),  # the dataset has a row with 0.0
        between("timestamp", *TIMES, fail_above=bad),
    )


def _rejects_suite(_: Params, __: str) -> Suite:
    return _suite(REJECTS, ("file", "line"), ("file", "line"), between("line", 1))


def _joined_suite(params: Params, _: str) -> Suite:
    bad, absent = params.download.max_bad_fraction, params.validation.null_fraction
    return _suite(
        JOINED,
        _ASIN,
        _ASIN,
        matches("parent_asin", ASIN),
        between("average_rating", 0, 5, fail_above=bad),
        between("rating_number", 0, fail_above=bad),
        between("review_count", 0),
        between("review_mean", 1, 5),
        between("review_spread", 0, 2),
        between("verified_share", 0, 1),
        ordered("first_review", "last_review"),
        not_null("average_rating", absent.average_rating),
        not_null("rating_number", absent.rating_number),
        *(not_empty(name, name, limits=getattr(absent, name)) for name in TEXTS),
        not_empty("image", "hi_res", "large", limits=absent.image),
    )


def _groups_suite(_: Params, __: str) -> Suite:
    return _suite(GROUPS, _ASIN, _ASIN, matches("group", ASIN), between("group_size", 1))


def _sample_suite(params: Params, category: str) -> Suite:
    required = [name for name in params.sample.require if name in TEXTS]
    return _suite(
        SAMPLE,
        _ASIN,
        _ASIN,
        matches("parent_asin", ASIN),
        one_of("category", (category,)),
        one_of("split", (TRAIN, VALIDATION, TEST)),
        between("band", -1, params.sample.bands - 1),
        between("average_rating", 1, 5),
        between("rating_number", 0),
        between("review_count", 0),
        *(not_empty(name, name) for name in required),
        *(not_empty("image", "image_urls") for name in params.sample.require if name == "image"),
        *(at_most(LONGEST, name, params.validation.long_text_fraction) for name in TEXTS),
    )


def _images_suite(_: Params, __: str) -> Suite:
    return _suite(
        IMAGES,
        _ASIN,
        _ASIN,
        one_of("outcome", OUTCOMES),
        between("status", 0, 599),
        between("tries", 0),
        between("source_bytes", 0),
        between("source_width", 0),
        between("source_height", 0),
    )


def _index_suite(params: Params, _: str) -> Suite:
    return _suite(
        INDEX,
        ("key",),
        ("key",),
        matches("key", ASIN),
        between("jpg_offset", 512),  # a tar header stands before the first member
        between("jpg_length", 1),
        between("json_offset", 512),
        between("json_length", 2),
        between("average_rating", 1, 5),
        between("rating_number", 0),
        between("review_count", 0),
        sized("tokens", 1, params.text.max_tokens),
    )


def _predictions_suite(params: Params, _: str) -> Suite:
    return _suite(
        PREDICTIONS,
        _ASIN,
        ("category", "parent_asin"),
        one_of("category", params.source.categories),
        one_of("split", (VALIDATION, TEST)),
        between("average_rating", 1, 5),
        between("rating_number", 0),
        between("prediction", 1, 5),
    )


SUITES = {
    "items": _items_suite,
    "reviews": _reviews_suite,
    "rejects": _rejects_suite,
    "joined": _joined_suite,
    "groups": _groups_suite,
    "sample": _sample_suite,
    "images": _images_suite,
    "index": _index_suite,
    "predictions": _predictions_suite,
}
