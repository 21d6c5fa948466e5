"""What a model costs: parameters, floating point operations, and the challenge's C and E.

In: a model and the size of its input. Out: numbers. Deterministic; C and E are the challenge's (reference section 2).
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
    """Return what a model costs at its own input."""
    counted = flops(model, model.config.size, model.config.max_tokens)["total"]
    total = parameters(model)["total"]
    c = cost(total, counted)
    return Costs(total, counted, c, efficiency(c))


def parameters(model: EffiMini) -> dict[str, int]:
    """Return the parameters of each part and their total; the text encoder's unused pooler counts."""
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}
    if model.ngrams is not None:
        counts["ngrams"] = model.ngrams.weight.numel()
    return counts | {"total": sum(counts.values())}


@torch.no_grad()
def flops(model: EffiMini, size: int, tokens: int) -> dict[str, int]:
    """Return the floating point operations of one sample by part and in total, 2 per multiply-add.

    Attention is computed in the eager way while counting: the counter does not see the fused one.

    Args:
        model: any; left as it was.
        size: height and width of the image, px.
        tokens: of the text, all of them real.
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
            model.head(torch.cat([image_features, text_features], dim=1))
            counted["total"] = counter.get_total_flops()
    finally:
        text.set_attn_implementation(attention)
        model.train(training)
    total = counted.pop("total")
    return counted | {"head": total - sum(counted.values()), "total": total}
