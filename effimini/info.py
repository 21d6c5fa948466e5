"""What a model costs: parameters and floating point operations by part, C and E.

In: the parameters of a run. Out: the numbers of the architecture they describe, counted on the built model,
at the paper's input and at the configured one. No weights are loaded, so it works offline for a local text
encoder.
"""

import dataclasses

import msgspec
from rich.table import Table

from effimini import cost
from effimini.model import build
from prep.core.params import Params

PAPER = (224, 256)  # px and tokens at which the paper and the challenge count (reference section 1)


class Input(msgspec.Struct, frozen=True):
    """What a sample costs at one input."""

    size: int  # px
    tokens: int
    flops: dict[str, int]  # by part, and in total
    C: float
    E: float


class Info(msgspec.Struct, frozen=True):
    """What a model is and costs."""

    image: str  # name of the encoder
    text: str
    parameters: dict[str, int]  # by part, and in total
    inputs: dict[str, Input]  # by name


def info(params: Params) -> Info:
    """Return what the model of `params` costs, at the paper's input and at the configured one.

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
        inputs[name] = Input(size, tokens, counted, c, cost.efficiency(c))
    return Info(params.model.image.name, params.model.text.name, counts, inputs)


def info_table(found: Info) -> Table:
    """Return what `info` gave as a table to print."""
    inputs = found.inputs.values()
    shown = Table(title=f"{found.image} + {found.text}")
    shown.add_column("part")
    shown.add_column("parameters", justify="right")
    for given in inputs:
        shown.add_column(f"GFLOPs at {given.size} px, {given.tokens} tokens", justify="right")
    *_, last, _ = found.parameters
    for part, count in found.parameters.items():
        flops = (f"{given.flops.get(part, 0) / 1e9:.3f}" for given in inputs)
        shown.add_row(part, f"{count:,}", *flops, end_section=part in {last, "total"})
    shown.add_row("C", "", *(f"{given.C:.3f}" for given in inputs))
    shown.add_row("E", "", *(f"{given.E:.3f}" for given in inputs))
    return shown
