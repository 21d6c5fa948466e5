"""Compare recipes on the films or the electronics, with equal data and epochs, over several splits.

    make ablation                     # or: python -m benchmarks.ablation [--recipes paper best] [--salts effimini ...]
    python -m benchmarks.ablation --corpus electronics

Input: as for `benchmarks.corpus`. Output: a table, a plot of the fractions, the highest PLCC that noise in the labels
allows, and build/ablation/<corpus>/<salt>/<recipe>/ with metrics, predictions and duration. Guarantees: a recipe is the
preset corpus (the paper's recipe) or best, with the changes listed here, run by the same pipeline; a finished run is
not repeated, so an interrupted benchmark resumes; the epoch of each recipe is chosen on validation.

Most recipes are only screened: they run on one split and are compared on its validation split. The finalists run on
all splits and are compared on the test splits. Each salt gives another split of the items, with 80 % for training.
Differences are computed per split, paired by item, and averaged over the salts; their intervals are 95 % intervals of
2,000 bootstrap resamples of the items. An item is in the test split of several salts, so the intervals over several
salts are somewhat too narrow.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from benchmarks.corpus import command, project
from benchmarks.tables import table
from effimini import ceiling
from effimini.baselines import baselines
from effimini.inference import open_split
from effimini.metrics import plcc
from prep.core import files, writers
from prep.core.params import load_params, read_yaml
from prep.weights import read_weights
from shards.tokens import TokenizationConfig

BUILD = Path("build/ablation")
CORPORA = ("films", "electronics")
PAPER, BEST, RIDGE = "paper", "best", "TF-IDF + ridge"
SALTS = ("effimini", "one", "two", "three", "four")
RESAMPLES = 2000
_MORE_TEXT = ["main_category", "title", "features", "store", "details", "description"]
_FROZEN = {  # trains only the head, on features computed once: minutes instead of a quarter of an hour
    "train.freeze_encoders": True,
    "train.epochs": 12,
    "train.patience": 4,
    "train.head_learning_rate": 1e-3,
}
# The changes of each recipe to the preset corpus (the paper's recipe), or to best if its name begins with "best".
SCREENED: dict[str, dict[str, Any]] = {  # on one split, compared on its validation split only
    "head 1e-3, encoders 5e-5": {"train.head_learning_rate": 1e-3, "train.learning_rate": 5e-5},
    "frozen": _FROZEN,
    "frozen, unweighted loss": _FROZEN | {"weights.count": "none"},
    "frozen, mean pooling": _FROZEN | {"model.pooling": "mean"},
    "frozen, store and details": _FROZEN | {"text.fields": _MORE_TEXT},
    "frozen, dropout 0.5": _FROZEN | {"model.dropout": 0.5},
    "frozen, hashed n-grams": _FROZEN | {"model.hashed_ngrams": 262_144},
    "best without hashed n-grams": {"model.hashed_ngrams": 0},
    "best without kernel": {"model.kernel": 0},
    "best, text of the paper": {"text.fields": ["main_category", "title", "features", "description"]},
    "best, encoders trained": {
        "train.freeze_encoders": False,
        "model.kernel": 0,
        "train.epochs": 4,
        "train.patience": 1,
    },
}
FINALISTS: dict[str, dict[str, Any]] = {  # on all splits, compared on the test splits
    PAPER: {},
    BEST: {},
    "best, unweighted loss": {"weights.count": "none"},
    "best, 40 % of the training items": {"sample.fraction": 0.4},
    "best, 20 % of the training items": {"sample.fraction": 0.2},
}
RECIPES = SCREENED | FINALISTS

FRACTIONS = {20: "best, 20 % of the training items", 40: "best, 40 % of the training items", 100: BEST}

Stars = npt.NDArray[np.float64]


def run_folder(corpus: str, salt: str, recipe: str) -> Path:
    """Return the folder of a run."""
    return BUILD / corpus / salt / recipe.replace(" ", "_")


def run(corpus: str, salt: str, recipe: str) -> None:
    """Run the pipeline of one recipe on one split, unless there is a finished run."""
    done = run_folder(corpus, salt, recipe)
    if done.exists():
        return
    params = read_yaml(Path(f"params/{'best' if recipe.startswith(BEST) else 'corpus'}.yaml"))
    if corpus == "electronics":
        params |= {name: read_yaml(Path("params/electronics.yaml"))[name] for name in ("source", "images")}
    for name, value in {**RECIPES[recipe], "sample.salt": salt}.items():
        section, key = name.split(".")
        params[section][key] = value
    work = BUILD / corpus / "work"
    start = time.monotonic()
    with project(work, params):
        command("dvc", "repro", "-q", cwd=work)
    with files.atomic_folder(done) as out:
        shutil.copytree(work / "data/predictions", out / "predictions")
        shutil.copyfile(work / "results/evaluation.json", out / "metrics.json")
        shutil.copyfile(work / "params.yaml", out / "params.yaml")
        writers.write_json(out / "minutes.json", round((time.monotonic() - start) / 60, 1))
        with chdir(work):
            ridge = _ridge()
        ridge.to_csv(out / "ridge.csv", index=False)


def _ridge() -> pd.DataFrame:
    """Return the predictions of TF-IDF + ridge for the test split of the project in the working directory."""
    params = load_params(Path("params.yaml"))
    tokenization = TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)
    train, validation, test = (
        open_split(Path("data/shards"), params, split, tokenization, params.images.resolution)
        for split in ("train", "validation", "test")
    )
    weights = read_weights(Path("data/weights.json"))
    stars = baselines(train, validation, test, weights, params.text.fields, refit=params.train.refit)[RIDGE]
    return pd.DataFrame({"key": test.keys, "stars": stars})


def predictions(corpus: str, salt: str, recipe: str, split: str) -> pd.DataFrame:
    """Return key, label and predicted stars of each item of a split, ordered by key."""
    frame = pq.read_table(run_folder(corpus, salt, recipe) / f"predictions/{split}.parquet").to_pandas()
    frame["key"] = frame["category"] + "/" + frame["parent_asin"]
    return frame[["key", "average_rating", "prediction"]].sort_values("key").reset_index(drop=True)


def with_ridge(corpus: str, salt: str, recipe: str) -> pd.DataFrame:
    """Return the predictions and those of ridge for each item of the test split, ordered by key."""
    ridge = pd.read_csv(run_folder(corpus, salt, recipe) / "ridge.csv")
    return predictions(corpus, salt, recipe, "test").merge(ridge, on="key", validate="one_to_one")


def mean_plcc(
    ours: Mapping[str, Stars], labels: Mapping[str, Stars], theirs: Mapping[str, Stars] | None = None
) -> tuple[float, float, float]:
    """Return the mean PLCC over the salts, minus that of `theirs` if given, and its 95 % interval."""

    def mean(draw: Callable[[int], npt.NDArray[np.int64]]) -> float:
        values = []
        for salt, label in labels.items():
            rows = draw(len(label))
            values.append(plcc(ours[salt][rows], label[rows]))
            if theirs is not None:
                values[-1] -= plcc(theirs[salt][rows], label[rows])
        return float(np.mean(values))

    rng = np.random.default_rng(0)
    low, high = np.percentile([mean(lambda n: rng.integers(0, n, n)) for _ in range(RESAMPLES)], [2.5, 97.5])
    return mean(np.arange), float(low), float(high)


def format_gap(gap: tuple[float, float, float]) -> str:
    """Return a difference of `mean_plcc` and its interval as a table cell."""
    return f"{gap[0]:+.3f} ({gap[1]:+.3f} to {gap[2]:+.3f})"


def highest_plcc(items: pd.DataFrame) -> tuple[float, float]:
    """Return the noise ceiling of the items: with the scatter of their reviews, and with that of their labels.

    Args:
        items: rows of `prep.core.tables.items.JOINED`.
    """
    labels, counts = items["average_rating"].to_numpy(), items["rating_number"].to_numpy()
    reviewed = items[items["review_count"] > 1]
    reviews = (reviewed[name].to_numpy() for name in ("review_mean", "review_spread", "review_count"))
    of_labels = ceiling.scatter_of_labels(labels, counts, np.zeros(len(items), np.int64))
    of_reviews = ceiling.scatter_of_reviews(*reviews)
    return ceiling.ceiling(labels, counts, of_reviews), ceiling.ceiling(labels, counts, of_labels.value)


def plot_fractions(
    path: Path,
    stars: Mapping[str, Mapping[str, Stars]],
    ridge: Mapping[str, Mapping[str, Stars]],
    labels: Mapping[str, Stars],
) -> None:
    """Plot test PLCC over the fraction of training items, for the best recipe and for ridge on the same items."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, predicted, shift in (("best", stars, 0.99), (RIDGE, ridge, 1.01)):
        points = [mean_plcc(predicted[recipe], labels) for recipe in FRACTIONS.values()]
        middle, low, high = np.array(points).T
        percents = np.array(list(FRACTIONS)) * shift
        axes.errorbar(percents, middle, [middle - low, high - middle], marker="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="training items, %", ylabel="test PLCC, 95 % interval", ylim=(0, None))
    axes.set_xticks(list(FRACTIONS), map(str, FRACTIONS))
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def screening(corpus: str, recipes: Sequence[str], salt: str) -> None:
    """Print the results of recipes on the validation split of one salt."""
    frames = {
        recipe: predictions(corpus, salt, recipe, "validation") for recipe in dict.fromkeys([*recipes, PAPER, BEST])
    }
    labels = {salt: frames[PAPER]["average_rating"].to_numpy(float)}
    stars = {recipe: {salt: frame["prediction"].to_numpy(float)} for recipe, frame in frames.items()}
    rows = [
        (
            recipe,
            f"{plcc(ours[salt], labels[salt]):.3f}",
            *(format_gap(mean_plcc(ours, labels, stars[other])) for other in (PAPER, BEST)),
            f"{files.read_json(run_folder(corpus, salt, recipe) / 'minutes.json'):.1f}",
        )
        for recipe, ours in stars.items()
    ]
    table(
        f"screened on the validation split of one salt, {len(labels[salt])} {corpus}",
        ("recipe", "validation PLCC", "minus the paper's", "minus best", "minutes"),
        rows,
    )


def report(corpus: str, recipes: Sequence[str], salts: Sequence[str]) -> None:
    """Print the results of recipes on the test splits of all salts."""
    rows = []
    frames = {recipe: {salt: with_ridge(corpus, salt, recipe) for salt in salts} for recipe in recipes}
    labels = {salt: frame["average_rating"].to_numpy(float) for salt, frame in frames[recipes[0]].items()}
    stars = {
        recipe: {salt: frame["prediction"].to_numpy(float) for salt, frame in of_salt.items()}
        for recipe, of_salt in frames.items()
    }
    ridges = {
        recipe: {salt: frame["stars"].to_numpy(float) for salt, frame in of_salt.items()}
        for recipe, of_salt in frames.items()
    }
    for recipe in recipes:
        done = [run_folder(corpus, salt, recipe) for salt in salts]
        scores = [plcc(stars[recipe][salt], labels[salt]) for salt in salts]
        checked = [files.read_json(path / "metrics.json")["validation"]["plcc"] for path in done]
        others = [("the paper's", stars.get(PAPER)), (BEST, stars.get(BEST)), (RIDGE, ridges[recipe])]
        gaps = [mean_plcc(stars[recipe], labels, other) if other else None for _, other in others]
        rows.append(
            (
                recipe,
                f"{np.mean(checked):.3f}",
                f"{np.mean(scores):.3f}",
                *("" if gap is None else format_gap(gap) for gap in gaps),
                f"{np.mean([files.read_json(path / 'minutes.json') for path in done]):.1f}",
            )
        )
    items = ", ".join(str(len(label)) for label in labels.values())
    table(
        f"{len(salts)} splits of the {corpus}; items in the test splits: {items}",
        (
            "recipe",
            "validation PLCC",
            "test PLCC",
            "minus the paper's",
            "minus best",
            f"minus {RIDGE} on the same text",
            "minutes",
        ),
        rows,
    )
    if {*FRACTIONS.values()} <= {*recipes}:
        plot_fractions(BUILD / corpus / "fractions.svg", stars, ridges, labels)
        print(f"{BUILD / corpus / 'fractions.svg'} shows the fractions")
    if found_items := sorted((BUILD / corpus / "work/data/items").glob("*/*.parquet")):
        items = pd.concat([pq.read_table(path).to_pandas() for path in found_items])
        by_reviews, by_labels = highest_plcc(items)
        print(
            f"The true mean ratings of the {corpus} would have a PLCC of {by_reviews:.3f} ({by_labels:.3f} by labels)"
        )


def main() -> None:
    """Run the recipes and print their results."""
    parser = argparse.ArgumentParser("python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default=CORPORA[0], choices=CORPORA)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--salts", nargs="+", default=list(SALTS))
    chosen = parser.parse_args()
    finalists = [recipe for recipe in FINALISTS if recipe in chosen.recipes]
    screened = [recipe for recipe in SCREENED if recipe in chosen.recipes]
    for salt in chosen.salts:
        for recipe in finalists:
            run(chosen.corpus, salt, recipe)
    if finalists:
        report(chosen.corpus, finalists, chosen.salts)
    if screened:
        for recipe in (PAPER, BEST, *screened):
            run(chosen.corpus, chosen.salts[0], recipe)
        screening(chosen.corpus, screened, chosen.salts[0])


if __name__ == "__main__":
    main()
