"""The cost of a model: parameters, FLOPs, and the challenge's C and E.

Input: a model and the size of its input. Output: numbers. Deterministic; docs/paper.md has the formulas.
"""

import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from effimini.metrics import Costs
from effimini.model import EffiMini

PARTS = ("image", "text", "head")


def cost(parameters: int, flops: int) -> float:
    """Return the resource cost C = sqrt(parameters / 1e9) * sqrt(flops / 20e9)."""
    return math.sqrt(parameters / 1e9) * math.sqrt(flops / 20e9)


def efficiency(c: float) -> float:
    """Return E = min(1 + 0.05 ln(1/C), 1.10) for C <= 1, else 1 / (1 + 2 ln C)."""
    return min(1 + 0.05 * math.log(1 / c), 1.10) if c <= 1 else 1 / (1 + 2 * math.log(c))


def costs(model: EffiMini) -> Costs:
    """Return the cost of a model at its configured input size."""
    counted = flops(model, model.config.size, model.config.max_tokens)["total"]
    total = parameters(model)["total"]
    c = cost(total, counted)
    return Costs(total, counted, c, efficiency(c))


def parameters(model: EffiMini) -> dict[str, int]:
    """Return the number of parameters by name and in total, including the unused pooler of the text encoder."""
    counts = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in PARTS}
    if model.closed_form is not None:
        counts["closed_form"] = sum(p.numel() for p in model.closed_form.parameters())
    return counts | {"total": sum(counts.values())}


@torch.no_grad()
def flops(model: EffiMini, size: int, tokens: int) -> dict[str, int]:
    """Return the FLOPs of one sample by part and in total, 2 per multiply-add.

    Uses eager attention while counting, because the counter does not see fused attention.

    Args:
        model: the model; left unchanged.
        size: height and width of the image, px.
        tokens: number of tokens of the text, without padding.
    """
    device = model.mean.device
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    text, training = model.text, model.training
    attention = text.config._attn_implementation  # there is a setter but no getter
    model.eval()
    text.set_attn_implementation("eager")
    counted = {}
    try:
        with FlopCounterMode(display=False) as counter:
            image_features = model.image_features(image)
            counted["image"] = counter.get_total_flops()
            text_features = model.text_features(ids, torch.ones_like(ids))
            counted["text"] = counter.get_total_flops() - counted["image"]
            features = torch.cat([text_features, image_features], dim=1)
            model.head(features[:, -len(model.feature_mean) :])
            counted["head"] = counter.get_total_flops() - sum(counted.values())
            if model.closed_form is not None:
                model.closed_form(ids, torch.ones_like(ids), features[:, : model.kernel_width])
                counted["closed_form"] = counter.get_total_flops() - sum(counted.values())
    finally:
        text.set_attn_implementation(attention)
        model.train(training)
    return counted | {"total": sum(counted.values())}
