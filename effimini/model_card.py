"""The model card that lies beside a trained model's weights, in the hub's format.

In: a saved model and how it was trained. Out: Markdown. Guaranteed: the same training gives the same text; it states
what was configured and measured; a model of demo data says so first.
"""

from pathlib import Path

from effimini import cost
from effimini.model import EffiMini
from effimini.provenance import Training
from prep.core.params import Params
from prep.core.templates import render

MODEL_CARD_FILE = "README.md"


def model_card(
    model: EffiMini,
    params: Params,
    training: Training,
    history: list[dict[str, float]],
    epoch: int,
    *,
    chosen: bool,
) -> str:
    """Return the card.

    Args:
        model: the trained one; what it costs and reads is read, no weight.
        params: the section model is read.
        training: what it was trained on and with.
        history: metrics of each epoch.
        epoch: after which the model was saved, from 0.
        chosen: whether it was chosen by its validation PLCC.
    """
    config = model.config
    given = ((params.model.text.name, params.model.text.weights), (config.image, params.model.image.weights))
    hub = [name if "/" in name else f"timm/{name}" for name, source in given if source == "pretrained"]
    return render(
        "effimini",
        "model_card.md.jinja",
        {
            "base_models": [name for name in hub if not Path(name).exists()],
            "chosen": chosen,
            "config": config,
            "cost": cost.costs(model),
            "demo": config.source == "demo",
            "epoch": epoch + 1,
            "measured": {name: history[epoch][f"validation/{name}"] for name in ("plcc", "loss")},
            "text": params.model.text.name,
            "training": training,
        },
    )
