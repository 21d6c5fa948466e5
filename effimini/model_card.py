"""The model card (README.md) of a trained model, in the format of the Hugging Face hub.

Input: a saved model and how it was trained. Output: Markdown. Guarantees: the same training gives the same text; it
states only what was configured and measured; the card of a model trained on demo data starts by saying so.
"""

from pathlib import Path

from effimini import cost
from effimini.model import Config, EffiMini
from effimini.provenance import Training
from prep.core.params import Params
from prep.core.templates import render

MODEL_CARD_FILE = "README.md"
NO_LICENCE = "No license is stated for these weights."


def model_card(
    model: EffiMini,
    config: Config,
    params: Params,
    training: Training,
    history: list[dict[str, float]],
    epoch: int,
    *,
    chosen: bool,
) -> str:
    """Return the model card as Markdown.

    Args:
        model: the trained model; its cost is used, not its weights.
        config: its configuration as saved.
        params: the parameters; the section model is read.
        training: the data and parameters of the training.
        history: the metrics of each epoch.
        epoch: the epoch after which the model was saved, from 0.
        chosen: whether the epoch was chosen by its validation PLCC.
    """
    encoders = ((params.model.text.name, params.model.text.weights), (config.image, params.model.image.weights))
    hub = [name if "/" in name else f"timm/{name}" for name, source in encoders if source == "pretrained"]
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
            "no_licence": NO_LICENCE,
            "measured": {name: history[epoch][f"validation/{name}"] for name in ("plcc", "loss")},
            "text": params.model.text.name,
            "training": training,
        },
    )
