from pathlib import Path

from huggingface_hub import ModelCard

from effimini.model_card import MODEL_CARD_FILE
from prep.core import files
from prep.core.params import Params


def test_the_card_says_what_was_trained_and_measured(run_params: Params, run: Path) -> None:
    found = files.read_json(run / "results/train/metrics.json")["best"]
    epochs = run_params.train.epochs
    cards = {name: ModelCard.load(run / "models" / name / MODEL_CARD_FILE) for name in ("best", "last")}
    for card in cards.values():
        assert card.data.library_name == "effimini"
        assert "synthetic" in card.data.tags
        assert card.data.base_model is None, "both encoders have a random start"
        assert "DEMO DATA: trained on synthetic products" in card.text
        assert f"| `train.learning_rate` | {run_params.train.learning_rate} |" in card.text
        assert "| samples | 80 |" in card.text
    assert f"After epoch {found['epoch']} of {epochs}" in cards["best"].text
    assert f"plcc {found['validation_plcc']:.4f}, loss " in cards["best"].text
    assert f"After epoch {epochs} of {epochs}" in cards["last"].text
    assert "chosen by that PLCC" in cards["best"].text
    assert "chosen by that PLCC" not in cards["last"].text
