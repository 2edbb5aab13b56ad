"""Choose landmarks among instructions, and turn similarities to them into kernel features.

Shapes: N instructions, P axes, R landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bundle.types import Float32Array, Int64Array

KERNEL_WIDTH = 0.3  # exp((cosine - 1) / width); .2 and .45 lose .001 of AUC each
JITTER = 1e-4


def choose_landmarks(vectors: Float32Array, count: int) -> Int64Array:
    """Choose at most `count` of (N, P) unit vectors, spread over all: positions, ascending.

    Each next one is drawn with a chance that grows with its distance to the nearest one before
    (k-means++ of Arthur and Vassilvitskii, 2007, with 1 - cosine as squared distance). The same
    vectors give the same landmarks.
    """
    if len(vectors) <= count:
        return np.arange(len(vectors))
    random = np.random.default_rng(0)
    chosen = [int(random.integers(len(vectors)))]
    distance = 1 - vectors @ vectors[chosen[0]]
    for _ in range(count - 1):
        cumulative = np.cumsum(np.maximum(distance, 0), dtype=np.float64)
        if not cumulative[-1] > 0:
            break
        place = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
        chosen.append(min(place, len(vectors) - 1))
        distance = np.minimum(distance, 1 - vectors @ vectors[chosen[-1]])
    return np.unique(np.array(chosen))


@dataclass(frozen=True, eq=False)
class KernelFeatures:
    """Nystrom features, whose products approximate the kernel (Williams and Seeger, 2001).

    landmarks: (R, P). mix: (R, R), the transposed inverse Cholesky factor of their kernel.
    """

    landmarks: Float32Array
    mix: Float32Array

    @classmethod
    def of(cls, landmarks: Float32Array) -> KernelFeatures:
        """Build the features of unit vectors (R, P)."""
        kernel = _kernel(landmarks, landmarks).astype(np.float64)
        factor = np.linalg.cholesky(kernel + JITTER * np.eye(len(kernel)))
        return cls(landmarks, np.linalg.inv(factor).T.astype(np.float32))

    def similarities(self, vectors: Float32Array) -> Float32Array:
        """Return the kernel between unit vectors (..., P) and the landmarks, (..., R)."""
        return _kernel(vectors, self.landmarks)


def _kernel(one: Float32Array, other: Float32Array) -> Float32Array:
    return np.asarray(np.exp((one @ other.T - 1) / KERNEL_WIDTH), dtype=np.float32)
