"""The one seam: what runs the backbone. Letters: B requests, L tokens, R candidate rows, D width.

R = M candidates x V variants, the variants of a candidate side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Hidden = NDArray[Any]  # float32, float16, or bfloat16 bits


class Backend(Protocol):
    """One forward pass; blocking, called from one thread at a time."""

    def hidden(
        self, tokens: Sequence[NDArray[np.int64]], embeddings: NDArray[np.float32]
    ) -> Hidden:
        """B prompts of tokens (L_b,) and embeddings (R, D) -> rows before the final norm (B, R, D).

        Raises UnavailableError where the forward fails.
        """

    def describe(self) -> str:
        """What runs, for people: 'onnxruntime CPU, 2 threads, backbone.onnx'."""
