"""The parameters of a run: ``params.yaml`` read into frozen, typed, documented objects.

In: a YAML 1.2 file, as DVC reads it. Out: a `Params`. Guaranteed: every key is present and known, every value has
its type and a possible size; anything else is one sentence that names the file, the key, the value found and what
is expected. There are no defaults in the code: the file is the only place of a value.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from prep.core.faults import UserError

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegativeInt = Annotated[int, Meta(ge=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]+$")]
TextField = Literal["main_category", "title", "features", "description", "store", "details"]
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


# What decides where and how fast the work is done, and no byte of its result. No stage of dvc.yaml depends on it.
DECIDES_NO_BYTE = (
    "dask",
    "fetch.connections",
    "fetch.refusals",
    "fetch.timeout",
    "fetch.tries",
    "source.keep_raw",
    "stream",
    "train.save_steps",
)

# Parameters that have another name now.
RENAMED = {"images.size": "images.resolution"}


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen section in which an unknown key is an error."""


class Demo(_Section, frozen=True):
    """The embedded demo catalogue."""

    items: Annotated[int, Meta(ge=20, le=100_000)]  # a category
    seed: int


class Source(_Section, frozen=True):
    """Where the raw files and the images come from."""

    kind: Literal["demo", "mirror", "hub"]
    categories: Annotated[tuple[Name, ...], Meta(min_length=1)]
    location: str  # mirror: a directory, or an http(s) base URL, laid out like the hub repository
    revision: str  # hub: the commit that is read, 40 hexadecimal digits
    metadata: Literal["jsonl", "parquet"]  # which of the hub's two files of the same items are read
    reviews: bool  # whether the source has review files
    keep_raw: bool  # whether raw files that come over HTTP stay in the local store; changes no byte of the result
    demo: Demo

    def __post_init__(self) -> None:
        """Refuse a kind without what it needs."""
        if len(set(self.categories)) < len(self.categories):
            raise ValueError("categories names one twice; name each once")
        if self.kind == "mirror" and not self.location:
            raise ValueError("kind mirror needs location: a directory or an http(s) base URL")
        if self.kind == "hub" and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"kind hub needs revision: a whole commit, since a branch or tag moves, found {self.revision!r}; "
                "`effimini categories --hub` prints the newest commit"
            )


class Download(_Section, frozen=True):
    """Raw lines to typed tables."""

    buckets: Annotated[int, Meta(ge=1, le=4096)]  # files a table, by hash of parent_asin
    bad_share: Share  # lines of a file that may be unusable


class Join(_Section, frozen=True):
    """Reviews joined to metadata."""

    reviews: Literal["all", "first_by_user"]  # which of several reviews of one item by one user count


class Groups(_Section, frozen=True):
    """Which items are the same product."""

    max_link: Annotated[int, Meta(ge=2)]  # a title or image shared by more items links none of them


class Sample(_Section, frozen=True):
    """Which items are used, and in which split and band each stands."""

    require: tuple[Required, ...]  # an item without one of these is dropped
    min_chars: NotNegativeInt  # of title + features + description, cleaned
    fraction: Annotated[float, Meta(gt=0, le=1)]  # of the training items
    bands: Annotated[int, Meta(ge=1, le=1000)]
    min_per_category: NotNegativeInt  # training items a category keeps whatever the fraction
    eval_fraction: Annotated[float, Meta(gt=0, le=1)]  # of the validation and of the test items
    validation: Share
    test: Share
    salt: str  # another salt, other splits and bands

    def __post_init__(self) -> None:
        """Refuse a fraction that is no whole number of bands, and splits that leave nothing to train on."""
        if abs(self.fraction * self.bands - round(self.fraction * self.bands)) > 1e-9:
            raise ValueError(
                f"fraction {self.fraction} is no whole number of bands; take a multiple of 1/{self.bands}, "
                f"which is {1 / self.bands:g}"
            )
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")


class Images(_Section, frozen=True):
    """Which image of an item is fetched, and what is stored of it."""

    prefer: Literal["hi_res", "large"]  # the URL asked first; the other one is the next candidate
    request: Annotated[int, Meta(ge=0, le=5000)]  # longest side asked of the host by ._SLn_; 0 asks for the original
    resolution: Annotated[int, Meta(ge=16, le=1024)]  # stored height and width, px: what the model is trained at
    fit: Literal["squash", "letterbox", "crop"]
    quality: Annotated[int, Meta(ge=1, le=100)]  # JPEG
    bad_share: Share  # items with a URL that may stay without an image


