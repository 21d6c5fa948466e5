"""The value of more data: how good the closed form is on nested fractions of the training items, and what is next.

Input: the shards and the parameters; the encoders, if they are frozen, through their cached features. Output:
``curve.csv`` and ``curve.svg``, with the PLCC on the test split of what was measured and of the forecasts. Guarantees:
the same inputs give the same bytes; each draw contains the items of its smaller fractions; the test split is measured
and never fitted on, and the validation split chooses as in a training.

The closed form is the cheap part of the recipe: it is fitted in seconds once the features are there. The network that
training mixes with it is left out.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Group
from rich.table import Table

from effimini import closed_form, features, plots, provenance, scaling_law
from effimini.ceiling import Integers, ceiling_interval, scatter_of_labels
from effimini.closed_form import ClosedForm
from effimini.distributed import init_distributed, set_tf32
from effimini.inference import open_split
from effimini.metrics import Array, Stars, plcc
from effimini.model import build
from effimini.scaling_law import Forecast, forecast
from effimini.slices import SMALL
from effimini.train import READS, prepare
from prep.core import files, writers
from prep.core.errors import UserError
from prep.core.params import Params, narrow
from prep.core.progress import bar
from shards.stream import ShardDataset
from shards.tokens import TokenizationConfig

log = logging.getLogger(__name__)

ITEM_FRACTIONS = tuple(2 ** (-k / 2) for k in range(6, 0, -1))  # of the items at hand, besides all: 0.125 to 0.71
HALF = len(ITEM_FRACTIONS) - 1  # so many of them are up to a half
DRAWS = 5  # of each fraction
MORE = (1.5, 2.0)  # forecasts, as multiples of the items at hand
FEWEST_ITEMS = 64  # items at hand; an eighth of them must be enough for a fit
_COLUMNS = ("labels", "rating_number", "review_count", "tabular", "kernel_inputs")


class Point(msgspec.Struct, frozen=True):
    """What was measured with so many items."""

    items: int
    plcc: float  # mean of all draws
    low: float  # of the lowest and the highest draw
    high: float


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `curve`. PLCC are those of the test split, without the network."""

    items: int  # at hand
    samples: int  # of the test split
    draws: int
    ceiling: float  # no forecast is higher: upper end of the 95 % interval of the noise ceiling
    measured: tuple[Point, ...]  # the last is all items at hand
    backtest: Forecast  # for all items at hand, from half of them and fewer
    forecasts: tuple[Forecast, ...]


