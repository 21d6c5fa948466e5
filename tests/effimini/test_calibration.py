import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from effimini import calibration
from effimini.calibration import Interval, Line, apply_line, bounds, covered, fit_interval, fit_line
from effimini.metrics import plcc, rmse
from effimini.model import EffiMini, build
from effimini.precheck import COVERAGES
from prep.core import files
from prep.core.errors import UserError
from prep.core.params import Params

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
LINE = {"intercept": -1.5, "slope": 1.25}
INTERVAL: dict[str, Any] = {
    "between": 0.05,
    "within": 0.3,
    "power": 0.9,
    "tails": [0.3, 0.25, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0],
    "ratings": 9,
    "samples": 100,
}


def rated(samples: int, seed: int) -> tuple[Floats, Floats, Counts]:
    """Return scores, labels and rating counts of items whose true means are known to vary around their scores.

    A rating is one of the whole numbers beside the item's true mean, or 1 or 5, with probabilities that give that mean:
    its variance is 0.4 times the largest possible one, and a little more.
    """
    random = np.random.default_rng(seed)
    score = random.choice([2.2, 3.4, 4.6], samples)
    place = random.beta((score - 1) / 4 * 20, (5 - score) / 4 * 20)
    mean, counts = 1 + 4 * place, np.exp(random.uniform(0, np.log(1000), samples)).astype(np.int64)
    beside = 1 - (mean - np.floor(mean))
    chances = 0.4 * np.array([1 - place, 0 * place, 0 * place, 0 * place, place])
    for star in range(5):
        chances[star] += 0.6 * (np.floor(mean) == star + 1) * beside + 0.6 * (np.floor(mean) == star) * (1 - beside)
    labels = random.multinomial(counts, chances.T) @ np.arange(1, 6) / counts
    return score.astype(np.float32), np.round(labels, 1).astype(np.float32), counts


def test_the_line_has_the_least_error_and_keeps_the_correlation() -> None:
    random = np.random.default_rng(0)
    labels = random.uniform(1, 5, 500).astype(np.float32)
    scores = (3.6 + 0.05 * labels + random.normal(0, 0.05, 500)).astype(np.float32)
    line = fit_line(scores, labels)
    assert line is not None
    stars = apply_line(line, scores)
    assert stars.dtype == np.float32
    assert plcc(stars, labels) == pytest.approx(plcc(scores, labels), abs=1e-6)
    assert rmse(stars, labels) < 0.7 * rmse(scores, labels)
    for changed in (Line(line.intercept + 0.02, line.slope), Line(line.intercept, line.slope * 1.01)):
        assert rmse(apply_line(changed, scores), labels) > rmse(stars, labels)
    assert torch.equal(apply_line(line, torch.from_numpy(scores)), torch.from_numpy(stars))
    assert apply_line(None, scores) is scores


UP = np.linspace(3, 4, 20, dtype=np.float32)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (UP[:19], UP[:19]),
        (UP[:0], UP[:0]),
        (0 * UP + 3, UP),
        (UP, 0 * UP + 3),
        (-UP, UP),
        (UP * np.float32(np.nan), UP),
        (UP / 1e6, UP),
        (UP * 1e6, UP),
    ],
    ids=("few", "none", "constant scores", "constant labels", "falling", "nan", "almost constant", "huge"),
)
def test_no_line_is_fitted_to_too_little(scores: Floats, labels: Floats) -> None:
    assert fit_line(UP, UP) == Line(pytest.approx(0, abs=1e-5), pytest.approx(1))
    assert fit_line(scores, labels) is None


def by_group(interval: Interval, given: tuple[Floats, Floats, Counts], coverage: float) -> dict[str, float]:
    """Return the coverage of all labels, and by rating count and score."""
    score, _, counts = given
    groups = {"all": counts > 0, "few": counts < 4, "some": (counts >= 4) & (counts < 60), "many": counts >= 60}
    groups |= {f"{star:.1f}": score == star for star in np.unique(score)}
    return {name: covered(interval, *(column[rows] for column in given), coverage) for name, rows in groups.items()}


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_intervals_cover_what_they_promise_at_every_count_and_score(coverage: float) -> None:
    given = rated(20_000, 1)
    interval = fit_interval(*rated(3000, 0), ratings=30)
    assert interval is not None
    found = by_group(interval, given, coverage)
    assert abs(found["all"] - coverage) < 0.02, found
    if coverage > 0.8:  # few ratings have few possible means, so intervals of the middle are wider than they need to be
        assert max(abs(part - coverage) for part in found.values()) < 0.05, found


