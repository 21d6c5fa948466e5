"""Compare recipes on the films or the electronics, with equal data, over several splits.

    make ablation                     # or: python -m benchmarks.ablation [--recipes paper best] [--salts effimini ...]
    python -m benchmarks.ablation --corpus electronics

Input: as for `benchmarks.corpus`. Output: a table, the highest PLCC that noise in the labels allows, and
build/ablation/<corpus>/<salt>/<recipe>/ with metrics, predictions and duration. Guarantees: a recipe is the preset
corpus (the paper's recipe) or best, with the changes listed here, run by the same pipeline; a finished run is not
repeated, so an interrupted benchmark resumes; the epoch of each recipe is chosen on validation.

Each salt gives another split of the items, with 80 % for training. Recipes are compared on the test splits.
Differences are computed per split, paired by item, and averaged over the salts; their intervals are 95 % intervals of
2,000 bootstrap resamples of the items. An item that is in several test splits is drawn for all of them together.
"""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

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
# The changes of each recipe to the preset corpus (the paper's recipe), or to best if its name begins with "best".
RECIPES: dict[str, dict[str, Any]] = {
    # as all published runs; set it to fp32 on a CPU that does not multiply bfloat16, where this is far slower
    PAPER: {"train.precision": "bf16"},
    BEST: {},
    "best, unweighted": {"weights.count": "none"},
    "best without kernel and columns": {"model.kernel": 0, "model.tabular": []},
}

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


class Split(NamedTuple):
    """The test split of a salt."""

    items: npt.NDArray[np.int64]  # number of each item, the same in all splits
    labels: Stars
    stars: Mapping[str, Stars]  # of each recipe, and of ridge on its text


def read_splits(corpus: str, recipes: Sequence[str], salts: Sequence[str]) -> list[Split]:
    """Return the test split of each salt, with its items in the order of their keys."""
    numbers: dict[str, int] = {}
    splits = []
    for salt in salts:
        stars = {}
        for recipe in recipes:
            folder = run_folder(corpus, salt, recipe)
            frame = pq.read_table(folder / "predictions/test.parquet").to_pandas()
            frame["key"] = frame["category"] + "/" + frame["parent_asin"]
            frame = frame.merge(pd.read_csv(folder / "ridge.csv"), on="key", validate="one_to_one").sort_values("key")
            stars |= {recipe: frame["prediction"].to_numpy(), f"{RIDGE}, {recipe}": frame["stars"].to_numpy()}
        items = np.array([numbers.setdefault(key, len(numbers)) for key in frame["key"]])
        splits.append(Split(items, frame["average_rating"].to_numpy(), stars))
    return splits


def mean_plcc(splits: Sequence[Split], ours: str, theirs: str | None = None) -> tuple[float, float, float]:
    """Return the mean PLCC over the splits, minus that of `theirs` if given, and its 95 % interval."""

    def mean(times: npt.NDArray[np.int64]) -> float:
        values = []
        for split in splits:
            rows = np.repeat(np.arange(len(split.items)), times[split.items])
            values.append(plcc(split.stars[ours][rows], split.labels[rows]))
            if theirs is not None:
                values[-1] -= plcc(split.stars[theirs][rows], split.labels[rows])
        return float(np.mean(values))

    rng, items = np.random.default_rng(0), 1 + max(int(split.items.max()) for split in splits)
    draws = (np.bincount(rng.integers(0, items, items), minlength=items) for _ in range(RESAMPLES))
    low, high = np.percentile([mean(times) for times in draws], [2.5, 97.5])
    return mean(np.ones(items, np.int64)), float(low), float(high)


def format_gap(gap: tuple[float, float, float]) -> str:
    """Return a difference of `mean_plcc` and its interval as a table cell."""
    return f"{gap[0]:+.3f} ({gap[1]:+.3f} to {gap[2]:+.3f})"


def highest_plcc(items: pd.DataFrame) -> dict[str, float]:
    """Return the noise ceiling of the items: with the scatter of their labels, and with that of their reviews if any.

    Args:
        items: rows of `prep.core.tables.items.JOINED`.
    """
    labels, counts = items["average_rating"].to_numpy(), items["rating_number"].to_numpy()
    scatter = {"labels": ceiling.scatter_of_labels(labels, counts, np.zeros(len(items), np.int64)).value}
    reviewed = items[items["review_count"] > 1]
    if len(reviewed):
        reviews = (reviewed[name].to_numpy() for name in ("review_mean", "review_spread", "review_count"))
        scatter["reviews"] = ceiling.scatter_of_reviews(*reviews)
    return {name: ceiling.ceiling(labels, counts, value) for name, value in scatter.items()}


def report(corpus: str, recipes: Sequence[str], salts: Sequence[str]) -> None:
    """Print the results of recipes on the test splits of all salts."""
    splits, rows = read_splits(corpus, recipes, salts), []
    for recipe in recipes:
        done = [run_folder(corpus, salt, recipe) for salt in salts]
        checked = [files.read_json(path / "metrics.json")["validation"]["plcc"] for path in done]
        others = [name if name in recipes and name != recipe else None for name in (PAPER, BEST)]
        rows.append(
            (
                recipe,
                f"{np.mean(checked):.3f}",
                "{:.3f} ({:.3f} to {:.3f})".format(*mean_plcc(splits, recipe)),
                *(format_gap(mean_plcc(splits, recipe, name)) if name else "" for name in others),
                format_gap(mean_plcc(splits, recipe, f"{RIDGE}, {recipe}")),
                f"{np.mean([files.read_json(path / 'minutes.json') for path in done]):.1f}",
            )
        )
    items = ", ".join(str(len(split.items)) for split in splits)
    table(
        f"{len(salts)} splits of the {corpus}; items in the test splits: {items}",
        (
            "recipe",
            "validation PLCC",
            "test PLCC",
            "less the paper's",
            "less best",
            f"less {RIDGE} on the same text",
            "minutes",
        ),
        rows,
    )
    if found_items := sorted((BUILD / corpus / "work/data/items").glob("*/*.parquet")):
        all_items = pd.concat([pq.read_table(path).to_pandas() for path in found_items])
        found = ", ".join(f"{value:.3f} by their {name}" for name, value in highest_plcc(all_items).items())
        print(f"The true mean ratings of the {corpus} would have a PLCC of {found}")


def main() -> None:
    """Run the recipes and print their results."""
    parser = argparse.ArgumentParser("python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default=CORPORA[0], choices=CORPORA)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--salts", nargs="+", default=list(SALTS))
    chosen = parser.parse_args()
    for salt in chosen.salts:
        for recipe in chosen.recipes:
            run(chosen.corpus, salt, recipe)
    report(chosen.corpus, chosen.recipes, chosen.salts)


if __name__ == "__main__":
    main()
