"""What stays in float32 when a CPU trains in bfloat16."""

from collections import defaultdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from effimini.distributed import Distributed
from effimini.model import build
from effimini.train import prepare
from prep.core.params import Params

from .conftest import replace


class Seen(TorchDispatchMode):
    """Records the dtypes that each kind of operation computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.types: defaultdict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, tensors = str(func), [arg for arg in args if isinstance(arg, torch.Tensor)]
        if "convolution" in name:
            weight = tensors[2 if "backward" in name else 1]
            name = "depthwise" if weight.shape[1] == 1 < weight.shape[0] else "convolution"
        self.types[name.partition("_backward")[0]].update(tensor.dtype for tensor in tensors[:1])
        return func(*args, **(kwargs or {}))


def test_only_what_a_cpu_does_slower_in_bfloat16_stays_in_float32(small: Params) -> None:
    params = replace(small, train={"precision": "bf16"}, model={"attention_dropout": 0.0})
    model = build(params)
    names = set(model.state_dict())
    model = prepare(model, params, Distributed(0, 1, torch.device("cpu"))).train()
    assert set(model.state_dict()) == names
    with Seen() as seen:
        ids = torch.ones(2, 8, dtype=torch.int64)
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        model(images, ids, ids.tril(5), torch.ones(2, dtype=torch.bool)).sum().backward()
    attention = next(name for name in seen.types if "flash_attention" in name)
    assert seen.types[attention] == seen.types["depthwise"] == {torch.float32}
    assert seen.types["convolution"] == seen.types["aten.mm.default"] == {torch.bfloat16}


def test_activations_keep_what_the_backward_pass_needs(small: Params) -> None:
    model = build(small)
    assert any(getattr(module, "inplace", False) for module in model.image.modules())
    images = torch.rand(2, 3, 32, 32)
    expected = model.image.eval()(images)
    model = prepare(model, small, Distributed(0, 1, torch.device("cpu")))
    assert not any(getattr(module, "inplace", False) for module in model.image.modules())
    assert torch.equal(model.image(images), expected)