def test_an_interval_that_ignores_the_counts_would_be_noticed() -> None:
    score, labels, counts = rated(3000, 0)
    blind = fit_interval(score, labels, 0 * counts + 30, ratings=30)
    assert blind is not None
    score, labels, counts = rated(20_000, 1)
    few = counts < 4
    assert covered(blind, score[few], labels[few], 0 * counts[few] + 30, 0.9) < 0.8


def test_independent_ratings_are_recognised() -> None:
    interval = fit_interval(*rated(20_000, 0), ratings=30.5)
    assert interval is not None
    assert interval.between == pytest.approx(1 / 21, abs=0.01)  # of the beta distribution of the true means
    assert 0.4 < interval.within < 0.6
    assert interval.power > 0.9
    assert (interval.ratings, interval.samples) == (30, 20_000)


def test_intervals_are_nested_contain_the_score_and_shrink_with_the_count() -> None:
    interval = fit_interval(*rated(2000, 0), ratings=30)
    assert interval is not None
    score = np.repeat(np.linspace(1, 5, 41, dtype=np.float32), 4)
    counts = np.tile(np.array([1, 10, 1000, 2**53]), 41)
    ends = [bounds(interval, score, counts, coverage) for coverage in (*COVERAGES, 0.55, 0.85)]
    for low, high in ends:
        assert ((low >= 1) & (low <= score) & (score <= high) & (high <= 5)).all()
    for (low, high), (lower, higher) in pairwise(ends[: len(COVERAGES)]):
        assert ((lower <= low) & (high <= higher)).all()
    width = np.subtract(*ends[4][::-1]).reshape(41, 4)[10:31]  # where the ends of the scale do not cut
    assert (np.diff(width) < 0).all()


def test_too_few_samples_have_no_interval() -> None:
    few = rated(calibration.FEWEST - 1, 0)
    assert fit_interval(*few, ratings=1) is None
    enough = fit_interval(*rated(calibration.FEWEST, 0), ratings=0)
    assert enough is not None
    assert (enough.ratings, enough.tails[-1]) == (1, 0.0)  # 99 % of 20: the whole scale
    score, labels, counts = rated(100, 0)
    assert fit_interval(score * np.float32(np.nan), labels, counts, ratings=1) is None


@torch.inference_mode()
def test_a_saved_line_is_applied_in_evaluation_mode_only(small: Params, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(small).eval()
    random = np.random.default_rng(0)
    given = (
        torch.from_numpy(random.integers(0, 255, (3, 3, 32, 32), np.uint8)),
        torch.from_numpy(random.integers(0, 50, (3, 7))),
        torch.ones(3, 7, dtype=torch.int64),
        torch.tensor([True, False, True]),
    )
    score = model(*given)
    model.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/config.json"
    config = files.read_json(path)
    path.write_text(json.dumps(config | {"calibration": LINE, "interval": INTERVAL}))
    again = EffiMini.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(*given), -1.5 + 1.25 * score)
    again.training = True  # the modules inside stay in evaluation mode
    assert torch.equal(again(*given), score)
    again.save_pretrained(tmp_path / "twice")
    assert files.read_json(tmp_path / "twice/config.json") == files.read_json(path)
    path.write_text(
        json.dumps({name: value for name, value in config.items() if name not in ("calibration", "interval")})
    )
    assert torch.equal(EffiMini.from_pretrained(tmp_path / "saved")(*given), score), "a model of an earlier version"


@pytest.mark.parametrize(
    "change",
    [
        *({"calibration": LINE | wrong} for wrong in ({"slope": 0}, {"slope": -1}, {"slope": 1e9}, {"intercept": 1e9})),
        *({"calibration": wrong} for wrong in ([1, 2], {"slope": 1}, LINE | {"more": 1})),
        *({"interval": INTERVAL | {name: wrong}} for name in ("between", "within", "power") for wrong in (-1, 0, 1, 2)),
        *({"interval": INTERVAL | wrong} for wrong in ({"ratings": 0}, {"ratings": 2**60}, {"samples": 3})),
        *({"interval": INTERVAL | {"tails": wrong}} for wrong in ([], [0.1] * 7, [0.1] * 9, [-0.1] * 8, [0.6] * 8)),
        {"interval": {"between": 0.1}},
    ],
)
def test_figures_out_of_range_are_refused(small: Params, tmp_path: Path, change: dict[str, object]) -> None:
    """Only the configuration is read, so the folder needs no weights."""
    content = msgspec.to_builtins(build(small).config)
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=r"config.json is not a model configuration .*; run `dvc checkout`"):
        EffiMini.from_pretrained(tmp_path)
