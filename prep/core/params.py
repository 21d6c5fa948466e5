"""Parse and validate the parameters of a run: ``params.yaml`` as frozen, typed objects.

Input: a YAML 1.2 file, which DVC reads too.
Output: a `Params`.
Guarantees: every key is present and known, and every value has the right type and is in range; otherwise an error names
the file, the key, the value found and what is expected. The code has no default values: values are only in the file,
and ``params/base.yaml`` documents each key.
"""

import difflib
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, cast, get_type_hints

import msgspec
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from prep.core.errors import UserError
from prep.core.tables.tabular import TABULAR_NAMES

_MOST, _LARGEST = 2**53, 1e12  # integers that a float holds exactly; floats whose products stay finite
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0, le=_LARGEST)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=_LARGEST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=_MOST)]
PositiveInt = Annotated[int, Field(ge=1, le=_MOST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
TabularColumn = Annotated[str, Field(pattern=f"^({'|'.join(TABULAR_NAMES)})$")]
Weight = Annotated[float, Field(gt=0, le=1000)]
TextField = Literal["main_category", "title", "features", "description", "store", "details"]
TableField = Literal[
    "parent_asin",
    "category",
    "main_category",
    "title",
    "features",
    "description",
    "store",
    "details",
    "date",
    "average_rating",
    "rating_number",
    "price",
    "categories",
    "images",
]
Required = Literal[
    "main_category",
    "title",
    "features",
    "description",
    "store",
    "details",
    "average_rating",
    "rating_number",
    "image",
]


# Parameters that decide where and how fast the work is done but do not change the results. No stage in dvc.yaml depends
# on them.
DECIDES_NO_BYTE = (
    "dask",
    "fetch.connections",
    "fetch.max_consecutive_refusals",
    "fetch.proxy",
    "fetch.timeout",
    "fetch.max_attempts",
    "source.keep_raw",
    "stream",
    "train.save_every_steps",
)

# Old names of parameters, and their current names.
RENAMED = {
    "images.size": "images.resolution",
    "download.bad_share": "download.max_bad_fraction",
    "images.bad_share": "images.max_bad_fraction",
    "groups.max_link": "groups.max_items_per_key",
    "fetch.tries": "fetch.max_attempts",
    "fetch.refusals": "fetch.max_consecutive_refusals",
    "shards.samples": "shards.samples_per_shard",
    "stream.damaged_share": "stream.max_damaged_fraction",
    "model.terms": "model.hashed_ngrams",
    "train.length_pool": "train.length_bucket_batches",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.clip_norm": "train.max_grad_norm",
    "train.frozen": "train.freeze_encoders",
    "train.save_steps": "train.save_every_steps",
    "validation.absent": "validation.null_fraction",
    "validation.same": "validation.mode_fraction",
    "validation.long": "validation.long_text_fraction",
    "validation.twins": "validation.near_duplicate_fraction",
}


def _steps(value: Any) -> Any:
    """Refuse what is neither a step nor a range of steps, before its type is looked at."""
    if type(value) not in (int, str) or not re.fullmatch("[1-9][0-9]{0,14}(-[1-9][0-9]{0,14})?", str(value)):
        raise ValueError(f"{reprlib.repr(value)} is neither a step from 1 on nor a range of steps, such as 1200-1210")
    return value


StepRange = Annotated[int | str, BeforeValidator(_steps)]

_UNKNOWN = "unexpected_keyword_argument"  # pydantic's error type for an unknown key
_LONGEST, _VALUES = 1_000_000, 10_000  # characters and values of a parameter file
# Unknown keys are errors, and so are "1" and true where a number is expected.
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DemoParams:
    """The embedded demo catalogue."""

    items: Annotated[int, Field(ge=20, le=100_000)]
    seed: Seed


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TableParams:
    """Which columns of a table are which fields of an item."""

    columns: dict[TableField, str | tuple[str, ...]]
    rating_scale: tuple[NonNegativeFloat, NonNegativeFloat]
    image_folder: str

    def __post_init__(self) -> None:
        """Check that the scale of ratings rises."""
        if not self.rating_scale[0] < self.rating_scale[1]:
            raise ValueError(f"rating_scale {list(self.rating_scale)} must be [lowest, highest], for example [1, 5]")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SourceParams:
    """Where the raw files and the images come from."""

    kind: Literal["demo", "mirror", "hub", "table"]
    categories: Annotated[tuple[Name, ...], Field(min_length=1)]
    location: str
    revision: str
    metadata: Literal["jsonl", "parquet"]
    reviews: bool
    keep_raw: bool
    demo: DemoParams
    table: TableParams

    def __post_init__(self) -> None:
        """Check that categories are unique and that the keys that the kind of source requires are set."""
        if len(set(self.categories)) < len(self.categories):
            raise ValueError("categories has duplicates; name each category once")
        if self.kind == "mirror" and not self.location:
            raise ValueError("kind mirror needs location: a directory or an http(s) base URL")
        if self.kind == "hub" and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                "kind hub needs revision: a full commit hash, because a branch or tag can move, "
                f"found {self.revision!r}; `effimini categories --hub` prints the latest commit"
            )
        if self.kind == "table":
            self._check_table()

    def _check_table(self) -> None:
        """Check what a table needs."""
        if not self.location:
            raise ValueError("kind table needs location: a file, a glob, a URL, or hf://datasets/NAME@COMMIT")
        if self.location.startswith("hf://") and not re.search("@[0-9a-f]{40}(/|$)", self.location):
            raise ValueError(
                f"location {self.location!r} names no commit, and a branch or tag can move; add @ and the full commit "
                "hash after the name of the dataset"
            )
        if missing := [name for name in ("parent_asin", "average_rating") if not self.table.columns.get(name)]:
            raise ValueError(f"kind table needs table.columns.{missing[0]}; `effimini inspect {self.location}` helps")
        if len(self.categories) > 1 and not self.table.columns.get("category"):
            raise ValueError(
                f"categories has {len(self.categories)} names but table.columns has no category; map it to a column, "
                "or name one category, which all rows are then of"
            )
        if self.reviews or self.metadata != "jsonl":
            raise ValueError("a table has no review files and no parquet metadata; set reviews: false, metadata: jsonl")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DownloadParams:
    """How raw lines become typed tables."""

    buckets: Annotated[int, Field(ge=1, le=4096)]
    max_bad_fraction: Fraction


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class JoinParams:
    """How reviews are joined to metadata."""

    reviews: Literal["all", "first_by_user"]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GroupsParams:
    """Which items are the same product."""

    max_items_per_key: Annotated[int, Field(ge=2, le=_MOST)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SampleParams:
    """Which items are used, and how they are divided into splits and bands."""

    require: tuple[Required, ...]
    min_chars: NonNegativeInt
    fraction: Annotated[float, Field(gt=0, le=1)]
    bands: Annotated[int, Field(ge=1, le=1000)]
    min_per_category: NonNegativeInt
    eval_fraction: Annotated[float, Field(gt=0, le=1)]
    eval_min_per_category: NonNegativeInt
    split: Literal["hash", "time"]
    validation: Fraction
    test: Fraction
    salt: str

    def __post_init__(self) -> None:
        """Check that the fraction is a whole number of bands, and that the splits leave training items."""
        if abs(self.fraction * self.bands - round(self.fraction * self.bands)) > 1e-9:
            raise ValueError(
                f"fraction {self.fraction} is not a whole number of bands; use a multiple of 1/{self.bands}, "
                f"which is {1 / self.bands:g}"
            )
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation {self.validation} + test {self.test} leave no training items; their sum must be below 1"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ImagesParams:
    """Which image of an item is fetched, and how it is stored."""

    prefer: Literal["hi_res", "large"]
    request: Annotated[int, Field(ge=0, le=5000)]
    resolution: Annotated[int, Field(ge=16, le=1024)]
    fit: Literal["squash", "letterbox", "crop"]
    resample: Literal["bicubic", "bilinear"]
    quality: Annotated[int, Field(ge=1, le=100)]
    max_bad_fraction: Fraction


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FetchParams:
    """How images are fetched; does not change the stored bytes of an image that was fetched."""

    mirror: str
    proxy: str = ""
    connections: Annotated[int, Field(ge=1, le=1024)]
    max_attempts: Annotated[int, Field(ge=1, le=100)]
    timeout: Annotated[float, Field(gt=0, le=86_400)]
    max_bytes: PositiveInt
    max_pixels: PositiveInt
    max_consecutive_refusals: PositiveInt


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DecontaminateParams:
    """Which near duplicates of validation and test items are excluded."""

    reasons: tuple[Literal["same_picture", "same_product_title"], ...]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TextParams:
    """The text that the model reads."""

    fields: Annotated[tuple[TextField, ...], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=8, le=512)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ShardsParams:
    """How samples are written to shards."""

    samples_per_shard: PositiveInt


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StreamParams:
    """How shards are read; does not change the batches unless images are damaged."""

    workers: Annotated[int, Field(ge=0, le=256)]
    cache_gb: PositiveFloat
    connections: Annotated[int, Field(ge=1, le=256)]
    max_damaged_fraction: Fraction

    @property
    def cache_bytes(self) -> int:
        """The size of the disk cache of remote shards, bytes."""
        return int(self.cache_gb * 1e9)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WeightsParams:
    """The weight of a sample in the loss."""

    count: Literal["rating_number", "review_count", "none"]
    half_at: NonNegativeInt
    clip: PositiveFloat


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EncoderParams:
    """A pretrained network and where its weights come from."""

    name: Annotated[str, Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelParams:
    """The model."""

    image: EncoderParams
    text: EncoderParams
    pooling: Literal["first", "mean"]
    hashed_ngrams: Annotated[int, Field(ge=0, le=2**28)]
    kernel: Annotated[int, Field(ge=0, le=10_000)]
    tabular: tuple[TabularColumn, ...]
    hidden: Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    attention_dropout: Annotated[float, Field(ge=0, lt=1)]
    drop_path: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainParams:
    """The training recipe."""

    seed: Seed
    epochs: PositiveInt
    patience: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    head_learning_rate: NonNegativeFloat
    weight_decay: NonNegativeFloat
    warmup: Fraction
    max_grad_norm: PositiveFloat
    huber_delta: PositiveFloat
    length_bucket_batches: PositiveInt
    gradient_accumulation_steps: PositiveInt
    precision: Literal["fp32", "bf16"]
    tf32: Literal["none", "convolutions", "all"]
    compile: bool
    freeze_encoders: bool
    refit: bool
    sync_batchnorm: bool
    mixture: dict[Name, Weight]
    skip: tuple[StepRange, ...]
    save_every_steps: NonNegativeInt

    def __post_init__(self) -> None:
        """Check that the ranges of steps to leave out are in order, and have no step in common."""
        ranges = self.skipped
        if reversed_ := next((f"{first}-{last}" for first, last in ranges if first > last), ""):
            raise ValueError(
                f"skip has the range {reversed_}, whose first step is after its last; write the smaller first"
            )
        for (begin, last), (first, end) in pairwise(ranges):
            if first <= last:
                raise ValueError(
                    f"skip names step {first} twice; write each step once, such as {begin}-{max(last, end)}"
                )

    @property
    def skipped(self) -> list[tuple[int, int]]:
        """The steps that are left out, in order: the first and the last step of each range."""
        return sorted((int(first), int(last or first)) for first, _, last in (str(r).partition("-") for r in self.skip))


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Limits:
    """Limits of a measured value: above `warn_above` validation warns, above `fail_above` it fails."""

    warn_above: NonNegativeFloat
    fail_above: NonNegativeFloat

    def __post_init__(self) -> None:
        """Check that warn_above does not exceed fail_above."""
        if self.warn_above > self.fail_above:
            raise ValueError(
                f"warn_above {self.warn_above:g} is greater than fail_above {self.fail_above:g}; "
                "set it to at most fail_above"
            )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class NullFractions:
    """Limits of the fraction of a category's items without a field."""

    title: Limits
    main_category: Limits
    average_rating: Limits
    rating_number: Limits
    features: Limits
    description: Limits
    store: Limits
    details: Limits
    image: Limits


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ValidationParams:
    """Limits that validation checks the data against; they do not change the tables."""

    null_fraction: NullFractions
    mode_fraction: Limits
    long_text_fraction: Limits
    near_duplicate_fraction: Limits
    drift: Limits


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateParams:
    """How results are measured."""

    bootstrap: Annotated[int, Field(ge=100, le=1_000_000)]
    seed: Seed


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DaskParams:
    """Where the work of a stage runs; does not change the results."""

    scheduler: Annotated[str, Field(pattern=r"^(synchronous|threads|processes|[a-z]+://.+|.+\.json)$")]
    workers: Annotated[int, Field(ge=1, le=1024)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Params:
    """All parameters of a run."""

    source: SourceParams
    download: DownloadParams
    join: JoinParams
    groups: GroupsParams
    sample: SampleParams
    images: ImagesParams
    fetch: FetchParams
    decontaminate: DecontaminateParams
    text: TextParams
    shards: ShardsParams
    stream: StreamParams
    weights: WeightsParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    validation: ValidationParams
    dask: DaskParams

    def __post_init__(self) -> None:
        """Check that a kernel has frozen encoders, and that tabular columns have a kernel."""
        if self.model.tabular and not self.model.kernel:
            raise ValueError(
                f"model.tabular has {len(self.model.tabular)} columns and model.kernel is 0, but only a kernel reads "
                "them; set model.kernel to 4096, or model.tabular to []"
            )
        if self.model.kernel and not self.train.freeze_encoders:
            raise ValueError(
                f"model.kernel is {self.model.kernel} and train.freeze_encoders is false, but a kernel needs "
                "frozen encoders; set model.kernel to 0, or train.freeze_encoders to true"
            )
        self._check_steps()

    def _check_steps(self) -> None:
        """Check that what decides which samples a step reads can hold."""
        categories = self.source.categories
        if unknown := next((name for name in self.train.mixture if name not in categories), ""):
            raise ValueError(
                f"train.mixture names {unknown}, which is not in source.categories ({', '.join(categories)}); name one "
                "of these"
            )
        setting = "mixture" if self.train.mixture else "skip" if self.train.skip else ""
        closed_form = "hashed_ngrams" if self.model.hashed_ngrams else "kernel" if self.model.kernel else ""
        if setting and closed_form:
            value = getattr(self.model, closed_form)
            raise ValueError(
                f"train.{setting} is set and model.{closed_form} is {value}, but that part is fitted to all samples at "
                f"once, without steps; set model.{closed_form} to 0, or leave train.{setting} empty"
            )


def narrow(params: Params, names: Iterable[str]) -> Params:
    """Return an object with only the named parameters, so that a stage cannot read undeclared ones.

    Args:
        params: the parameters of a run.
        names: sections, or keys as ``section.key``: those that dvc.yaml declares for a stage, and any of
            `DECIDES_NO_BYTE`.
    """
    result = SimpleNamespace()
    for name in names:
        source: Any = params
        target = result
        *sections, key = name.split(".")
        for section in sections:
            source = getattr(source, section)
            target = vars(target).setdefault(section, SimpleNamespace())
        setattr(target, key, getattr(source, key))
    return cast(Params, result)


def values_of(params: Params, names: Iterable[str]) -> dict[str, Any]:
    """Return the named parameters by section, as JSON types; same arguments as `narrow`."""
    found = {}
    for name, section in vars(narrow(params, names)).items():
        values = vars(section) if isinstance(section, SimpleNamespace) else section
        found[name] = msgspec.json.decode(msgspec.json.encode(values))
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings with their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rename_keys(values: Mapping[str, Any]) -> None:
    """Replace old parameter names by the current ones, in place.

    Args:
        values: parameters by section and key, as `values_of` returns them.
    """
    for old, new in _old_names(values):
        section, key = old.split(".")
        values[section][new.partition(".")[2]] = values[section].pop(key)


def _old_names(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the old names among parameters by section and key, with their current names."""
    sections = {name: section for name, section in values.items() if isinstance(section, Mapping)}
    return [(old, new) for old, new in RENAMED.items() if old.split(".")[1] in sections.get(old.split(".")[0], {})]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read the parameters from `path`: a complete file, or a preset with an `extends` key.

    Raises:
        UserError: the file does not exist, is not YAML, has an unknown or missing key, or a value with a wrong type or
            out of range.
    """
    return parse_params(read_yaml(path), path)


def read_yaml(path: Path, extended_by: tuple[Path, ...] = ()) -> CommentedMap:
    """Return the content of a parameter file, with comments; a preset is merged into the file that it extends.

    Args:
        path: the file.
        extended_by: the files that led to it.

    Raises:
        UserError: the file, or one that it extends, does not exist or is not YAML.
    """
    try:
        content = YAML().load(_text(path))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} does not exist; run the command in the project's folder, or create it: `effimini preset paper` "
            "there, `dvc get URL params.yaml` elsewhere"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a parameter file, such as params.yaml") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be a parameter file; write it like params/base.yaml") from None
    except (YAMLError, ValueError, NotImplementedError) as error:  # the last of comments where ruamel expects none
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    _check_size(content, path)
    if isinstance(content, CommentedMap) and (extended := content.pop("extends", None)):
        if path in extended_by:
            raise UserError(f"{path} extends itself ({', '.join(map(str, extended_by))}); extend base")
        content = _merge(read_yaml(path.with_name(f"{extended}.yaml"), (*extended_by, path)), content)
    return cast(CommentedMap, content)


def _text(path: Path) -> str:
    """Return the content of a parameter file."""
    with path.open(encoding="utf-8") as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise UserError(
            f"{path} has more than {_LONGEST:,} characters, so it is not a parameter file; name another file"
        )
    return text


def _check_size(content: Any, path: Path) -> None:
    """Refuse content that aliases blow up, or make endless, before it is written out."""
    todo, count = [content], 0
    while todo:
        value, count = todo.pop(), count + 1
        if count > _VALUES:
            raise UserError(
                f"{path} has more than {_VALUES:,} values; remove the aliases (&name, *name) that repeat them"
            )
        if isinstance(value, Mapping):
            if odd := [key for key in value if isinstance(key, (Mapping, list, tuple))]:
                raise UserError(
                    f"{path} has the key {odd[0]!r}, which is not a name; valid keys are in params/base.yaml"
                )
            todo += value.values()
        elif isinstance(value, (list, tuple, set)):
            todo += value


def _merge(content: CommentedMap, preset: Mapping[str, Any]) -> CommentedMap:
    """Replace values by those of a preset, in place, so that their comments are kept."""
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            _merge(content[key], value)
        else:
            content[key] = value
    return content


def parse_params(raw: Any, where: Path) -> Params:
    """Validate the content of a parameter file; error messages name the file as `where`.

    Raises:
        UserError: an unknown or missing key, or a value with a wrong type or out of range.
    """
    if isinstance(raw, Mapping) and (renamed := _old_names(raw)):
        raise UserError(
            f"{where} has old parameter names: {', '.join(f'{old} is now {new}' for old, new in renamed)}; "
            "rename them in the file"
        )
    try:
        return TypeAdapter(Params).validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        # Report a misspelt key first, because it explains the missing one.
        first, *others = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != _UNKNOWN)
        more = f"; {len(others)} more to correct" if others else ""
        raise UserError(f"{where}: {_explain(first)}{more}") from None


def _explain(error: ErrorDetails) -> str:
    """Return an error message with the key, what is wrong, the value found, and what to do."""
    key = ".".join(map(str, error["loc"])) or "the whole file"
    found = error["input"]
    match error["type"]:
        case kind if kind == _UNKNOWN:
            *section, name = map(str, error["loc"])
            known = _keys(section)
            similar = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"valid keys are {', '.join(known)}"
            return f"{key} is not a parameter; {hint}"
        case "missing":
            return f"{key} is missing; copy it from params/base.yaml"
        case "value_error":
            return f"{key}: {error['ctx']['error']}" if error["loc"] else str(error["ctx"]["error"])
        case "literal_error":
            return f"{key}: {found!r} is not {error['ctx']['expected']}"
    expected = error["msg"].removeprefix("Input ").replace("should", "must", 1)
    shown = "" if isinstance(found, (dict, list)) else f", found {reprlib.repr(found)}"
    return f"{key}: {expected[0].lower()}{expected[1:]}{shown}"


def _keys(section: list[str]) -> list[str]:
    """Return the keys of a section, given by its path."""
    kind: Any = Params
    for name in section:
        kind = get_type_hints(kind)[name]
    return [field.name for field in fields(kind)]
