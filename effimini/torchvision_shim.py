"""Makes timm and transformers importable when the compiled library of torchvision cannot be loaded.

Input: the installed torch and torchvision. Output: declarations of torchvision's operators. Guarantees: nothing is
declared if the library loads or torchvision is not installed. The torchvision on PyPI is a CUDA build; with a CPU-only
torch its library fails to load, torch does not know its operators, and ``import torchvision`` raises. We call none of
the operators, so a declaration without an implementation is enough. Import this before timm and transformers.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# The declarations live as long as this object.
_declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # untyped in torch


def _real_build_loads() -> bool:
    """Return whether the compiled library of torchvision loads."""
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
