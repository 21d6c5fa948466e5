"""The curve over fractions: its law and interval, its draws, and that it is the curve of the recipe that is trained."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from typer.testing import CliRunner

from effimini import closed_form, curve, scaling_law
from effimini.cli import app
from effimini.curve import DRAWS, ITEM_FRACTIONS, MORE, measure, of_runs
from effimini.inference import open_split, predict_split
from effimini.metrics import plcc
from effimini.scaling_law import forecast
from effimini.train import Trainer
from prep.core.errors import UserError
from prep.core.params import Params
from shards.tokens import TokenizationConfig

from .conftest import replace
from .test_train import ONE

SIZES = [125, 250, 500, 1000]


def runs(wanted: npt.NDArray[np.float64], samples: int = 400) -> tuple[Any, Any]:
    """Return stars whose PLCC with the labels are exactly `wanted` [R, K], and the labels."""
    noise = np.random.default_rng(0).normal(size=(*wanted.shape, samples))
    labels = np.random.default_rng(1).normal(size=samples)
    labels -= labels.mean()
    noise -= noise.mean(axis=-1, keepdims=True)
    noise -= (noise @ labels / (labels @ labels))[..., None] * labels
    noise *= np.linalg.norm(labels) / np.linalg.norm(noise, axis=-1, keepdims=True)
    return wanted[..., None] * labels + np.sqrt(1 - wanted**2)[..., None] * noise, labels


@pytest.mark.parametrize(("exponent", "law"), [(0.0, np.log), (0.5, lambda n: 8 - 40 * n**-0.5)])
def test_a_curve_that_follows_the_law_is_continued(
    exponent: float, law: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_law, "EXPONENTS", (exponent,))
    stars, labels = runs(np.tile(0.1 + 0.05 * law(np.array(SIZES)), (3, 1)))
    found = forecast(SIZES, stars, labels, [1500, 4000])
    np.testing.assert_allclose([each.plcc for each in found], 0.1 + 0.05 * law(np.array([1500, 4000])), atol=1e-9)
    assert [each.items for each in found] == [1500, 4000]
    assert found[1].high - found[1].low > 1.2 * (found[0].high - found[0].low)


def test_the_exponent_follows_the_curve() -> None:
    flattening = np.array([0.1, 0.3, 0.4, 0.45])  # halved steps: an exponent of 1
    even = np.array([0.1, 0.2, 0.3, 0.4])
    stars = [runs(np.tile(each, (3, 1)), 20_000) for each in (flattening, even)]
    (of_flattening,), (of_even,) = (forecast(SIZES, *each, [2000]) for each in stars)
    assert of_flattening.plcc == pytest.approx(0.475, abs=0.003)
    assert of_even.plcc == pytest.approx(0.5, abs=0.003)


def test_draws_that_differ_widen_the_interval() -> None:
    mean = np.tile([0.2, 0.3, 0.4, 0.45], (4, 1))
    apart = np.array([-1, -1, 1, 1])[:, None] * np.array([0.04, 0.03, 0.02, 0.0])
    (same,), (moved,) = (forecast(SIZES, *runs(mean + by, 20_000), [2000]) for by in (0, apart))
    assert moved.high - moved.low > 2 * (same.high - same.low)


def ridge(seed: int) -> tuple[Callable[[Any], Any], Any]:
    """Return a cheap stand-in for the recipe, ridge regression on 40 features, and the labels of its test split."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=40)
    items, test = random.normal(size=(800, 40)), random.normal(size=(250, 40))
    seen, labels = (x @ truth + random.normal(0, 12, len(x)) for x in (items, test))

    def fit(rows: Any) -> Any:
        x = items[rows]
        return test @ np.linalg.solve(x.T @ x + 10 * np.eye(40), x.T @ seen[rows])

    return fit, labels


def test_the_interval_covers_held_out_runs_at_about_its_rate() -> None:
    held_out = []
    for seed in range(100):
        fit, labels = ridge(seed)
        found = of_runs(*measure(fit, 400, seed), labels)
        held_out += [(plcc(fit(np.arange(each.items)), labels), each, found.measured[-1]) for each in found.forecasts]
    assert [each.items for _, each, _ in held_out[:2]] == [600, 800]
    for place in range(len(MORE)):
        of_size = held_out[place :: len(MORE)]
        covered = sum(each.low <= true <= each.high for true, each, _ in of_size)
        errors = np.array([true - each.plcc for true, each, _ in of_size])
        gains = np.array([true - now.plcc for true, _, now in of_size])
        assert 85 <= covered <= 96
        assert np.square(errors).mean() < 0.8 * np.square(gains).mean()


def test_draws_are_nested_and_the_same_for_a_seed() -> None:
    fitted: list[set[int]] = []

    def fit(rows: Any) -> Any:
        fitted.append(set(rows.tolist()))
        assert (np.diff(rows) > 0).all()
        return np.array([len(rows), rows.sum()], np.float32)

    sizes, stars = measure(fit, 200, 7)
    assert sizes == [25, 35, 50, 71, 100, 141, 200]
    of_draws = [fitted[i : i + len(ITEM_FRACTIONS)] for i in range(0, DRAWS * len(ITEM_FRACTIONS), len(ITEM_FRACTIONS))]
    for draw in of_draws:
        assert all(less < more for less, more in pairwise(draw))
    assert len({frozenset(draw[0]) for draw in of_draws}) == DRAWS
    assert fitted[-1] == set(range(200))
    assert len(fitted) == DRAWS * len(ITEM_FRACTIONS) + 1
    np.testing.assert_array_equal(stars[:, :, 0], np.tile(sizes, (DRAWS, 1)))
    np.testing.assert_array_equal(measure(fit, 200, 7)[1], stars)
    assert not np.array_equal(measure(fit, 200, 8)[1], stars)


