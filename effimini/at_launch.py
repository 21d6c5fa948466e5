"""The model without the inputs that exist only some time after a product was launched, such as its price.

Input: a model whose kernel compares tabular columns, and the splits. Output: stars for the test split. Guarantees: the
columns that `prep.core.tables.tabular` marks as known later are used neither to fit nor to score, so a column of these
that leaks the label changes nothing.
"""

from collections.abc import Sequence

import msgspec

from effimini import calibration, closed_form
from effimini.distributed import Distributed
from effimini.features import FeatureDataset, Head
from effimini.inference import clamp, predict_split
from effimini.metrics import Stars
from effimini.model import EffiMini
from prep.core.params import Params
from prep.core.tables.tabular import COLUMNS
from prep.weights import SampleWeights


def at_launch(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the tabular columns that are known when a product is launched."""
    known = {column.name for column in COLUMNS if column.known == "at_launch"}
    return tuple(name for name in names if name in known)


def stars_at_launch(
    model: EffiMini, splits: Sequence[FeatureDataset], weights: SampleWeights, dist: Distributed, params: Params
) -> Stars:
    """Fit the closed form again without the later columns, and return clamped stars for the test split, float32 [N].

    Encoders and head are those of the model, which read no columns.

    Args:
        model: a model with a kernel; not changed.
        splits: the training, validation and test splits, with the features of the model's encoders.
        weights: the content of data/weights.json.
        dist: this process, the only one.
        params: the parameters of the training.
    """
    names = at_launch(model.config.tabular)
    config = msgspec.structs.replace(model.config, tabular=names)
    module = EffiMini(config, model.image, model.text, model.tokenizer).to(dist.device).closed_form
    assert module is not None
    train, validation, test = (split.with_columns(names) for split in splits)
    inputs = (train.kernel_inputs, validation.kernel_inputs)
    stars = closed_form.fit(module, train, validation, weights, inputs, refit=params.train.refit)
    chosen_on, network = (predict_split(Head(model), split, dist, params) for split in (validation, test))
    line = calibration.fit_line(closed_form.mix(module, chosen_on, stars, validation.labels), validation.labels)
    fraction = float(module.fraction)
    scores = fraction * closed_form.predict(module, test, test.kernel_inputs) + (1 - fraction) * network
    return clamp(calibration.apply_line(line, scores))
