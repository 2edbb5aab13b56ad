"""The CUDA kernel through ctypes, on device pointers; and its order in NumPy.

    cpp_ext/build_cuda.sh        builds _score_cuda.so where nvcc is

Compiled and emulated, not yet run on a GPU (score_cuda.h).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LIBRARY = Path(__file__).parent / "_score_cuda.so"
CODES = {1: "a null pointer", 2: "an unknown dtype", 3: "a size out of range", 4: "a failed launch"}
_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class Pointers:
    """On the device: hidden (B, M * V, D), weight (D,), allowed (B, M) uint8, penalty (B, M),
    probability (B, M), order (B, ranked) int32."""

    hidden: int
    weight: int
    allowed: int
    penalty: int
    probability: int
    order: int


@dataclass(frozen=True)
class Sizes:
    """dtype: 0 fp32, 1 fp16, 2 bf16."""

    dtype: int
    batch: int
    candidates: int
    variants: int
    width: int
    ranked: int


def load(library: Path = LIBRARY) -> ctypes.CDLL:
    """The built library; OSError where there is none or no CUDA runtime."""
    found = ctypes.CDLL(str(library))
    found.modelsat_rank_cuda.argtypes = [
        *(_POINTER, ctypes.c_int32, _SIZE, _SIZE, _SIZE, _SIZE),
        *(_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, _POINTER, _SIZE),
        *(_POINTER, _POINTER, _POINTER),
    ]
    found.modelsat_gather_cuda.argtypes = [
        *(_POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER),
    ]
    return found


def gather(
    library: ctypes.CDLL,
    table: int,
    width: int,
    rows: int,
    count: int,
    out: int,
    *,
    stream: int = 0,
) -> None:
    """Launch out (count, width) = table[rows] on `stream`: float32 and int32, on the device.

    Raises RuntimeError where nothing was launched.
    """
    code = library.modelsat_gather_cuda(table, width, rows, count, out, stream)
    if code:
        raise RuntimeError(f"modelsat_gather_cuda returned {code}: {CODES.get(code, 'unknown')}")


def rank(
    library: ctypes.CDLL,
    at: Pointers,
    n: Sizes,
    *,
    eps: float,
    scale: float,
    offset: float,
    stream: int = 0,
) -> None:
    """Launch on `stream`; probability and order are there when the stream is done.

    Raises RuntimeError where nothing was launched.
    """
    sizes = (n.dtype, n.batch, n.candidates, n.variants, n.width)
    readout = (at.weight, eps, scale, offset, at.allowed, at.penalty, n.ranked)
    code = library.modelsat_rank_cuda(at.hidden, *sizes, *readout, at.probability, at.order, stream)
    if code:
        raise RuntimeError(f"modelsat_rank_cuda returned {code}: {CODES.get(code, 'unknown')}")


def order_reference(
    p: NDArray[np.float32],
    allowed: NDArray[np.uint8],
    penalty: NDArray[np.float32],
    ranked: int,
) -> NDArray[np.int32]:
    """(B, ranked) of p, allowed, penalty (B, M): by falling p - penalty in fp32, then by number;
    -1 where fewer may be chosen."""
    order = np.full((len(p), ranked), -1, dtype=np.int32)
    for b, utility in enumerate(p - penalty):
        able = np.flatnonzero(allowed[b].astype(bool) & ~np.isnan(utility))
        found = able[np.argsort(-utility[able], kind="stable")][:ranked]
        order[b, : len(found)] = found
    return order
