"""Cross-validate the closed form of the recipe `best` and what it is made of, on the films or the electronics.

    python -m benchmarks.cross_validation [--corpus electronics]

Input: as for `benchmarks.corpus`, whose pipeline it runs in build/cross_validation. Output: for each variant the PLCC
of all items, of those with 20 and with 100 ratings or more, and the difference from `best` on the same items.
Guarantees: the encoders' features are computed once, so that a fold takes seconds; each item is predicted by models
that have not seen it; the strengths are chosen on an eighth of the training items, and never on the fold that is
predicted; items of one product (`data/groups`) are in one fold.

Two times five folds. Intervals are 95 % intervals of 2,000 bootstrap resamples of the items, the same for all variants
and both times. The network, which gives the rest of the score of `best`, is left out.
"""

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from benchmarks.corpus import command, project
from benchmarks.tables import table
from effimini import closed_form, features
from effimini.at_launch import at_launch
from effimini.baselines import baselines
from effimini.curve import Items
from effimini.distributed import init_distributed
from effimini.inference import open_split
from effimini.metrics import plcc
from effimini.model import Config, EffiMini
from prep.core.params import WeightsParams, load_params, read_yaml
from prep.core.tables.shards import SampleMetadata
from prep.weights import constant
from shards.stream import ShardDataset
from shards.tokens import TokenizationConfig

BUILD = Path("build/cross_validation")
PRESETS = {"films": Path("params/best.yaml"), "electronics": Path("params/electronics.yaml")}
SEEDS, FOLDS, RESAMPLES = (0, 1), 5, 2000
LEAST = (1, 20, 100)  # ratings
BEST, RIDGE = "best", "TF-IDF + ridge"

Array = npt.NDArray[Any]


class Variant(NamedTuple):
    """What differs from `best`."""

    config: Callable[[Config], dict[str, Any]] = lambda _: {}
    without: str = ""  # the part of the encoders' features that is set to 0: image, text
    weights: WeightsParams = WeightsParams(count="rating_number", half_at=50, clip=5.0)
    refit: bool = True


VARIANTS = {
    BEST: Variant(),
    "not refitted": Variant(refit=False),
    "unweighted": Variant(weights=WeightsParams(count="none", half_at=0, clip=5.0)),
    "weights log1p(n)": Variant(weights=WeightsParams(count="rating_number", half_at=0, clip=5.0)),
    "weights n / (n + 200)": Variant(weights=WeightsParams(count="rating_number", half_at=200, clip=5.0)),
    "without the image": Variant(without="image"),
    "without the text encoder": Variant(without="text"),
    "without tabular columns": Variant(lambda _: {"tabular": ()}),
    "without columns known later": Variant(lambda config: {"tabular": at_launch(config.tabular)}),
    "without the first word": Variant(lambda _: {"first_words": 0}),
    "without n-grams and first word": Variant(lambda _: {"hashed_ngrams": 0, "first_words": 0}),
    "without the kernel": Variant(lambda _: {"kernel": 0, "tabular": ()}),
}


class Products(Items):
    """Items with what TF-IDF reads of them."""

    def __init__(self, *splits: ShardDataset) -> None:
        """Hold the samples of `splits`, one split after another."""
        super().__init__(*splits)
        self.keys = [key for split in splits for key in split.keys]
        self._metadata = [split.metadata(row) for split in splits for row in range(len(split))]

    def take(self, rows: Array) -> "Products":
        """Return the samples of these numbers, in this order."""
        taken = cast(Products, super().take(rows))
        taken.keys, taken._metadata = [self.keys[row] for row in rows], [self._metadata[row] for row in rows]
        return taken

    @property
    def categories(self) -> list[str]:
        """The category of every sample."""
        return [key.split("/", 1)[0] for key in self.keys]

    def metadata(self, i: int) -> SampleMetadata:
        """Return the metadata of sample `i`."""
        return self._metadata[i]


def read_products(model: EffiMini) -> Products:
    """Return the items of the project in the working directory."""
    params = load_params(Path("params.yaml"))
    tokenization = TokenizationConfig("models/best", model.config.fields, model.config.max_tokens)
    with init_distributed() as dist:
        splits = [
            features.of_split(
                model,
                open_split("data/shards", params, name, tokenization, model.config.size, model.config.tabular),
                dist,
                params,
            )
            for name in ("train", "validation", "test")
        ]
    return Products(*splits)


def product_numbers(keys: Sequence[str]) -> Array:
    """Return the number of the product of each item of the project in the working directory."""
    group_of = {}
    for path in sorted(Path("data/sample").glob("*/*.parquet")):
        found = pq.read_table(path, columns=["category", "parent_asin", "group"]).to_pydict()
        names = map("/".join, zip(found["category"], found["parent_asin"], strict=True))
        group_of |= zip(names, found["group"], strict=True)
    return np.unique([group_of[key] for key in keys], return_inverse=True)[1]


