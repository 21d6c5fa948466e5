"""Publish a model on the Hugging Face hub.

Input: a model folder. Output: a model repository with the files that `EffiMini.from_pretrained` needs, the record of
the training and the card. Guarantees: only a folder that loads is published, and nothing else that is in it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import ModelCard

from effimini.model import FILES, EffiMini
from effimini.model_card import MODEL_CARD_FILE, NO_LICENCE
from effimini.provenance import TRAINING_FILE
from shards import hub


def publish(model: Path, name: str, licence: str = "", *, private: bool = False, branch: str | None = None) -> str:
    """Publish a model folder with its card and the record of its training, and return the commit.

    Args:
        model: the folder.
        name: the repository, OWNER/NAME; it is created if there is none.
        licence: of the weights, by the hub's name; "" leaves the card as it is.
        private: whether a new repository is private.
        branch: the branch, which is created if there is none; None is main.

    Raises:
        UserError: the folder is not a saved model, or as in `shards.hub`.
    """
    EffiMini.from_pretrained(model.absolute())
    with TemporaryDirectory(prefix="effimini-publish-") as temporary:
        folder = Path(temporary)
        for file in (*FILES, TRAINING_FILE, MODEL_CARD_FILE):
            if (model / file).exists():
                (folder / file).symlink_to((model / file).absolute())
        if licence:
            _state(licence, folder / MODEL_CARD_FILE)
        hub.create(name, "model", private=private, branch=branch)
        return hub.upload(folder, name, "model", branch, ())


def _state(licence: str, path: Path) -> None:
    """Replace the link to a card by a card that states a licence."""
    text = path.read_text(encoding="utf-8") if path.exists() else "---\nlibrary_name: effimini\n---\n"
    card = ModelCard(text.replace(NO_LICENCE, f"The weights are published under `{licence}`."))
    card.data["license"] = licence
    path.unlink(missing_ok=True)
    path.write_text(str(card), encoding="utf-8")
