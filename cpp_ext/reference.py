"""Compute score() in NumPy float64."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Hidden: TypeAlias = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]


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
