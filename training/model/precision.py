"""The number type of the forward pass: bfloat16 where the device computes it faster.

Weights, gradients of weights and the optimiser stay in float32 either way.
"""

from __future__ import annotations

import os
import time

import torch

from training.config import Precision

SIZE, TRIES = 1024, 5  # one product of this size takes milliseconds, several of them settle it


def mixed_precision(wanted: Precision) -> str | None:
    """accelerate's `mixed_precision`. "auto" asks the device; what `accelerate launch` was told
    stands."""
    if wanted != "auto":
        return {"float32": "no", "bfloat16": "bf16"}[wanted]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return None
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if product_seconds(torch.bfloat16) < product_seconds(torch.float32) else "no"


def product_seconds(dtype: torch.dtype) -> float:
    """The best of some matrix products on the CPU. No flag tells: of two machines with avx512_bf16,
    a Xeon is half as fast in bfloat16 as in float32, an EPYC twice as fast (docs/log.md)."""
    a = torch.ones(SIZE, SIZE, dtype=dtype)
    taken = []
    for _ in range(TRIES):
        began = time.perf_counter()
        torch.mm(a, a)
        taken.append(time.perf_counter() - began)
    return min(taken)