class Items(ShardDataset):
    """Samples in memory: what the closed form reads of them.

    Attributes:
        kernel_inputs: as of `FeatureDataset`; None if the encoders are not frozen.
    """

    kernel_inputs: Array | None

    def __init__(self, *splits: ShardDataset) -> None:
        """Hold the samples of `splits`, one split after another."""
        self._texts = [text for split in splits for text in split.texts()]
        self.kernel_inputs = None
        for name in _COLUMNS:
            if all(getattr(split, name, None) is not None for split in splits):
                setattr(self, name, np.concatenate([getattr(split, name) for split in splits]))

    def __len__(self) -> int:
        return len(self._texts)

    def texts(self) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Yield the token ids of every sample."""
        yield from self._texts

    def take(self, rows: Integers) -> "Items":
        """Return the samples of these numbers, in this order."""
        taken = copy.copy(self)
        taken._texts = [self._texts[row] for row in rows]
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(taken, name, None if column is None else column[rows])
        return taken


class Recipe:
    """The closed form of the configured model, to be fitted on some of the training items.

    Attributes:
        train, validation, test: the samples of the splits.
        ceiling: as of `Curve`.
    """

    def __init__(self, params: Params, shards: str | Path, weights: Path | None) -> None:
        """Read the splits, and compute the features of frozen encoders that are not in the local store yet.

        Args:
            params: the parameters; those of `curve`.
            shards: as for `train`.
            weights: as for `train`.

        Raises:
            UserError: the model has no closed form, there are too few or too many samples, an encoder cannot be
                loaded, or shards or weights are missing or belong to another run.
        """
        if not (params.model.hashed_ngrams or params.model.kernel):
            raise UserError(
                "model.hashed_ngrams and model.kernel are 0, so the model has no closed form to fit; set "
                "model.hashed_ngrams to 262144"
            )
        tokenization = TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)
        splits = [
            open_split(shards, params, name, tokenization, params.images.resolution, params.model.tabular)
            for name in ("train", "validation", "test")
        ]
        _check(splits[0], splits[-1], shards)
        self.ceiling = _ceiling(splits, params)
        if weights is not None:
            provenance.check_shards(splits[0].shards.manifests, params, Path(shards))
        self.weights = provenance.weights_for(splits[0], params, weights)
        set_tf32(params.train.tf32)
        torch.manual_seed(params.train.seed)  # the random encoders are those of the training
        with init_distributed() as dist:
            model = prepare(build(params).to(dist.device), params, dist)
            if params.train.freeze_encoders:
                splits = [features.of_split(model, split, dist, params) for split in splits]
        self.train, self.validation, self.test = map(Items, splits)
        self.module = cast(ClosedForm, model.closed_form)

    def stars(self, train: Items, validation: Items, test: Items) -> Stars:
        """Return the stars for `test` of a closed form fitted on `train`, float32 [N], unclamped."""
        module = copy.deepcopy(self.module)
        inputs = (train.kernel_inputs, validation.kernel_inputs) if module.kernel is not None else None
        with _quiet(closed_form.log):
            closed_form.fit(module, train, validation, self.weights, cast(tuple[Array, Array] | None, inputs))
        return closed_form.predict(module, test, test.kernel_inputs)


def curve(
    params: Params,
    shards: str | Path = Path("data/shards"),
    weights: Path | None = Path("data/weights.json"),
    out: Path = Path("results/curve"),
) -> Curve:
    """Fit the closed form on nested fractions of the training items, forecast more, and write the table and the plot.

    Args:
        params: the parameters; those that `train` reads, and evaluate.seed and evaluate.bootstrap.
        shards: as for `train`.
        weights: as for `train`.
        out: the folder for curve.csv and curve.svg.

    Raises:
        UserError: as `Recipe`.
    """
    if params.source.kind == "demo":
        log.warning("demo data: the products are synthetic, so this curve says nothing about real ones")
    recipe = Recipe(narrow(params, (*READS, "evaluate")), shards, weights)

    def fit(rows: Integers) -> Stars:
        return recipe.stars(recipe.train.take(rows), recipe.validation, recipe.test)

    sizes, stars = measure(fit, len(recipe.train), params.evaluate.seed)
    found = of_runs(sizes, stars, recipe.test.labels, recipe.ceiling)
    table = as_frame(found)
    writers.write_csv(out / "curve.csv", table)
    with files.atomic_write(out / "curve.svg") as partial:
        partial.write_text(plots.plot_curve(table), encoding="utf-8")
    return found


def measure(fit: Callable[[Integers], Stars], items: int, seed: int) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Return the sizes K, and the stars of a run on each of them in each draw, [DRAWS, K, T].

    Args:
        fit: fits on the items of these numbers, ascending, and returns the stars for the T samples to measure on.
        items: number of items at hand, the last of the sizes; all draws share the run on them.
        seed: seed of the draws.
    """
    random = np.random.default_rng(seed)
    orders = [random.permutation(items) for _ in range(DRAWS)]
    sizes = [round(fraction * items) for fraction in ITEM_FRACTIONS]
    runs = [(order, size) for order in orders for size in sizes]
    stars = [fit(np.sort(order[:size])) for order, size in bar([*runs, (orders[0], items)], "curve: fits")]
    of_draws = np.stack(stars[:-1]).reshape(DRAWS, len(sizes), -1)
    of_all = np.broadcast_to(stars[-1], (DRAWS, 1, len(stars[-1])))
    return [*sizes, items], np.concatenate([of_draws, of_all], axis=1)


