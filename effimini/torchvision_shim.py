"""Lets timm and transformers be imported beside a torchvision whose compiled part does not load.

In: the installed torch and torchvision. Out: nothing but the operators' declarations. Guaranteed: where a
real build loads, or where there is no torchvision, nothing is declared. The registry's torchvision is a
CUDA build; beside a CPU-only torch its library fails to load, its operators are then unknown to torch, and
``import torchvision`` raises. We call none of the operators, so a declaration without an implementation is
enough. Import this before timm and transformers.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# The declarations live as long as this object; an empty one declares nothing.
_declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch has no types here


def _real_build_loads() -> bool:
    """Try torchvision's compiled library, as its own import will do once more."""
    spec = find_spec("torchvision")
    assert spec is not None
    for library in Path(spec.origin or "").parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return hasattr(torch.ops.torchvision, "nms")


if find_spec("torchvision") is not None and not _real_build_loads():
    for _name, _schema in _OPERATORS.items():
        _declared.define(_name + _schema)  # type: ignore[no-untyped-call]
