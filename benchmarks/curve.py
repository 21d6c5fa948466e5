"""Measure how often the forecasts of `effimini curve` hold.

    python -m benchmarks.corpus --params params/best.yaml    # a project to measure in; after make corpus
    python -m benchmarks.curve [build/corpus ...] [--splits 40] [--items 800]

Input: finished projects with frozen encoders. Output: a table, and the single results in build/bench-curve. All samples
of a project are split at random, 40 times. In each split `--items` training items are those at hand: the curve is
measured on them as the command does, and its forecasts are compared with runs on 1.5 and 2 times as many, which contain
them. Those two runs are used for nothing else. The validation and test split have the sizes that they have in the
project.

Covered is how many of the results fall into the 90 % interval, with the 95 % interval of that fraction if the splits
were independent; they share samples, so it is somewhat too narrow. The peers are a straight line in log n fitted to the
mean of the draws by least squares, with its own 90 % prediction interval, and the guess that nothing changes. The
hashed n-grams have 32,768 buckets, which makes a fit several times as fast.
"""

import argparse
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.tables import table
from effimini.curve import MORE, Curve, Items, Recipe, measure, of_runs
from effimini.metrics import Stars, plcc
from effimini.scaling_law import LEVEL
from prep.core import writers
from prep.core.params import parse_params, read_yaml

BUILD = Path("build/bench-curve")
BUCKETS = 32_768
FIRST = 1000  # seed of the first split; earlier ones were used to choose the method


class Outcome(NamedTuple):
    """What came of a split, for each of `MORE` and the backtest in the end."""

    true: npt.NDArray[np.float64]  # PLCC
    ours: npt.NDArray[np.float64]  # plcc, low, high
    line: npt.NDArray[np.float64]
    now: float  # PLCC at hand


def project(folder: Path) -> Recipe:
    """Return the closed form of a project, with fewer buckets."""
    with chdir(folder):
        raw = read_yaml(Path("params.yaml"))
        raw["model"]["hashed_ngrams"] = BUCKETS
        return Recipe(parse_params(raw, Path("params.yaml")), Path("data/shards"), Path("data/weights.json"))


def outcome(recipe: Recipe, samples: Items, items: int, seed: int) -> Outcome:
    """Return what comes of one split."""
    random = np.random.default_rng(seed)
    held_out = np.cumsum([len(recipe.test), len(recipe.validation)])
    test, validation, train = np.split(random.permutation(len(samples)), held_out)
    splits = samples.take(validation), samples.take(test)

    def fit(rows: npt.NDArray[np.int64]) -> Stars:
        return recipe.stars(samples.take(train[rows]), *splits)

    sizes, stars = measure(fit, items, seed)
    labels = splits[1].labels
    found = of_runs(sizes, stars, labels, recipe.ceiling)
    now = found.measured[-1].plcc
    true = [plcc(fit(np.arange(each.items)), labels) for each in found.forecasts]
    ours = [(each.plcc, each.low, each.high) for each in (*found.forecasts, found.backtest)]
    return Outcome(np.array([*true, now]), np.array(ours), straight_line(found), now)


def straight_line(found: Curve) -> npt.NDArray[np.float64]:
    """Return plcc, low, high of the peer for each of `MORE`."""
    x, y = np.log([point.items for point in found.measured]), np.array([point.plcc for point in found.measured])
    line = stats.linregress(x, y)
    free = len(x) - 2
    deviation = np.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / free)
    ahead = np.log([each.items for each in found.forecasts])
    spread = np.sqrt(1 + 1 / len(x) + (ahead - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    middle, half = line.intercept + line.slope * ahead, stats.t.ppf((1 + LEVEL) / 2, free) * deviation * spread
    return np.stack([middle, middle - half, middle + half], axis=1)


def row(name: str, true: npt.NDArray[np.float64], forecasts: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Return the cells of a predictor: of true PLCC [S], and plcc, low, high [S, 3]."""
    middle, low, high = forecasts.T
    covered = int(((low <= true) & (true <= high)).sum())
    ends = stats.binomtest(covered, len(true)).proportion_ci()
    error = true - middle
    return (
        name,
        f"{covered} of {len(true)}",
        f"{covered / len(true):.1%} ({ends.low:.0%} to {ends.high:.0%})",
        f"{(high - low).mean():.3f}",
        f"{np.sqrt((error**2).mean()):.4f}",
        f"{error.mean():+.4f}",
    )


def compare(folder: Path, splits: int, items: int) -> None:
    """Print the table of a project."""
    recipe = project(folder)
    samples = Items(recipe.train, recipe.validation, recipe.test)
    most = len(recipe.train)
    if round(max(MORE) * items) > most:
        raise SystemExit(f"{folder} has {most} training items; set --items to {most // 2} or less")
    found = [outcome(recipe, samples, items, seed) for seed in range(FIRST, FIRST + splits)]
    true, ours, line = (np.array([getattr(one, name) for one in found]) for name in ("true", "ours", "line"))
    now = np.array([one.now for one in found])
    writers.write_json(
        BUILD / f"{folder.name}.json", [{k: np.asarray(v).tolist() for k, v in one._asdict().items()} for one in found]
    )
    rows: list[Sequence[str]] = []
    for place, more in enumerate(MORE):
        gain = true[:, place] - now
        rows += [
            row(f"{more:g} times: ours", true[:, place], ours[:, place]),
            row(f"{more:g} times: straight line", true[:, place], line[:, place]),
            (f"{more:g} times: as now", "", "", "", f"{np.sqrt((gain**2).mean()):.4f}", f"{gain.mean():+.4f}"),
        ]
    rows.append(row("backtest: ours", true[:, -1], ours[:, -1]))
    head = ("forecast", "covered", f"of {LEVEL:.0%}", "mean width", "root mean square error", "mean error")
    table(f"{folder.name}: {splits} splits, {items} items at hand, {len(recipe.test)} test samples", head, rows)


def main() -> None:
    """Measure each project."""
    parser = argparse.ArgumentParser("python -m benchmarks.curve", description=__doc__.splitlines()[0])
    parser.add_argument("projects", type=Path, nargs="*", default=[Path("build/corpus")])
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--items", type=int, default=800)
    chosen = parser.parse_args()
    for folder in chosen.projects:
        compare(folder, chosen.splits, chosen.items)


if __name__ == "__main__":
    main()
