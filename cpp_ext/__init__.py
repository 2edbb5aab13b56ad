"""The fused scoring kernel: from residual-stream rows at the candidate positions to probabilities.

For the row h of a candidate, with w = gain * (w_yes - w_no) folded beforehand:

    logit = <h, w> / sqrt(mean(h^2) + eps)          RMSNorm: Zhang & Sennrich, 2019
    p     = sigmoid(scale * logit + offset)         Pr('Yes'): Model-SAT, AAAI 2025

score() calls the compiled kernel (score.h) if it was built, and NumPy otherwise.
"""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cpp_ext.reference import Hidden, ScoreInputs, compute_probabilities

__all__ = ["implementation", "score", "score_reference"]

ABI_VERSION = 2  # MODELSAT_ABI_VERSION of score.h
# Below this, squares that matter next to eps would be subnormal in fp32.
MIN_EPS = float(np.finfo(np.float32).tiny)
_DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}


@dataclass(frozen=True, slots=True)
class _Kernel:
    """The functions of score.h."""

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
    dtype: Literal["bf16"] | None = None,
) -> NDArray[np.float32]:
    """Compute Pr('Yes') of every candidate.

    Args:
        hidden: (B, M, D) rows of B requests and M candidates before the final norm: float32,
            float16, or the bits of bfloat16 as uint16 with dtype="bf16". Copied only if it is not
            contiguous.
        weight: (D,) float32, the final norm's gain times (w_yes - w_no).
        eps: the norm's epsilon, at least 1.18e-38 (the smallest normal fp32).
        scale: calibration, multiplies the logit (natural log-odds).
        offset: calibration, added to the scaled logit.
        dtype: "bf16" if hidden holds bfloat16.

    Returns:
        (B, M) float32 in [0, 1]. NaN or infinity in a row makes its own candidate NaN and no other.

    Raises:
        ValueError: names the argument, its value and what was expected.
    """
    inputs = _validate(hidden, weight, eps=eps, scale=scale, offset=offset, dtype=dtype)
    kernel = _kernel()
    return compute_probabilities(inputs) if isinstance(kernel, str) else _call(kernel, inputs)


def score_reference(
    hidden: Hidden,
    weight: NDArray[np.float32],
    *,
    eps: float,
    scale: float,
    offset: float,
    dtype: Literal["bf16"] | None = None,
) -> NDArray[np.float32]:
    """Compute score() in NumPy float64, whether or not the kernel was built."""
    return compute_probabilities(
        _validate(hidden, weight, eps=eps, scale=scale, offset=offset, dtype=dtype)
    )


def implementation() -> str:
    """Name what score() runs: "c++ avx2", or "numpy (no compiled kernel: <reason>)"."""
    kernel = _kernel()
    if isinstance(kernel, str):
        return f"numpy (no compiled kernel: {kernel})"
    return f"c++ {kernel.isa().decode()}"


def _validate(
    hidden: Hidden,
    weight: NDArray[np.float32],
    *,
    eps: float,
    scale: float,
    offset: float,
    dtype: Literal["bf16"] | None,
) -> ScoreInputs:
    """Check the arguments of score().

    Raises:
        ValueError: names the argument, its value and what was expected.
    """
    _check_dtype(hidden.dtype, dtype)
    if hidden.ndim != 3:
        raise ValueError(f"hidden has {hidden.ndim} dimensions, expected 3: (B, M, D)")
    width = hidden.shape[-1]
    if width < 1:
        raise ValueError(f"hidden has width {width}, expected at least 1")
    if weight.dtype != np.float32 or weight.shape != (width,):
        actual = f"{weight.dtype} {weight.shape}"
        raise ValueError(f"weight is {actual}, expected float32 {(width,)} as hidden's width")
    return ScoreInputs(
        hidden=hidden,
        weight=weight,
        eps=_float32("eps", eps, MIN_EPS),
        scale=_float32("scale", scale),
        offset=_float32("offset", offset),
    )


def _check_dtype(actual: np.dtype[np.generic], dtype: str | None) -> None:
    if dtype not in (None, "bf16"):
        raise ValueError(f"dtype is {dtype!r}, expected None or 'bf16'")
    if dtype == "bf16":
        if actual != np.uint16:
            raise ValueError(f"hidden is {actual}, expected uint16 with dtype='bf16'")
    elif actual not in (np.float32, np.float16):
        raise ValueError(
            f"hidden is {actual}, expected float32, float16, or uint16 with dtype='bf16'"
        )


def _float32(name: str, value: float, minimum: float = -math.inf) -> float:
    """Round to fp32 as the C ABI does, so that both implementations use the same number."""
    rounded = ctypes.c_float(value).value
    if not math.isfinite(rounded) or rounded < minimum:
        limit = "" if minimum == -math.inf else f" of at least {minimum:.3g}"
        raise ValueError(f"{name} is {value}, expected a finite fp32 number{limit}")
    return rounded


def _call(kernel: _Kernel, inputs: ScoreInputs) -> NDArray[np.float32]:
    hidden, weight = _contiguous(inputs.hidden), _contiguous(inputs.weight)
    out = np.empty(hidden.shape[:2], np.float32)
    code = kernel.score(
        hidden.ctypes.data,
        _DTYPES[hidden.dtype],
        *hidden.shape,
        weight.ctypes.data,
        inputs.eps,
        inputs.scale,
        inputs.offset,
        out.ctypes.data,
    )
    if code:
        raise RuntimeError(f"modelsat_score returned {code}, expected 0 (codes: cpp_ext/score.h)")
    return out


def _contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """Copy the array unless C can read it. The check takes a seventh of np.require()'s time."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    return np.require(array, requirements=("C", "A"))


@cache
def _kernel() -> _Kernel | str:
    return _load(Path(__file__).parent)


def _load(folder: Path) -> _Kernel | str:
    """Load the newest _kernel*.so in `folder`, or return the reason why it cannot be used."""
    libraries = sorted(folder.glob("_kernel*.so"), key=lambda path: path.stat().st_mtime)
    if not libraries:
        return f"no _kernel*.so in {folder}"
    name = libraries[-1].name
    try:
        library = ctypes.CDLL(str(libraries[-1]))
        if (version := library.modelsat_abi_version()) != ABI_VERSION:
            return f"{name} has ABI version {version}, expected {ABI_VERSION}; build it again"
        kernel = _Kernel(
            library.modelsat_score, library.modelsat_score_isa, library.modelsat_score_set_isa
        )
    except (OSError, AttributeError) as error:
        return f"{name} does not load: {error}"
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.modelsat_score.argtypes = [
        *(pointer, ctypes.c_int32, size, size, size),  # hidden, dtype, B, M, D
        *(pointer, number, number, number, pointer),  # weight, eps, scale, offset, probability
    ]
    library.modelsat_score_isa.restype = ctypes.c_char_p
    library.modelsat_score_set_isa.argtypes = [ctypes.c_char_p]
    return kernel
