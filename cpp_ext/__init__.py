"""The fused scoring kernel: residual-stream rows at the candidate positions to probabilities.

For row h of candidate m under variant v, with w = gain * (w_yes - w_no) folded beforehand:

    logit = <h, w> / sqrt(mean(h^2) + eps)           RMSNorm: Zhang & Sennrich, 2019
    p     = mean over v of sigmoid(scale * logit + offset)     Pr('Yes'): Model-SAT, AAAI 2025

score() runs compiled code (score.h) where it was built, and NumPy where it was not.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpp_ext.reference import Hidden, Rows, check, probability

__all__ = ["implementation", "score", "score_reference"]

_DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}


@dataclass(frozen=True, slots=True)
class _Kernel:
    """The three functions of score.h."""

    score: Callable[..., int]
    isa: Callable[[], bytes]
    set_isa: Callable[[bytes | None], int]


def score(
    hidden: Hidden,
    weight: NDArray[np.float32],
    *,
    eps: float,
    scale: float,
    offset: float,
    variants: int = 1,
    dtype: Literal["bf16"] | None = None,
) -> NDArray[np.float32]:
    """Return Pr('Yes') in [0, 1], shape (B, M) for B requests and M candidates.

    hidden: (B, M * V, D) rows before the final norm, the V variants of a candidate side by side;
        float32, float16, or the bits of bfloat16 as uint16 with dtype="bf16". Copied only where
        it is not contiguous.
    weight: (D,) float32, the final norm's gain times (w_yes - w_no).
    eps: the norm's epsilon, at least 1.18e-38 (the smallest normal fp32).
    scale, offset: the calibration of the logit (natural log-odds).
    variants: V, the renderings of each candidate that are averaged.

    A row that holds NaN or infinity makes its own candidate NaN and no other.
    Raises ValueError naming the argument, what was found and what was expected.
    """
    rows = check(
        hidden, weight, eps=eps, scale=scale, offset=offset, variants=variants, dtype=dtype
    )
    kernel = _kernel()
    return probability(rows) if isinstance(kernel, str) else _call(kernel, rows)


def score_reference(
    hidden: Hidden,
    weight: NDArray[np.float32],
    *,
    eps: float,
    scale: float,
    offset: float,
    variants: int = 1,
    dtype: Literal["bf16"] | None = None,
) -> NDArray[np.float32]:
    """Do as score() does, in NumPy float64, whether or not the kernel was built."""
    return probability(
        check(hidden, weight, eps=eps, scale=scale, offset=offset, variants=variants, dtype=dtype)
    )


def implementation() -> str:
    """Say what score() runs: "c++ avx2", or "numpy (no compiled kernel: <why>)"."""
    kernel = _kernel()
    if isinstance(kernel, str):
        return f"numpy (no compiled kernel: {kernel})"
    return f"c++ {kernel.isa().decode()}"


def _call(kernel: _Kernel, rows: Rows) -> NDArray[np.float32]:
    hidden, weight = _plain(rows.hidden), _plain(rows.weight)
    out = np.empty(hidden.shape[:2], np.float32)
    code = kernel.score(
        hidden.ctypes.data,
        _DTYPES[hidden.dtype],
        *hidden.shape,
        weight.ctypes.data,
        rows.eps,
        rows.scale,
        rows.offset,
        out.ctypes.data,
    )
    if code:
        raise RuntimeError(f"modelsat_score returned {code}, expected 0 (the codes are in score.h)")
    return out


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array itself where C can read it, which takes a seventh of np.require()."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    return np.require(array, requirements=("C", "A"))


@cache
def _kernel() -> _Kernel | str:
    return _load(Path(__file__).parent)


def _load(folder: Path) -> _Kernel | str:
    """Load the newest _score*.so in folder, or say why there is none."""
    found = sorted(folder.glob("_score*.so"), key=lambda path: path.stat().st_mtime)
    if not found:
        return f"no _score*.so in {folder}"
    try:
        library = ctypes.CDLL(str(found[-1]))
        kernel = _Kernel(
            library.modelsat_score, library.modelsat_score_isa, library.modelsat_score_set_isa
        )
    except (OSError, AttributeError) as error:
        return f"{found[-1].name} does not load: {error}"
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.modelsat_score.argtypes = [
        *(pointer, ctypes.c_int32, size, size, size, size),  # hidden, dtype, B, M, V, D
        *(pointer, number, number, number, pointer),  # weight, eps, scale, offset, probability
    ]
    library.modelsat_score_isa.restype = ctypes.c_char_p
    library.modelsat_score_set_isa.argtypes = [ctypes.c_char_p]
    return kernel
