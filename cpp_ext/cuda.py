"""Call the CUDA kernel through ctypes with device pointers, and compute its order in NumPy.

cpp_ext/build_cuda.sh builds _score_cuda.so if nvcc is installed.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cpp_ext import ABI_VERSION

LIBRARY = Path(__file__).parent / "_score_cuda.so"
ERRORS = {
    1: "a null pointer",
    2: "an unknown dtype",
    3: "a size out of range",
    4: "a failed launch",
}
_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@dataclass(frozen=True)
class RankPointers:
    """Device addresses: hidden (B, M, D), weight (D,), allowed (B, M) uint8, penalty (B, M),
    probability (B, M), order (B, ranked) int32."""

    hidden: int
    weight: int
    allowed: int
    penalty: int
    probability: int
    order: int


@dataclass(frozen=True)
class RankSizes:
    """dtype: of hidden, 0 fp32, 1 fp16, 2 bf16. batch, candidates, width: B, M, D. ranked: how many
    candidates of each request are ordered."""

    dtype: int
    batch: int
    candidates: int
    width: int
    ranked: int


def load(path: Path = LIBRARY) -> ctypes.CDLL:
    """Load the built library.

    Raises:
        OSError: it is not built, the CUDA runtime is missing, or it has another ABI version.
        AttributeError: it lacks a function.
    """
    library = ctypes.CDLL(str(path))
    if (version := library.modelsat_cuda_abi_version()) != ABI_VERSION:
        raise OSError(f"{path.name} has ABI version {version}, expected {ABI_VERSION}")
    library.modelsat_rank_cuda.argtypes = [
        *(_POINTER, ctypes.c_int32, _SIZE, _SIZE, _SIZE),
        *(_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, _POINTER, _SIZE),
        *(_POINTER, _POINTER, _POINTER),
    ]
    library.modelsat_gather_cuda.argtypes = [
        *(_POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER),
    ]
    return library


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
    """Launch out = table[rows] on `stream`: rows (count,) int32, out (count, width) float32.

    All addresses are on the device. Raises RuntimeError if the launch fails.
    """
    code = library.modelsat_gather_cuda(table, width, rows, count, out, stream)
    _raise_for(code, "modelsat_gather_cuda")


def rank(
    library: ctypes.CDLL,
    pointers: RankPointers,
    sizes: RankSizes,
    *,
    eps: float,
    scale: float,
    offset: float,
    stream: int = 0,
) -> None:
    """Launch scoring and ordering on `stream`; the results are ready when the stream is done.

    eps, scale, offset: as in cpp_ext.score. Raises RuntimeError if the launch fails.
    """
    code = library.modelsat_rank_cuda(
        *(pointers.hidden, sizes.dtype, sizes.batch, sizes.candidates, sizes.width),
        *(pointers.weight, eps, scale, offset),
        *(pointers.allowed, pointers.penalty, sizes.ranked),
        *(pointers.probability, pointers.order, stream),
    )
    _raise_for(code, "modelsat_rank_cuda")


def _raise_for(code: int, function: str) -> None:
    if code:
        raise RuntimeError(f"{function} returned {code}: {ERRORS.get(code, 'unknown')}")


def rank_reference(
    p: NDArray[np.float32],
    allowed: NDArray[np.uint8],
    penalty: NDArray[np.float32],
    ranked: int,
) -> NDArray[np.int32]:
    """Order the allowed candidates by falling p - penalty in fp32, then by number.

    Args:
        p: (B, M) probabilities.
        allowed: (B, M), 0 leaves a candidate out.
        penalty: (B, M).
        ranked: how many candidates to return for each request.

    Returns:
        (B, ranked) candidate numbers, then -1 if fewer are allowed.
    """
    order = np.full((len(p), ranked), -1, dtype=np.int32)
    for request, utility in enumerate(p - penalty):
        eligible = np.flatnonzero(allowed[request].astype(bool) & ~np.isnan(utility))
        best = eligible[np.argsort(-utility[eligible], kind="stable")][:ranked]
        order[request, : len(best)] = best
    return order
