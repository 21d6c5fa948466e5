"""Declarations of the expectations of each table.

Input: the parameters and a category. Output: a `Suite` per table, with rules that name classes of Great Expectations
and their arguments. This module only declares them and does not import Great Expectations.

In addition to its rules, every suite expects the columns and types of `prep.core.tables`, no nulls in the columns that
are required there and, if it has a key, that the key is unique over all files of the category.
"""

from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa

from prep.core.keys import KEY
from prep.core.params import Limits, Params
from prep.core.parts import TEST, TRAIN, VALIDATION
from prep.core.tables.exclusions import EXCLUSIONS
from prep.core.tables.groups import GROUPS
from prep.core.tables.images import IMAGES, OUTCOMES
from prep.core.tables.items import JOINED
from prep.core.tables.predictions import PREDICT_INPUT as INPUT_ROWS
from prep.core.tables.predictions import PREDICTIONS
from prep.core.tables.raw import ITEMS, REJECTS, REVIEWS
from prep.core.tables.sample import SAMPLE, TEXTS
from prep.core.tables.shards import INDEX
from prep.core.tables.tabular import COLUMNS, PRICES

# The dataset begins in May 1996; a time in seconds instead of milliseconds would be before 1995.
TIMES = (788_918_400_000, 4_102_444_800_000)  # 1995 to 2100, ms since 1970
_DATES = " and ".join(str(datetime.fromtimestamp(ms / 1000, UTC).date()) for ms in TIMES)
LONGEST = 20_000  # characters of a text; those of the dataset have a few thousand


