"""The one seam: what scores. Letters: B requests, L tokens, M candidates of a table, K of the M
that are asked for, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from cpp_ext import score
from engine.bundle.manifest import Calibration
from engine.bundle.types import Float32Array, Int64Array

Hidden = NDArray[Any]  # float32, float16, or bfloat16 bits
Forward = Callable[[Sequence[Int64Array], Float32Array], Hidden]


@dataclass(frozen=True)
class Readout:
    """What turns a row into a probability. weight: (D,), see cpp_ext.score."""

    weight: Float32Array
    eps: float
    calibration: Calibration


@dataclass(frozen=True)
class Scores:
    """p: (B, K). score_s: seconds of the kernel, 0 where it runs on a GPU inside of forward_s."""

    p: Float32Array
    forward_s: float
    score_s: float


class Backend(Protocol):
    """One forward pass and the scoring kernel; blocking, called from one thread at a time."""

    def probabilities(
        self,
        tokens: Sequence[Int64Array],
        embeddings: Float32Array,
        rows: Int64Array,
        readout: Readout,
    ) -> Scores:
        """B prompts of tokens (L_b,), a whole table (M, D), the K rows of it that are asked for.

        A table is passed as one and the same array every time and never written to: a backend may
        keep a copy of it, known by its identity, and so of the readout.
        Raises UnavailableError where it fails.
        """

    def prepare(self, embeddings: Float32Array) -> None:
        """Requests will read this table soon: begin to upload it. From any thread; never waits,
        never raises, and may do nothing."""

    def describe(self) -> str:
        """What runs, for people: 'onnxruntime CPU, 2 threads, backbone.onnx'."""


def score_rows(
    forward: Forward,
    tokens: Sequence[Int64Array],
    embeddings: Float32Array,
    rows: Int64Array,
    readout: Readout,
) -> Scores:
    """Backend.probabilities from a forward that gives rows before the final norm: tokens and
    embeddings (K, D) -> (B, K, D)."""
    begun = time.monotonic()
    hidden = forward(tokens, embeddings[rows])
    forwarded = time.monotonic()
    p = score(
        hidden,
        readout.weight,
        eps=readout.eps,
        scale=readout.calibration.scale,
        offset=readout.calibration.offset,
    )
    return Scores(p, forwarded - begun, time.monotonic() - forwarded)