class Fetch(_Section, frozen=True):
    """How images are fetched: nothing here changes what is stored of an image that was had."""

    mirror: str  # an http(s) base URL or a directory that serves /images/I/...; empty: the source's own
    connections: Annotated[int, Meta(ge=1, le=1024)]  # to one host, at most
    tries: Count
    timeout: Positive  # seconds an image may take, each try
    max_bytes: Count
    max_pixels: Count
    refusals: Count  # answers in a row that refuse (403, 429, 503) before the stage gives up


class Text(_Section, frozen=True):
    """The text the model reads."""

    fields: Annotated[tuple[TextField, ...], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=8, le=512)]


class Shards(_Section, frozen=True):
    """The tars."""

    samples: Count  # a tar, at most


class Stream(_Section, frozen=True):
    """How shards are read: nothing here changes a batch of whole images."""

    workers: NotNegativeInt  # threads a rank that read ahead
    cache_gb: Positive  # that remote shards may take on disk
    connections: Annotated[int, Meta(ge=1, le=256)]  # downloads of remote shards at once, of each loader process
    damaged_share: Share  # of an epoch's samples whose image may be unreadable; they are read as without one

    @property
    def cache_bytes(self) -> int:
        """What remote shards may take on disk, bytes."""
        return int(self.cache_gb * 1e9)


class Weights(_Section, frozen=True):
    """The weight of a sample in the loss."""

    count: Literal["rating_number", "review_count", "none"]  # which count weighs; none: every sample weighs 1
    clip: Positive


class Encoder(_Section, frozen=True):
    """A pretrained network and where its weights come from."""

    name: Annotated[str, Meta(min_length=1)]  # image: a timm model; text: a hub name or a local folder
    weights: Annotated[str, Meta(min_length=1)]  # pretrained, random, or the path of a safetensors file


class Model(_Section, frozen=True):
    """The network."""

    image: Encoder
    text: Encoder
    pooling: Literal["first", "mean"]  # the text's features: its first token's last hidden state, or the mean of all
    terms: NotNegativeInt  # hashed terms of a linear model of the text beside the network; 0: none
    hidden: Annotated[tuple[Count, ...], Meta(min_length=1)]
    dropout: Annotated[float, Meta(ge=0, lt=1)]
    attention_dropout: Annotated[float, Meta(ge=0, lt=1)]  # of the text encoder; 0 lets a CPU take the fused attention


class Train(_Section, frozen=True):
    """The recipe."""

    seed: int
    epochs: Count
    patience: Count  # epochs without a better validation PLCC before training stops
    batch_size: Count  # samples of a global batch, over all ranks
    learning_rate: Positive
    head_learning_rate: NotNegative  # of the head; 0: learning_rate
    weight_decay: NotNegative
    warmup: Share  # of all steps
    clip_norm: Positive
    huber_delta: Positive
    length_pool: Count  # batches whose samples are sorted by length together, to be padded little; 1: as drawn
    accumulate: Count  # parts in which a rank computes its share of a batch one after another, to need less memory
    precision: Literal["fp32", "bf16"]  # bf16: products in bfloat16, images channels last; weights stay fp32
    compile: bool  # by torch.compile: minutes at the start, faster steps
    frozen: bool  # train the head alone, on features that the encoders give once, standardised
    sync_batchnorm: bool  # batch statistics over all ranks; GPUs only
    save_steps: NotNegativeInt  # steps between two saved states; 0: at the end of an epoch and when stopped


class Limits(_Section, frozen=True):
    """Up to `quiet` all is well, above it validation warns, above `most` it stops the run."""

    quiet: NotNegative
    most: NotNegative

    def __post_init__(self) -> None:
        """Refuse to stop where nothing was said before."""
        if self.quiet > self.most:
            raise ValueError(
                f"quiet {self.quiet:g} is above most {self.most:g}; warnings begin at quiet, so it is the lower one"
            )


class Absent(_Section, frozen=True):
    """The share of a category's items without a field."""

    title: Limits
    main_category: Limits
    average_rating: Limits
    rating_number: Limits
    features: Limits
    description: Limits
    store: Limits
    details: Limits
    image: Limits


class Validation(_Section, frozen=True):
    """What data may be like; nothing here changes a byte of the tables."""

    absent: Absent
    same: Limits  # share of a category's items that one rating, or one rating count, may have
    long: Limits  # share of a category's samples that may have a text of more than 20,000 characters
    twins: Limits  # share of the images of validation and test that may be in another split too, as good as equal
    drift: Limits  # of a column from accepted.csv, as validation/profile.py measures it


