"""The interface to whatever runs the forward pass.

Shapes: B requests, L tokens, M candidates of a table, K of them to be scored, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.bundle.manifest import Calibration
from engine.bundle.types import Float32Array, Int64Array

Hidden = NDArray[Any]  # float32, float16, or bfloat16 bits
# The least probability, and the least distance from 1, of which log-odds are taken: beyond, float32
# probabilities and calibration say nothing.
MIN_PROBABILITY = 1e-4
Forward = Callable[[Sequence[Int64Array], Float32Array], Hidden]


@dataclass(frozen=True)
class ScoringHead:
    """The parameters that turn a row before the final norm into a probability.

    weight: (D,), the final norm's gain times (w_yes - w_no). eps: of the norm. See cpp_ext.score.
    """

    weight: Float32Array
    eps: float
    calibration: Calibration


@dataclass(frozen=True)
class BatchScores:
    """The result of one forward pass.

    p: (B, K). embeddings: (B, D) of the instructions, rounded by round_embeddings. inference_s:
    seconds of the forward pass. scoring_s: seconds of the scoring kernel; 0 on a GPU and in the
    fused forward pass, where inference_s includes it.

    The embedding of an instruction is the row before the final norm of the null candidate, whose
    own embedding is zero: what the backbone makes of the instruction for a candidate of which it
    knows nothing. Candidates do not see each other, so it is one more row of the same pass and
    changes no probability.
    """

    p: Float32Array
    embeddings: Float32Array
    inference_s: float
    scoring_s: float


def round_embeddings(rows: NDArray[Any]) -> Float32Array:
    """Round rows to float16, as caches and stores keep them, so that a decision by a kept embedding
    is the decision by a fresh one."""
    return rows.astype(np.float16).astype(np.float32)


def log_odds(p: Float32Array) -> Float32Array:
    """Return ln(p / (1 - p)), at most about 9.2 either way; NaN stays NaN."""
    clipped = np.minimum(np.maximum(p, MIN_PROBABILITY), 1 - MIN_PROBABILITY)
    odds: Float32Array = clipped / (1 - clipped)
    return np.log(odds)


class Backend(Protocol):
    """Runs the forward pass and the scoring kernel. Calls block and come from one thread at a
    time."""

    def probabilities(
        self,
        tokens: Sequence[Int64Array],
        embeddings: Float32Array,
        rows: Int64Array,
        head: ScoringHead,
    ) -> BatchScores:
        """Score K candidates for B prompts.

        A backend may keep a copy of `embeddings` or `head` under the object's identity: pass the
        same object for the same table every time, and never modify it.

        Args:
            tokens: B arrays of prompt tokens, (L,) each.
            embeddings: (M, D), the whole table.
            rows: (K,) rows of the table to score.
            head: the scoring head.

        Raises:
            UnavailableError: the forward pass failed.
        """

    def prefetch_table(self, embeddings: Float32Array) -> None:
        """Begin to upload a table that requests will read soon. May do nothing.

        Called from any thread; never blocks and never raises.
        """

    def describe(self) -> str:
        """Describe the backend for people: "onnxruntime CPU, 2 threads, backbone.onnx"."""
