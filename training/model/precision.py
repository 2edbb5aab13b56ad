"""Choose the number type of the forward pass: bfloat16 if the device computes it faster.

Weights, their gradients and the optimizer stay in float32 either way.
"""

from __future__ import annotations

import os
import time

import torch

from training.config import Precision

SIZE, REPETITIONS = 1024, 5  # one product of this size takes milliseconds


def mixed_precision(wanted: Precision) -> str | None:
    """Choose accelerate's `mixed_precision`.

    "auto" asks the device, unless `accelerate launch` was given a precision. None leaves it to
    accelerate.
    """
    if wanted != "auto":
        return {"float32": "no", "bfloat16": "bf16"}[wanted]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return None
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if product_seconds(torch.bfloat16) < product_seconds(torch.float32) else "no"


def product_seconds(dtype: torch.dtype) -> float:
    """Time a matrix product on the CPU, the best of several, in seconds.

    No CPU flag says which type is faster: of two machines with avx512_bf16, a Xeon is half as fast
    in bfloat16 as in float32, an EPYC twice as fast (docs/log.md).
    """
    a = torch.ones(SIZE, SIZE, dtype=dtype)
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        torch.mm(a, a)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
