"""Run in the environment of a version: write one file of each kind, or read those of another version.

Input: ``write`` or ``read``, and a folder. Output: a JSON object with what each kind holds, or the error message.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # for tests.shards.made; the installed packages come first

import numpy as np
import torch

import effimini
from effimini.checkpoint import Progress, load_checkpoint, save_checkpoint
from effimini.model import EffiMini, build
from prep.core import writers
from prep.core.errors import UserError
from prep.core.params import EncoderParams, Params, load_params
from shards.images.journal import Journal, Record
from shards.stream import ShardDataset
from tests.shards.made import make_shards

SIDE, TOKENS = 32, 8
URL = "https://host/1.jpg"


def network(folder: Path) -> tuple[Params, EffiMini, torch.optim.Optimizer]:
    """Return a small network with the same weights on each call."""
    torch.manual_seed(0)
    minilm = Path(effimini.__file__).parent / "minilm"
    narrow = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    text = folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (text / name).write_bytes((minilm / name).read_bytes())
    config = json.loads((minilm / "config.json").read_text()) | narrow
    (text / "config.json").write_text(json.dumps(config))
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    model = replace(
        params.model,
        image=EncoderParams(name="test_efficientnet", weights="random"),
        text=EncoderParams(name=str(text), weights="random"),
        hidden=(4,),
        hashed_ngrams=0,
    )
    params = replace(
        params,
        model=model,
        images=replace(params.images, resolution=SIDE),
        text=replace(params.text, max_tokens=TOKENS),
    )
    built = build(params)
    return params, built, torch.optim.AdamW(built.parameters())


def write(folder: Path) -> None:
    """Write one file of each kind."""
    make_shards(folder / "shards", {"train": [5], "validation": [3]})
    _, model, optimizer = network(folder)
    model.save_pretrained(folder / "model")
    sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad).backward()
    optimizer.step()
    (folder / "checkpoints").mkdir()
    save_checkpoint(folder / "checkpoints", model, optimizer, Progress(steps=3, best=0.25), best=True)
    with Journal(folder / "store", "t") as journal:
        journal.append(Record(URL, "t", "ok", image=b"an image"))


def shards_of(folder: Path) -> str:
    """Return the sha256 of all samples, with their metadata and the token ids of the index."""
    data = ShardDataset(folder / "shards", ["Made"], "train")
    batch = data.batch(np.arange(len(data)), len(data))
    found = [value.numpy().tobytes() for value in batch if isinstance(value, torch.Tensor)]
    return sha256(b"".join([*found, repr((batch.keys, data[0]["metadata"], data.fingerprint)).encode()])).hexdigest()


def model_of(folder: Path) -> str:
    """Return the scores of the model for an example."""
    model = EffiMini.from_pretrained(folder / "model")
    images = torch.arange(2 * 3 * SIDE * SIDE).remainder(251).to(torch.uint8).view(2, 3, SIDE, SIDE)
    ids = torch.arange(2 * TOKENS).view(2, TOKENS)
    with torch.inference_mode():
        return repr(model(images, ids, torch.ones_like(ids), torch.ones(2, dtype=torch.bool)).tolist())


def checkpoint_of(folder: Path) -> str:
    """Return the progress of the checkpoint, and the sha256 of weights and of the optimizer's state."""
    _, model, optimizer = network(folder / "other")
    progress = load_checkpoint(folder / "checkpoints", model, optimizer)
    values = [*model.state_dict().values(), *(s["exp_avg"] for s in optimizer.state_dict()["state"].values())]
    digest = sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()
    return f"{progress.steps} {progress.best} {digest}"


def store_of(folder: Path) -> str:
    """Return the image of the store."""
    with Journal(folder / "store", "t") as journal:
        return journal.get(URL).image.decode()


KINDS: dict[str, Callable[[Path], str]] = {
    "shards": shards_of,
    "model": model_of,
    "checkpoint": checkpoint_of,
    "store": store_of,
}


def read(folder: Path) -> dict[str, str]:
    """Return what each kind holds, or the message of the error."""
    found = {}
    for kind, of in KINDS.items():
        try:
            found[kind] = of(folder)
        except UserError as error:
            found[kind] = f"refused: {error}"
    return found


if __name__ == "__main__":
    what, given, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "write":
        write(given)
    writers.write_json(out, read(given) | {"version": effimini.__version__, "from": effimini.__file__})