def fit_and_predict(model: EffiMini, variant: Variant, parts: Sequence[Products], landmarks: int) -> Array:
    """Return the stars of the third part, float32 [N], of a fit on the first that was chosen on the second."""
    config = msgspec.structs.replace(model.config, **{"kernel": landmarks} | variant.config(model.config))
    module = EffiMini(config, model.image, model.text, model.tokenizer).closed_form
    assert module is not None
    columns = [model.config.tabular.index(name) for name in config.tabular]
    image = model.kernel_width - len(model.layers) * model.text.config.hidden_size
    zero = {"": slice(0), "image": slice(-image, None), "text": slice(-image)}[variant.without]
    given = []
    for part in parts:
        seen = copy(part)
        assert part.kernel_inputs is not None
        seen.kernel_inputs, seen.tabular = part.kernel_inputs.copy(), part.tabular[:, columns]
        seen.kernel_inputs[:, zero] = 0
        given.append(seen)
    train, validation, test = given
    weights = constant(train.rating_number, variant.weights)
    inputs = (train.kernel_inputs, validation.kernel_inputs)
    closed_form.fit(module, train, validation, weights, inputs, refit=variant.refit)
    return closed_form.predict(module, test, test.kernel_inputs)


def cross_validate(model: EffiMini, variants: Sequence[str], landmarks: int) -> tuple[Products, dict[str, Array]]:
    """Return the items, and the stars of each variant, float32 [S, N] for S seeds."""
    items = read_products(model)
    products = product_numbers(items.keys)
    stars = {name: np.zeros((len(SEEDS), len(items)), np.float32) for name in [*variants, RIDGE]}
    for line, seed in enumerate(SEEDS):
        draw = np.random.default_rng(seed).permutation(products.max() + 1)[products]
        for fold in range(FOLDS):
            test, rest = draw % FOLDS == fold, draw % FOLDS != fold
            held_out = rest & (draw // FOLDS % 8 == 0)
            parts = tuple(items.take(np.flatnonzero(chosen)) for chosen in (rest & ~held_out, held_out, test))
            for name in variants:
                stars[name][line, test] = fit_and_predict(model, VARIANTS[name], parts, landmarks)
            weights = constant(parts[0].rating_number, VARIANTS[BEST].weights)
            stars[RIDGE][line, test] = baselines(*parts, weights, model.config.fields, refit=True)[RIDGE]
            print(f"seed {seed}, fold {fold + 1} of {FOLDS}", flush=True)
    return items, stars


def rows_of(items: Any, stars: Mapping[str, Array], least: int) -> Iterator[tuple[str, str, str]]:
    """Yield name, PLCC, and difference from `best` with its interval, of the items with `least` ratings or more."""
    rng = np.random.default_rng(0)
    chosen = np.flatnonzero(items.rating_number >= least)
    draws = [rng.choice(chosen, len(chosen)) for _ in range(RESAMPLES)]

    def mean(name: str, rows: Array) -> float:
        return float(np.mean([plcc(of_seed[rows], items.labels[rows]) for of_seed in stars[name]]))

    of_best = [mean(BEST, rows) for rows in draws]
    for name in stars:
        low, high = np.percentile(
            [mean(name, rows) - best for rows, best in zip(draws, of_best, strict=True)], [2.5, 97.5]
        )
        gap = mean(name, chosen) - mean(BEST, chosen)
        yield name, f"{mean(name, chosen):.3f}", "" if name == BEST else f"{gap:+.3f} ({low:+.3f} to {high:+.3f})"


def main() -> None:
    """Cross-validate the variants and print a table."""
    parser = argparse.ArgumentParser("python -m benchmarks.cross_validation", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="films", choices=list(PRESETS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--landmarks", type=int, default=4096)
    chosen = parser.parse_args()
    logging.disable(logging.INFO)
    work = BUILD / chosen.corpus
    with project(work, read_yaml(PRESETS[chosen.corpus])):
        command("dvc", "repro", "-q", "train", cwd=work)
    with chdir(work):
        model = EffiMini.from_pretrained(Path("models/best"))
        items, stars = cross_validate(model, list(dict.fromkeys([BEST, *chosen.variants])), chosen.landmarks)
    found = [list(rows_of(items, stars, least)) for least in LEAST]
    head = [f"{least} ratings or more ({int((items.rating_number >= least).sum()):,})" for least in LEAST]
    table(
        f"{len(items):,} {chosen.corpus}, {len(SEEDS)} times {FOLDS} folds",
        ("variant", *(cell for name in head for cell in (name, "less best"))),
        [(lines[0][0], *(cell for line in lines for cell in line[1:])) for lines in zip(*found, strict=True)],
    )


if __name__ == "__main__":
    main()
