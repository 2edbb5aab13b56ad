"""Compare instructions by their embeddings.

Shapes: N instructions, D width of an embedding, P axes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.bundle.types import Float32Array

# Weight of the shipped mean relative to the memory's own, in instructions. Each alone is worse:
# with its own mean, a memory of one kind cannot see that another kind is far; with the shipped one,
# kinds that training did not see lie close together.
PRIOR_INSTRUCTIONS = 100.0


@dataclass(frozen=True, eq=False)
class InstructionSpace:
    """The shipped part: mean (D,) of embeddings, and axes (D, P) that a centered one is projected
    on, half whitened. Axes of shape (D, 0) leave out the projection."""

    mean: Float32Array
    axes: Float32Array

    @cached_property
    def id(self) -> str:
        """Identify mean and axes, in the precision that files keep them in."""
        content = self.mean.astype("<f4").tobytes() + self.axes.astype("<f2").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def center_of(self, embeddings: Float32Array) -> Float32Array:
        """Return what a memory with these embeddings (N, D) is centered on, (D,)."""
        total = embeddings.sum(axis=0, dtype=np.float64) + PRIOR_INSTRUCTIONS * self.mean
        return np.asarray(total / (len(embeddings) + PRIOR_INSTRUCTIONS), dtype=np.float32)

    def project(self, embeddings: Float32Array) -> Float32Array:
        """Project embeddings (..., D) on the axes, (..., P); as they are if there are none."""
        return embeddings @ self.axes if self.axes.shape[1] else embeddings

    def unit_vectors(self, embeddings: Float32Array, center: Float32Array) -> Float32Array:
        """Project embeddings (..., D) to unit vectors (..., P)."""
        vectors = self.project(embeddings - center)
        norms = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
        return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)

    @classmethod
    def unknown(cls, width: int) -> InstructionSpace:
        """Return the space of weights that come without one: not centered, not projected."""
        return cls(np.zeros(width, np.float32), np.empty((width, 0), np.float32))
