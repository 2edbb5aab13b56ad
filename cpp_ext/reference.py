"""What score() is given, once checked, and the NumPy float64 path beside the compiled one."""

import ctypes
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Hidden: TypeAlias = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

# Below this the squares of rows that matter against eps would fall under fp32's normal range.
MIN_EPS = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Rows:
    """Checked arguments: B requests, M candidates, V variants of each, rows of width D."""

    hidden: Hidden  # (B, M, V, D); uint16 holds the bits of bfloat16
    weight: NDArray[np.float32]  # (D,)
    eps: float  # these three already rounded to fp32
    scale: float
    offset: float


def check(
    hidden: Hidden,
    weight: NDArray[np.float32],
    *,
    eps: float,
    scale: float,
    offset: float,
    variants: int,
    dtype: Literal["bf16"] | None,
) -> Rows:
    """Raise ValueError naming the argument, what was found and what was expected, or pass it on."""
    _check_dtype(hidden.dtype, dtype)
    if hidden.ndim != 3:
        raise ValueError(f"hidden has {hidden.ndim} dimensions, expected 3: (B, M * V, D)")
    batch, rows, width = hidden.shape
    if width < 1:
        raise ValueError(f"hidden has width {width}, expected at least 1")
    if variants < 1:
        raise ValueError(f"variants is {variants}, expected at least 1")
    if rows % variants:
        raise ValueError(f"hidden has {rows} rows a request, expected a multiple of {variants=}")
    if weight.dtype != np.float32 or weight.shape != (width,):
        found = f"{weight.dtype} {weight.shape}"
        raise ValueError(f"weight is {found}, expected float32 {(width,)} as hidden's width")
    return Rows(
        hidden=hidden.reshape(batch, rows // variants, variants, width),
        weight=weight,
        eps=_float32("eps", eps, MIN_EPS),
        scale=_float32("scale", scale),
        offset=_float32("offset", offset),
    )


def _check_dtype(found: np.dtype[np.generic], dtype: str | None) -> None:
    if dtype not in (None, "bf16"):
        raise ValueError(f"dtype is {dtype!r}, expected None or 'bf16'")
    if dtype == "bf16":
        if found != np.uint16:
            raise ValueError(f"hidden is {found}, expected uint16 with dtype='bf16'")
    elif found not in (np.float32, np.float16):
        raise ValueError(
            f"hidden is {found}, expected float32, float16, or uint16 with dtype='bf16'"
        )


def _float32(name: str, value: float, least: float = -math.inf) -> float:
    """Round as the C ABI does, so that both paths compute with the same number."""
    rounded = ctypes.c_float(value).value
    if not math.isfinite(rounded) or rounded < least:
        limit = "" if least == -math.inf else f" of at least {least:.3g}"
        raise ValueError(f"{name} is {value}, expected a finite fp32 number{limit}")
    return rounded


def probability(rows: Rows) -> NDArray[np.float32]:
    """Compute (B, M) in float64. Sums run row by row (no BLAS), so that no NaN can spread."""
    with np.errstate(invalid="ignore"):  # a row of NaN or infinity is an answer: NaN
        hidden = _widen(rows.hidden)
        dot = np.einsum("bmvd,d->bmv", hidden, rows.weight.astype(np.float64))
        square = np.einsum("bmvd,bmvd->bmv", hidden, hidden) / hidden.shape[-1]
        z = rows.scale * dot / np.sqrt(square + rows.eps) + rows.offset
        e = np.exp(-np.abs(z))  # of a negative number only, so that it cannot overflow
        mean: NDArray[np.float64] = (np.where(z < 0, e, 1.0) / (1.0 + e)).mean(axis=-1)
    return mean.astype(np.float32)


def _widen(hidden: Hidden) -> NDArray[np.float64]:
    if hidden.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (hidden.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return hidden.astype(np.float64)
