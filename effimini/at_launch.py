"""The model without the inputs that exist only some time after a product was launched, such as its price.

Input: a model whose kernel compares tabular columns, and the splits. Output: stars for the test split. Guarantees: the
columns that `prep.core.tables.tabular` marks as known later are used neither to fit nor to score, so a column of these
that leaks the label changes nothing.
"""

from collections.abc import Sequence

import msgspec

from effimini import calibration, closed_form, features
from effimini.distributed import Distributed
from effimini.inference import clamp, predict_split
from effimini.metrics import Stars
from effimini.model import EffiMini
from prep.core.params import Params
from prep.core.tables.tabular import COLUMNS
from prep.weights import SampleWeights
from shards.stream import ShardDataset


def at_launch(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the tabular columns that are known when a product is launched."""
    known = {column.name for column in COLUMNS if column.known == "at_launch"}
    return tuple(name for name in names if name in known)


def stars_at_launch(
    model: EffiMini, splits: Sequence[ShardDataset], weights: SampleWeights, dist: Distributed, params: Params
) -> Stars:
    """Fit the closed form again without the later columns, and return clamped stars for the test split, float32 [N].

    Encoders and head are those of the model, which read no columns.

    Args:
        model: a model with a kernel; not changed.
        splits: the training, validation and test splits.
        weights: the content of data/weights.json.
        dist: this process, the only one.
        params: the parameters of the training.
    """
    names = at_launch(model.config.tabular)
    config = msgspec.structs.replace(model.config, tabular=names, calibration=None, interval=None)
    other = EffiMini(config, model.image, model.text, model.tokenizer).to(dist.device)
    assert other.closed_form is not None
    other.load_state_dict(
        {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("closed_form.")},
        strict=False,
    )
    train, validation, test = (split.with_columns(names) for split in splits)
    fitted, chosen_on = (features.of_split(other, split, dist, params) for split in (train, validation))
    inputs = (fitted.kernel_inputs, chosen_on.kernel_inputs)
    stars = closed_form.fit(other.closed_form, fitted, chosen_on, weights, inputs, refit=params.train.refit)
    network = predict_split(features.Head(other), chosen_on, dist, params)
    scores = closed_form.mix(other.closed_form, network, stars, chosen_on.labels)
    other.config = msgspec.structs.replace(config, calibration=calibration.fit_line(scores, chosen_on.labels))
    return clamp(predict_split(other, test, dist, params))
