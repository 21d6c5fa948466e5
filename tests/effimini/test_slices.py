"""The slices of the test split, on samples made in memory: their metadata is what `ShardDataset` returns."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest

from effimini import slices
from effimini.ceiling import UNKNOWN, ceiling
from effimini.metrics import Scatter, Slice, mae, plcc
from effimini.slices import Predicted
from shards.stream import ShardDataset

SCATTER = Scatter(0.4, 0.38, 0.42, 1000)


class Made:
    """Samples of the test split, as far as `slices` reads them; each metadata may be read once, in order."""

    def __init__(
        self,
        number: int,
        metadata: Mapping[str, list[Any]] | None = None,
        tabular: Mapping[str, list[Any]] | None = None,
    ) -> None:
        random = np.random.default_rng(0)
        self.rating_number = random.choice([3, 30, 3000], number)
        noise = 1.2 * random.normal(size=number) / np.sqrt(self.rating_number)
        self.truth = (3.5 + 0.7 * random.normal(size=number)).astype(np.float32)
        self.labels = np.clip(self.truth + noise, 1, 5).round(1).astype(np.float32)
        self.categories = ["Alpha" if i % 3 else "Beta" for i in range(number)]
        self.has_image = np.arange(number) % 4 != 0
        self._metadata, self._tabular = metadata or {}, tabular or {}
        self._read = 0

    def __len__(self) -> int:
        return len(self.labels)

    def tabular_column(self, name: str) -> Any:
        given = self._tabular.get(name, [None])
        values = [value if isinstance(value, (int, float)) else np.nan for value in given]
        return np.array([values[i % len(values)] for i in range(len(self))], np.float32)

    def metadata(self, i: int) -> Mapping[str, Any]:
        assert i == self._read
        self._read += 1
        own = {name: values[i % len(values)] for name, values in self._metadata.items()}
        return {"title": "A lamp", "features": "bright", "description": "", "main_category": "Alpha"} | own


def measure(made: Made, scatter: Scatter = SCATTER, *, shift: float = 0.2) -> dict[tuple[str, str], Slice]:
    """Return the slices by grouping and group; without the image the score moves by `shift`."""
    without_image = made.truth + np.where(made.has_image, np.float32(shift), 0).astype(np.float32)
    predicted = Predicted(made.truth, without_image, np.full_like(made.truth, 4), {"other": made.truth[::-1]})
    found = slices.slices(cast(ShardDataset, made), predicted, scatter, 50, 0)
    assert (found[0].by, found[0].samples) == (slices.ALL, len(made))
    return {(each.by, each.group): each for each in found}


def test_a_slice_is_measured_on_its_samples() -> None:
    made = Made(600)
    found = measure(made)["rating_number", "2-4"]
    chosen = made.rating_number == 3
    labels = made.labels[chosen]
    assert found.samples == chosen.sum()
    assert found.label == pytest.approx(labels.mean(), abs=1e-5)
    assert found.mae == pytest.approx(mae(made.truth[chosen], labels), abs=1e-6)
    assert found.plcc == pytest.approx(plcc(made.truth[chosen], labels), abs=1e-6)
    assert found.plcc_low is not None
    assert found.plcc is not None
    assert found.plcc_high is not None
    assert found.plcc_low < found.plcc < found.plcc_high
    assert found.baselines == {"other": pytest.approx(plcc(made.truth[::-1][chosen], labels), abs=1e-6)}
    assert found.ceiling is not None
    assert found.ceiling == pytest.approx(ceiling(labels, made.rating_number[chosen], SCATTER.value), abs=1e-6)
    assert found.noise_share == pytest.approx(min(1, (1 - found.ceiling) / (1 - found.plcc)), abs=1e-3)


def test_few_ratings_lower_the_ceiling() -> None:
    found = measure(Made(600))
    few, some, many = (found["rating_number", name].ceiling for name in ("2-4", "20-49", "1000+"))
    assert few is not None
    assert some is not None
    assert many is not None
    assert few < 0.9 < some < many
    assert many > 0.99


def test_what_moves_without_an_input_is_measured_in_each_slice() -> None:
    found = measure(Made(600))
    assert found["image", "without image"].moved_without_image == 0
    assert found["image", "with image"].moved_without_image == pytest.approx(0.2, abs=1e-5)
    whole = found["all", "all"]
    assert whole.moved_without_image == pytest.approx(0.15, abs=1e-5)
    assert whole.plcc is not None
    assert whole.plcc_without_image is not None
    assert 0 < whole.plcc_without_image < whole.plcc
    assert whole.plcc_without_text == 0  # a constant


@pytest.mark.parametrize(
    ("number", "scatter", "reason"),
    [(29, SCATTER, "fewer than 30 samples"), (60, UNKNOWN, "ceiling uncertain"), (60, SCATTER, "all labels are equal")],
)
def test_what_cannot_be_measured_has_a_reason_and_no_figure(number: int, scatter: Scatter, reason: str) -> None:
    made = Made(number)
    if "uncertain" in reason:
        made.rating_number[:] = 1
    if "equal" in reason:
        made.labels[:] = 4
    found = measure(made, scatter)["all", "all"]
    assert found.note.startswith(reason)
    assert (found.ceiling, found.noise_share) == (None, None)
    assert (found.plcc is None) is ("uncertain" not in reason)
    assert found.samples == number
    assert found.moved_without_image > 0


def test_labels_that_are_only_noise_have_no_ceiling() -> None:
    made = Made(300)
    made.rating_number[:] = 1
    made.labels = np.random.default_rng(1).choice([3.9, 4.0, 4.1], 300).astype(np.float32)
    found = measure(made)["all", "all"]
    assert (found.ceiling, found.note) == (None, "labels vary no more than noise does")


def test_missing_texts_make_groups() -> None:
    found = measure(Made(60, {"features": ["", "a", " "], "description": ["", "b"]}))
    assert {name: found[name, f"without {name}"].samples for name in ("features", "description")} == {
        "features": 40,
        "description": 30,
    }
    assert ("price", "no price") not in found


def by_price(prices: list[Any], number: int) -> dict[str, int]:
    """Return the number of samples of each group of prices."""
    found = measure(Made(number, tabular={"price": prices}))
    return {group: part.samples for (by, group), part in found.items() if by == "price"}


def test_prices_are_in_quartiles_and_what_is_no_price_is_apart() -> None:
    prices = [None, 1.0, 2, 3.0, 4.0, 5.5, 6.0, 7.0, 1234.5, 0.0, -1.0, float("nan"), "9.99"]
    groups = {"up to 2.00": 2, "over 2.00 to 4.00": 2, "over 4.00 to 6.00": 2, "over 6.00": 2, "no price": 5}
    assert by_price(prices, len(prices)) == groups


def test_equal_prices_are_in_one_group() -> None:
    assert by_price([9.99, 9.99, 9.99, 20], 40) == {"up to 9.99": 30, "over 9.99": 10}
    assert by_price([9.99], 40) == {"up to 9.99": 40}
    assert by_price([None], 40) == {}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Lampe à 12 €", "Latin"),
        ("\uff2c\uff25\uff24 Lamp", "Latin"),
        ("Настольная лампа USB", "Cyrillic"),
        ("台灯 可调光", "Han or kana"),
        ("ランプ", "Han or kana"),
        ("ﾗﾝﾌﾟ", "Han or kana"),
        ("조명 램프", "Hangul"),
        ("مصباح", "Arabic"),
        ("12 / 34", "no letters"),
        ("", "no letters"),
        ("a" * 300 + "я" * 10_000, "Latin"),  # only the beginning is read
    ],
)
def test_the_script_is_that_of_most_letters(text: str, name: str) -> None:
    assert slices.script(text) == name


def test_scripts_make_groups_in_order_of_size() -> None:
    found = measure(Made(60, {"title": ["лампа настольная", "A lamp", "Another lamp"]}))
    assert [group for by, group in found if by == "script"] == ["Latin", "Cyrillic"]
    assert found["script", "Cyrillic"].samples == 20