class Rule(NamedTuple):
    """One expectation: its name in results and messages, and the class of Great Expectations that checks it."""

    name: str
    kind: str
    arguments: dict[str, Any]
    fail_above: float = 0.0  # fraction of unexpected rows above which the table fails
    warn_above: float = 0.0  # fraction of unexpected rows above which a warning is logged

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the rule reads."""
        return tuple(value for key, value in self.arguments.items() if key.startswith("column"))


class Suite(NamedTuple):
    """All expectations of a table."""

    schema: pa.Schema
    label: tuple[str, ...]  # the columns that identify a row in messages
    key: tuple[str, ...]  # the columns that are unique together; empty if rows may repeat
    rules: tuple[Rule, ...]


def not_null(column: str, limits: Limits | None = None) -> Rule:
    """Expect a value in every row; `limits` are the fractions of rows that may be null."""
    kind, arguments = "ExpectColumnValuesToNotBeNull", {"column": column}
    if limits is None:
        return Rule(f"{column} not null", kind, arguments)
    return Rule(
        f"{column} present (validation.null_fraction.{column})", kind, arguments, limits.fail_above, limits.warn_above
    )


def not_empty(name: str, *columns: str, limits: Limits | None = None) -> Rule:
    """Expect one of `columns` (texts or lists) not to be empty; `limits` are the fractions of rows with all empty."""
    expectation = f"{name} present" + ("" if limits is None else f" (validation.null_fraction.{name})")
    fail_above, warn_above = (0.0, 0.0) if limits is None else (limits.fail_above, limits.warn_above)
    return Rule(expectation, "ExpectColumnValuesToBeBetween", _sized(1, None, *columns), fail_above, warn_above)


def at_most(size: int, column: str, limits: Limits) -> Rule:
    """Expect texts of at most `size` characters; `limits` are the fractions of longer ones."""
    expectation = f"{column} of at most {size} characters (validation.long_text_fraction)"
    return Rule(
        expectation, "ExpectColumnValuesToBeBetween", _sized(None, size, column), limits.fail_above, limits.warn_above
    )


def sized(column: str, low: int, high: int) -> Rule:
    """Expect lists of `low` to `high` elements."""
    return Rule(f"{low} to {high} {column}", "ExpectColumnValuesToBeBetween", _sized(low, high, column))


def _sized(low: int | None, high: int | None, *columns: str) -> dict[str, Any]:
    return {"column": f"size of {' + '.join(columns)}", "min_value": low, "max_value": high}


def between(column: str, low: float, high: float | None = None, fail_above: float = 0.0) -> Rule:
    """Expect every value that is not null to be in [low, high]."""
    expectation = f"{column} at least {low}" if high is None else f"{column} between {low} and {high}"
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Rule(expectation, "ExpectColumnValuesToBeBetween", arguments, fail_above)


def one_of(column: str, values: tuple[str, ...]) -> Rule:
    """Expect every value to be one of `values`."""
    expectation = f"{column} one of {', '.join(values)}"
    return Rule(expectation, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)})


def matches(column: str, regex: str) -> Rule:
    """Expect every value to match `regex`."""
    return Rule(f"{column} matching {regex}", "ExpectColumnValuesToMatchRegex", {"column": column, "regex": regex})


def ordered(low: str, high: str) -> Rule:
    """Expect `low` to be at most `high` in rows where neither is null."""
    arguments = {
        "column_A": high,
        "column_B": low,
        "or_equal": True,
        "ignore_row_if": "either_value_is_missing",
    }
    return Rule(f"{low} at most {high}", "ExpectColumnPairValuesAToBeGreaterThanB", arguments)


def null(column: str, name: str) -> Rule:
    """Expect every row to be null; a value describes what is wrong with the row."""
    return Rule(name, "ExpectColumnValuesToBeNull", {"column": column})


def _suite(schema: pa.Schema, label: tuple[str, ...], key: tuple[str, ...], *rules: Rule) -> Suite:
    required = (not_null(field.name) for field in schema if not field.nullable)
    return Suite(schema, label, key, (*required, *rules))


# The user's input for predictions, as `effimini.predict` prepares it.
PREDICT_INPUT_SUITE = _suite(
    INPUT_ROWS,
    ("line",),
    ("parent_asin",),
    not_null("parent_asin"),
    null("not_text", "features and description as text or lists of texts"),
    null("not_count", "rating_number as a whole number"),
)


def suite(table: str, params: Params, category: str = "") -> Suite:
    """Return the suite of a table of `category`.

    Raw rows are kept unchanged, so a fraction ``download.max_bad_fraction`` of them may be out of range; join and
    sample drop those. Null fractions are limited on the joined table, which has one row per item.

    Args:
        table: a key of `SUITES`: items, reviews, rejects, joined, groups, sample, images, exclusions, index or
            predictions.
        params: the parameters that the table's gate reads (`validation.checks.GATES`).
        category: a name in ``source.categories``; not used for predictions, which are of all categories.
    """
    return SUITES[table](params, category)


_ASIN = ("parent_asin",)
_RAW_NUMBERS = (between("price", *PRICES), between("video_count", 0), between("image_count", 0))


def _items_suite(params: Params, _: str) -> Suite:
    bad = params.download.max_bad_fraction
    return _suite(
        ITEMS,
        _ASIN,
        ("line",),
        matches("parent_asin", KEY),
        between("line", 1),
        between("average_rating", 0, 5, fail_above=bad),
        between("rating_number", 0, fail_above=bad),
        matches("details", r"^\{"),
        *_RAW_NUMBERS,
    )


def _reviews_suite(params: Params, _: str) -> Suite:
    bad = params.download.max_bad_fraction
    return _suite(
        REVIEWS,
        _ASIN,
        (),
        matches("parent_asin", KEY),
        between("rating", 0, 5, fail_above=bad),  # the dataset has a rating of 0.0
        between("timestamp", *TIMES, fail_above=bad)._replace(name=f"timestamp between {_DATES}"),
    )


def _rejects_suite(_: Params, __: str) -> Suite:
    return _suite(REJECTS, ("file", "line"), ("file", "line"), between("line", 1))


def _joined_suite(params: Params, _: str) -> Suite:
    bad, nulls = params.download.max_bad_fraction, params.validation.null_fraction
    return _suite(
        JOINED,
        _ASIN,
        _ASIN,
        matches("parent_asin", KEY),
        between("average_rating", 0, 5, fail_above=bad),
        between("rating_number", 0, fail_above=bad),
        between("review_count", 0),
        between("review_mean", 1, 5),
        between("review_spread", 0, 2),
        between("verified_share", 0, 1),
        ordered("first_review", "last_review"),
        *_RAW_NUMBERS,
        not_null("average_rating", nulls.average_rating),
        not_null("rating_number", nulls.rating_number),
        *(not_empty(name, name, limits=getattr(nulls, name)) for name in TEXTS),
        not_empty("image", "hi_res", "large", limits=nulls.image),
    )


def _groups_suite(_: Params, __: str) -> Suite:
    return _suite(GROUPS, _ASIN, _ASIN, matches("group", KEY), between("group_size", 1))


def _sample_suite(params: Params, category: str) -> Suite:
    required = [name for name in params.sample.require if name in TEXTS]
    return _suite(
        SAMPLE,
        _ASIN,
        _ASIN,
        matches("parent_asin", KEY),
        one_of("category", (category,)),
        one_of("split", (TRAIN, VALIDATION, TEST)),
        between("band", -1, params.sample.bands - 1),
        between("average_rating", 1, 5),
        between("rating_number", 0),
        between("review_count", 0),
        *(not_empty(name, name) for name in required),
        *(not_empty("image", "image_urls") for name in params.sample.require if name == "image"),
        *(at_most(LONGEST, name, params.validation.long_text_fraction) for name in TEXTS),
        *(between(column.name, column.least, column.most) for column in COLUMNS),
    )


def _images_suite(_: Params, __: str) -> Suite:
    return _suite(
        IMAGES,
        _ASIN,
        _ASIN,
        one_of("outcome", OUTCOMES),
        between("status", 0, 599),
        between("source_bytes", 0),
        between("source_width", 0),
        between("source_height", 0),
    )


def _exclusions_suite(params: Params, _: str) -> Suite:
    return _suite(
        EXCLUSIONS,
        _ASIN,
        _ASIN,
        one_of("reason", params.decontaminate.reasons),
        one_of("other_split", (VALIDATION, TEST)),
        one_of("other_category", params.source.categories),
        matches("other_asin", KEY),
        between("difference", 0),
    )


def _index_suite(params: Params, _: str) -> Suite:
    return _suite(
        INDEX,
        ("key",),
        ("key",),
        matches("key", KEY),
        between("jpg_offset", 512),  # a tar header precedes the first member
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
    "exclusions": _exclusions_suite,
    "index": _index_suite,
    "predictions": _predictions_suite,
}
