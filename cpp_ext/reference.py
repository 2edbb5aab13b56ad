"""Validate the arguments of score(), and compute it in NumPy float64."""

import ctypes
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Hidden: TypeAlias = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

# Below this, squares that matter next to eps would be subnormal in fp32.
MIN_EPS = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class ScoreInputs:
    """Validated arguments.

    hidden: (B, M, D); uint16 holds the bits of bfloat16. weight: (D,).
    eps, scale, offset: rounded to fp32.
    """

    hidden: Hidden
    weight: NDArray[np.float32]
    eps: float
    scale: float
    offset: float


def validate(
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


def compute_probabilities(inputs: ScoreInputs) -> NDArray[np.float32]:
    """Compute (B, M) in float64. einsum sums row by row, so that a NaN stays in its row."""
    with np.errstate(invalid="ignore"):  # NaN or infinity in a row is answered with NaN
        hidden = _widen(inputs.hidden)
        dot = np.einsum("bmd,d->bm", hidden, inputs.weight.astype(np.float64))
        square = np.einsum("bmd,bmd->bm", hidden, hidden) / hidden.shape[-1]
        z = inputs.scale * dot / np.sqrt(square + inputs.eps) + inputs.offset
        e = np.exp(-np.abs(z))  # of a negative number only, which cannot overflow
        p: NDArray[np.float64] = np.where(z < 0, e, 1.0) / (1.0 + e)
    return p.astype(np.float32)


def _widen(hidden: Hidden) -> NDArray[np.float64]:
    if hidden.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (hidden.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return hidden.astype(np.float64)
