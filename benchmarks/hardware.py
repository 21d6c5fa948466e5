"""What the machine of a benchmark can do."""

from pathlib import Path

import torch

_CPU = Path("/proc/cpuinfo")


def multiplies_bfloat16() -> bool:
    """Tell whether the GPU, or the CPU without one, has instructions for bfloat16; without them it is far slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return _CPU.exists() and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_CPU.read_text().split()))
