"""Capabilities of the machine that runs a benchmark."""

from pathlib import Path

import torch

_CPU = Path("/proc/cpuinfo")


def multiplies_bfloat16() -> bool:
    """Return whether the GPU (or the CPU, if there is none) has bfloat16 instructions; emulation is much slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return _CPU.exists() and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(_CPU.read_text().split()))