class Evaluate(_Section, frozen=True):
    """What is measured, and how surely."""

    bootstrap: Annotated[int, Meta(ge=100)]  # resamples behind an interval
    seed: int


class Dask(_Section, frozen=True):
    """Where the work inside a category runs; nothing here changes a byte of the result."""

    scheduler: Annotated[str, Meta(pattern=r"^(synchronous|threads|processes|tcp://.+)$")]
    workers: Count


class Params(_Section, frozen=True):
    """Everything a run depends on."""

    source: Source
    download: Download
    join: Join
    groups: Groups
    sample: Sample
    images: Images
    fetch: Fetch
    text: Text
    shards: Shards
    stream: Stream
    weights: Weights
    model: Model
    train: Train
    evaluate: Evaluate
    validation: Validation
    dask: Dask


def only(params: Params, names: Iterable[str]) -> Params:
    """Return an object that has some of the parameters and no others, so that nothing else can be read.

    Args:
        params: the parameters of a run.
        names: sections, or keys as ``section.key``: what dvc.yaml declares for a stage, and `DECIDES_NO_BYTE` ones.
    """
    narrow = SimpleNamespace()
    for name in names:
        source: Any = params
        target = narrow
        *sections, key = name.split(".")
        for section in sections:
            source = getattr(source, section)
            target = vars(target).setdefault(section, SimpleNamespace())
        setattr(target, key, getattr(source, key))
    return cast(Params, narrow)


def stated(params: Params, names: Iterable[str]) -> dict[str, Any]:
    """Return some of the parameters by section, as JSON holds them; arguments as for `only`."""
    found = {}
    for name, section in vars(only(params, names)).items():
        values = vars(section) if isinstance(section, SimpleNamespace) else section
        found[name] = msgspec.json.decode(msgspec.json.encode(values))
    return found


def load(path: Path = Path("params.yaml")) -> Params:
    """Read the parameters from `path`.

    Raises:
        UserError: the file is absent or not YAML, or has an unknown or missing key, a wrong type, an impossible value.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist here; run in the project's folder, or `cp params/paper.yaml {path}`"
        ) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return msgspec.convert(raw, Params)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {_sentence(str(error), raw)}") from None


def _sentence(message: str, raw: Any) -> str:
    """Turn msgspec's message into: which key, what is wrong, the value found, what to do."""
    problem, _, where = message.partition(" - at `$")
    keys = [part.strip("`[]") for part in re.split(r"\.|(?=\[)", where.rstrip("`")) if part.strip("`[]")]
    key = ".".join(keys)
    if unknown := re.search(r"unknown field `(.+)`", problem):
        name = unknown.group(1)
        if new := RENAMED.get(".".join([*keys, name])):
            return f"{'.'.join([*keys, name])} is now {new}; rename it"
        known = _names(Params, keys)
        near = difflib.get_close_matches(name, known, 1)
        advice = f"did you mean {near[0]}?" if near else f"the keys there are {', '.join(known)}"
        return f"{'.'.join([*keys, name])} is not a parameter; {advice}"
    if missing := re.search(r"missing required field `(.+)`", problem):
        return f"{'.'.join([*keys, missing.group(1)])} is missing; params/paper.yaml shows a value"
    found = raw
    for part in keys:
        if isinstance(found, dict):
            found = found.get(part)
        elif isinstance(found, list) and part.isdigit():
            found = found[int(part)]
    if problem.startswith("Invalid enum value"):
        return f"{key}: {found!r} is none of {', '.join(_choices(keys))}"
    shown = "" if isinstance(found, (dict, list)) else f", found {found!r}"
    return f"{key or 'the whole file'}: {problem[0].lower()}{problem[1:]}{shown}"


def _names(section: Any, keys: list[str]) -> list[str]:
    """List the keys of the section that `keys` lead to."""
    for key in keys:
        section = next(field.type for field in msgspec.structs.fields(section) if field.name == key)
    return [field.name for field in msgspec.structs.fields(section)]


def _choices(keys: list[str]) -> list[str]:
    """List the values of the `Literal` that `keys` lead to."""
    kind: Any = Params
    for key in keys:
        if key.isdigit():  # an element of a tuple[Literal, ...]
            kind = get_args(kind)[0]
        else:
            kind = next(field.type for field in msgspec.structs.fields(kind) if field.name == key)
            kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return list(map(str, get_args(kind)))
