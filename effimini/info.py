"""The cost of a model: parameters and FLOPs by part, C and E.

Input: the parameters of a run, or a model folder. Output: the numbers, counted on the built model, at the configured
input size, and for parameters at the paper's as well. For parameters no weights are loaded, so it works offline for a
local text encoder.
"""

import dataclasses
from pathlib import Path

import msgspec
from rich.table import Table

from effimini import cost
from effimini.model import EffiMini, build
from prep.core.params import Params

PAPER = (224, 256)  # px and tokens at which the paper and the challenge count


class Input(msgspec.Struct, frozen=True):
    """The cost of a sample at one input size."""

    size: int  # px
    tokens: int
    flops: dict[str, int]  # by part, and in total
    C: float
    E: float


class Info(msgspec.Struct, frozen=True):
    """A model and its cost."""

    image: str  # name of the image encoder
    text: str  # name of the text encoder; of a model folder, the type of its architecture
    parameters: dict[str, int]  # by part, and in total
    inputs: dict[str, Input]  # by name


def info(params: Params) -> Info:
    """Return the cost of the model of `params` at the paper's input size and at the configured one.

    Raises:
        UserError: an encoder is unknown or cannot be loaded.
    """
    inputs = {}
    configured = (params.images.resolution, params.text.max_tokens)
    for name, (size, tokens) in (("paper", PAPER), ("configured", configured)):
        # built for each input size: some image encoders support only one size
        images = dataclasses.replace(params.images, resolution=size)
        text = dataclasses.replace(params.text, max_tokens=tokens)
        model = build(dataclasses.replace(params, images=images, text=text), random=True)
        counts = cost.parameters(model)
        inputs[name] = _at(model, counts["total"], size, tokens)
    return Info(params.model.image.name, params.model.text.name, counts, inputs)


def of_folder(folder: Path) -> Info:
    """Return the cost of a saved model at its input size.

    Raises:
        UserError: it is not a saved model.
    """
    model = EffiMini.from_pretrained(folder)
    config, counts = model.config, cost.parameters(model)
    inputs = {"configured": _at(model, counts["total"], config.size, config.max_tokens)}
    return Info(config.image, config.text["model_type"], counts, inputs)


def _at(model: EffiMini, parameters: int, size: int, tokens: int) -> Input:
    counted = cost.flops(model, size, tokens)
    c = cost.cost(parameters, counted["total"])
    return Input(size, tokens, counted, c, cost.efficiency(c))


def info_table(found: Info) -> Table:
    """Return the result of `info` as a table to print."""
    inputs = found.inputs.values()
    shown = Table(title=f"{found.image} + {found.text}")
    shown.add_column("part")
    shown.add_column("parameters", justify="right")
    for one in inputs:
        shown.add_column(f"GFLOPs at {one.size} px, {one.tokens} tokens", justify="right")
    *_, last, _ = found.parameters
    for component, count in found.parameters.items():
        flops = (f"{one.flops.get(component, 0) / 1e9:.3f}" for one in inputs)
        shown.add_row(component, f"{count:,}", *flops, end_section=component in {last, "total"})
    shown.add_row("C", "", *(f"{one.C:.3f}" for one in inputs))
    shown.add_row("E", "", *(f"{one.E:.3f}" for one in inputs))
    return shown