def test_no_forecast_is_above_the_ceiling_or_depends_on_held_out_runs() -> None:
    sizes = [round(1000 * fraction) for fraction in (*ITEM_FRACTIONS, 1)]
    stars, labels = runs(np.tile([0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6], (DRAWS, 1)))
    free, capped = (of_runs(sizes, stars, labels, ceiling) for ceiling in (1.0, 0.65))
    assert free.forecasts[1].high > free.forecasts[1].plcc > 0.65
    assert [each.high for each in capped.forecasts] == [0.65, 0.65]
    assert capped.forecasts[1].plcc == 0.65
    assert capped.forecasts[1].low == free.forecasts[1].low < 0.65
    stars[:, -1] = 0  # a backtest must not see what it forecasts
    assert of_runs(sizes, stars, labels).backtest == free.backtest


@pytest.fixture(scope="module")
def frozen(small: Params) -> Params:
    return replace(
        small,
        model={"hashed_ngrams": 1 << 12, "kernel": 1000, "tabular": ("price", "title_length")},
        train={"freeze_encoders": True},
    )


@pytest.fixture(scope="module")
def hashed(small: Params) -> Params:
    return replace(small, model={"hashed_ngrams": 1 << 12})


@pytest.mark.parametrize("recipe", ["frozen", "hashed"])
def test_at_all_items_it_is_the_closed_form_that_a_training_fits(
    recipe: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    params: Params = request.getfixturevalue(recipe)
    shards, weights = data / "shards", data / "weights.json"
    found = curve.curve(params, shards, weights, tmp_path / "one")
    model = Trainer(params, shards, weights, ONE).model
    assert model.closed_form is not None
    model.closed_form.fraction.fill_(1)
    tokenization = TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)
    test = open_split(shards, params, "test", tokenization, params.images.resolution, params.model.tabular)
    stars = predict_split(model, test, ONE, params)
    assert found.measured[-1].plcc == pytest.approx(plcc(stars, test.labels), abs=1e-4)
    assert (found.items, found.samples) == (80, len(test))
    assert 0 < found.measured[-1].plcc <= 1
    assert [each.items for each in found.forecasts] == [120, 160]

    assert curve.curve(params, shards, weights, tmp_path / "two") == found
    for name in ("curve.csv", "curve.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    table = pd.read_csv(tmp_path / "one/curve.csv")
    assert table["kind"].tolist() == ["measured"] * 7 + ["backtest"] + ["forecast"] * 2
    assert table["plcc"].iloc[6] == pytest.approx(found.measured[-1].plcc)
    assert "training items" in (tmp_path / "one/curve.svg").read_text()


def test_the_command_prints_the_table_or_json(
    hashed: Params, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effimini.cli.common.load_params", lambda _: hashed)
    monkeypatch.setattr("prep.core.pipeline.check_dvc_yaml", lambda _: None)
    options = ["--data", str(data), "--output", str(tmp_path / "out")]
    shown = CliRunner().invoke(app, ["curve", *options], catch_exceptions=False)
    assert shown.exit_code == 0
    assert re.search(r"│ +160 │ +200% │", shown.stdout)
    assert str(tmp_path / "out/curve.svg") in shown.stdout.replace("\n", "")
    printed = CliRunner().invoke(app, ["curve", "--json", *options], catch_exceptions=False)
    found = json.loads(printed.stdout)
    assert found["items"] == found["measured"][-1]["items"] == 80
    assert found["forecasts"][0]["low"] < found["forecasts"][0]["plcc"] <= found["ceiling"]
    external = CliRunner().invoke(
        app, ["curve", "--json", "--shards", str(data / "shards"), "--output", str(tmp_path)], catch_exceptions=False
    )
    assert json.loads(external.stdout)["measured"] == found["measured"]


@pytest.mark.parametrize(
    ("changes", "limits", "message"),
    [
        (
            {"hashed_ngrams": 0},
            {},
            r"model.hashed_ngrams and model.kernel are 0, .*; set model.hashed_ngrams to 262144$",
        ),
        ({}, {"FEWEST_ITEMS": 81}, r"shards has 80 training samples and a curve needs 81; raise sample.fraction$"),
        ({}, {"FITTED": 79}, r"shards has 80 training samples and .* at most 79; lower sample.fraction, or .*$"),
        ({}, {"SMALL": 65}, r"test split in .*shards has 64 samples .* needs 65 and two; raise sample.eval_fraction$"),
    ],
)
def test_what_makes_no_curve_is_one_sentence(
    hashed: Params,
    data: Path,
    changes: dict[str, object],
    limits: dict[str, int],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(closed_form if name == "FITTED" else curve, name, value)
    with pytest.raises(UserError, match=message) as error:
        curve.curve(replace(hashed, model=changes), data / "shards", data / "weights.json")
    assert "\n" not in str(error.value)
    assert not Path("results").exists()
