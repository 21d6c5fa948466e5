"""What a model costs: parameters and floating point operations by part, C and E.

In: the parameters of a run. Out: the numbers of the architecture they describe, counted on the built model,
at the paper's input and at the configured one. No weights are loaded, so it works offline for a local text
encoder.
"""

import dataclasses
from typing import Any

from rich.table import Table

from effimini import cost
from effimini.model import build
from prep.core.params import Params

PAPER = (224, 256)  # px and tokens at which the paper and the challenge count (reference section 1)


def info(params: Params) -> dict[str, Any]:
    """Return parameters by part, and by input (px, tokens): FLOPs by part, C and E.

    Raises:
        UserError: an encoder is unknown or cannot be had.
    """
    inputs = {}
    configured = (params.images.resolution, params.text.max_tokens)
    for name, (size, tokens) in (("paper", PAPER), ("configured", configured)):
        # built for each input: some image encoders are made for one size
        images = dataclasses.replace(params.images, resolution=size)
        text = dataclasses.replace(params.text, max_tokens=tokens)
        model = build(dataclasses.replace(params, images=images, text=text), random=True)
        counts = cost.parameters(model)
        counted = cost.flops(model, size, tokens)
        c = cost.cost(counts["total"], counted["total"])
        inputs[name] = {"size": size, "tokens": tokens, "flops": counted, "C": c, "E": cost.efficiency(c)}
    return {
        "image": params.model.image.name,
        "text": params.model.text.name,
        "parameters": counts,
        "inputs": inputs,
    }


def table(content: dict[str, Any]) -> Table:
    """Return what `info` gave as a table to print."""
    inputs = content["inputs"]
    shown = Table(title=f"{content['image']} + {content['text']}")
    shown.add_column("part")
    shown.add_column("parameters", justify="right")
    for given in inputs.values():
        shown.add_column(f"GFLOPs at {given['size']} px, {given['tokens']} tokens", justify="right")
    *_, last, _ = content["parameters"]
    for part, count in content["parameters"].items():
        flops = (f"{given['flops'].get(part, 0) / 1e9:.3f}" for given in inputs.values())
        shown.add_row(part, f"{count:,}", *flops, end_section=part in {last, "total"})
    for name in ("C", "E"):
        shown.add_row(name, "", *(f"{given[name]:.3f}" for given in inputs.values()))
    return shown
