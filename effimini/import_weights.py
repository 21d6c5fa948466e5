"""Import of trained weights of the paper's code as a model folder.

Input: a state dict of the paper's model, as `torch.save` writes it (`best_model.pt`), and parameters that describe that
model (the preset paper). Output: a folder like that of a trained model, which `predict` and `export` read. Guarantees:
no code in the file is run; each tensor has the place, shape and kind of ours and finite values, or nothing is written.

The names of the two models differ, but their tensors come in the same order: image encoder, text encoder, head.
"""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from effimini import precheck
from effimini.model import EffiMini, build
from prep.core.errors import UserError, first_sentence
from prep.core.params import Params

log = logging.getLogger(__name__)

_WRAPPERS = ("model_state_dict", "state_dict", "model")  # keys under which training loops save a state dict
_DERIVED = "position_ids"  # of BERT in older versions of transformers: the numbers from 0
_OURS = ("feature_mean", "feature_scale")  # buffers that the paper's model has not; they keep their neutral values


def import_weights(path: Path, params: Params, out: Path) -> int:
    """Write the model with the weights in `path` to the folder `out`, and return its number of parameters.

    Args:
        path: the state dict.
        params: the parameters that describe the model; as for `effimini.model.build`.
        out: the folder to create.

    Raises:
        UserError: the file cannot be read, a tensor is not one of this model, or `out` exists; nothing is written.
    """
    precheck.to_import(path, out)
    model = build(params, random=True)
    model.load_state_dict(_matched(_read(path), model, path), strict=False)
    # The paper's code squashes the original itself, and keeps no JPEG of it.
    model.config = msgspec.structs.replace(model.config, request=0, quality=0)
    model.eval().save_pretrained(out)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    log.info("%s: %d parameters from %s", out, parameters, path)
    return parameters


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a state dict, in its order.

    Raises:
        UserError: it is not one.
    """
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} cannot be read as a state dict ({first_sentence(error)}); save it with "
            "`torch.save(model.state_dict(), path)`"
        ) from None
    if isinstance(found, Mapping):
        found = next((found[name] for name in _WRAPPERS if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(
            f"{path} contains {type(found).__name__}, not a state dict; save it with "
            "`torch.save(model.state_dict(), path)`"
        )
    return {str(name): tensor for name, tensor in found.items() if not str(name).endswith(_DERIVED)}


def _matched(theirs: Mapping[str, Tensor], model: EffiMini, path: Path) -> dict[str, Tensor]:
    """Return the tensors under our names.

    Raises:
        UserError: their number differs, or one is not like ours.
    """
    ours = {name: tensor for name, tensor in model.state_dict().items() if name not in _OURS}
    for (name, tensor), (our_name, like) in zip(theirs.items(), ours.items(), strict=False):
        if problem := _difference(name, tensor, our_name, like):
            raise UserError(
                f"{path}: {name} {problem}, where the model has {our_name}; set --params to the parameters that "
                "describe this model"
            )
    if len(theirs) != len(ours):
        raise UserError(
            f"{path} has {len(theirs)} tensors and the model has {len(ours)}; set --params to the parameters that "
            "describe this model"
        )
    return dict(zip(ours, theirs.values(), strict=True))


def _difference(name: str, tensor: Tensor, our_name: str, like: Tensor) -> str:
    """Return how a tensor differs from ours, as a predicate; "" if it does not."""
    part, _, tail = our_name.partition(".")
    # Names within the text encoder are those of transformers in both; many of its layers have the same shape.
    end = tail if part == "text" else our_name.rpartition(".")[2]
    if not f".{name}".endswith(f".{end}"):
        return "has another name"
    if tensor.layout is not torch.strided or tensor.is_floating_point() != like.is_floating_point():
        return f"is {tensor.dtype} {tensor.layout}"
    if tensor.shape != like.shape:
        return f"has shape {tuple(tensor.shape)}, not {tuple(like.shape)}"
    return "" if tensor.isfinite().all() else "has values that are not finite"