def of_runs(sizes: Sequence[int], stars: npt.NDArray[np.float32], labels: Stars, ceiling: float = 1.0) -> Curve:
    """Return the measured points, the forecasts, and the backtest.

    Args:
        sizes: numbers of items, of `measure`.
        stars: those of the runs, of `measure`.
        labels: labels of the samples that were measured on [T].
        ceiling: no forecast is higher, unless the PLCC at hand is.
    """
    reached = np.array([[plcc(run, labels) for run in draw] for draw in stars])
    most = max(ceiling, float(reached[:, -1].mean()))

    def capped(found: Sequence[Forecast]) -> tuple[Forecast, ...]:
        return tuple(
            Forecast(each.items, *(round(min(value, most), 6) for value in (each.plcc, each.low, each.high)))
            for each in found
        )

    rounded = [[round(float(value), 6) for value in (of.mean(), of.min(), of.max())] for of in reached.T]
    return Curve(
        items=sizes[-1],
        samples=len(labels),
        draws=len(stars),
        ceiling=round(ceiling, 6),
        measured=tuple(Point(size, *values) for size, values in zip(sizes, rounded, strict=True)),
        backtest=capped(forecast(sizes[:HALF], stars[:, :HALF], labels, sizes[-1:], draws=len(stars)))[0],
        forecasts=capped(forecast(sizes, stars, labels, [round(more * sizes[-1]) for more in MORE])),
    )


def as_frame(found: Curve) -> pd.DataFrame:
    """Return the points and the forecasts as rows: kind, items, fraction (of those at hand), plcc, low, high."""
    kinds = [("measured", found.measured), ("backtest", (found.backtest,)), ("forecast", found.forecasts)]
    rows = [
        {"kind": kind, "items": each.items, "fraction": each.items / found.items, "plcc": each.plcc}
        | {"low": each.low, "high": each.high}
        for kind, of_kind in kinds
        for each in cast(Sequence[Point | Forecast], of_kind)
    ]
    return pd.DataFrame(rows)


def curve_table(found: Curve) -> Group:
    """Return the result of `curve` as a table to print."""
    now, back = found.measured[-1], found.backtest
    shown = Table(title=f"PLCC of the closed form on the {found.samples:,} test samples")
    for name in ("training items", "of those at hand", "PLCC", "change", f"range, or {scaling_law.LEVEL:.0%} interval"):
        shown.add_column(name, justify="right")

    def add(each: Point | Forecast, ends: str) -> None:
        part = (f"{each.items:,}", f"{each.items / found.items:.0%}", f"{each.plcc:.3f}")
        shown.add_row(*part, "" if each is now else f"{each.plcc - now.plcc:+.3f}", ends)

    for point in found.measured:
        add(point, "" if point is now else f"{point.low:.3f} to {point.high:.3f}")
    shown.add_section()
    for each in found.forecasts:
        add(each, f"{each.low:.3f} to {each.high:.3f}")
    notes = [
        f"Up to {now.items:,} items: mean and range of {found.draws} draws. Above: forecasts.",
        f"Check: from at most half of the items, the forecast for all of them is {back.plcc:.3f} ({back.low:.3f} to "
        f"{back.high:.3f}); measured: {now.plcc:.3f}.",
    ]
    return Group(shown, *notes)


def _check(train: ShardDataset, test: ShardDataset, shards: str | Path) -> None:
    """Check the numbers of samples.

    Raises:
        UserError: there are too few or too many, or the test labels are all equal.
    """
    where = f"{shards} has {len(train):,} training samples"
    if len(train) < FEWEST_ITEMS:
        raise UserError(f"{where} and a curve needs {FEWEST_ITEMS}; raise sample.fraction")
    if len(train) > closed_form.FITTED:
        raise UserError(
            f"{where} and the closed form is fitted on at most {closed_form.FITTED:,}; lower sample.fraction, or leave "
            "categories out"
        )
    if len(test) < SMALL or np.ptp(test.labels) == 0:
        raise UserError(
            f"the test split in {shards} has {len(test)} samples with {len(np.unique(test.labels))} different labels, "
            f"and a PLCC needs {SMALL} and two; raise sample.eval_fraction"
        )


def _ceiling(splits: Sequence[ShardDataset], params: Params) -> float:
    """Return the upper end of the interval of the test split's noise ceiling."""
    labels, counts = (
        np.concatenate([getattr(split, name) for split in splits]) for name in ("labels", "rating_number")
    )
    categories = np.unique([name for split in splits for name in split.categories], return_inverse=True)[1]
    scatter, test = scatter_of_labels(labels, counts, categories), splits[-1]
    resampling = (params.evaluate.bootstrap, params.evaluate.seed)
    return ceiling_interval(test.labels, test.rating_number, scatter, *resampling)[1]


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep a logger from logging each of many fits."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
