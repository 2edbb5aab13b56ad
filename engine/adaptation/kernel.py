"""Compare instructions with landmarks among those that are remembered.

Corrections are functions of the kernel. Coverage tells whether an instruction is one of those that
are remembered, or far from all of them: outcomes on one kind of instructions say nothing about
other kinds, yet offsets hold everywhere, and functions of the kernel that explain a large error
reach far. So corrections fade where the memory is thinner than around its own instructions (the
local outlier factor of Breunig et al., 2000).

Shapes: N instructions, D width, P axes, R landmarks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array, Int64Array

KERNEL_WIDTH = 0.3  # exp((cosine - 1) / width); .2 and .45 lose .001 of AUC each
JITTER = 1e-4
NEIGHBORS = 10
# Of the landmarks, how many may lie in thinner places than what counts as covered; and how far
# below that coverage ends, as a share of it.
THINNEST_SHARE, FADE = 0.05, 0.1
MIN_DENSITY = 0.05
MIN_LENGTH = 1e-6  # of what has a direction


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
        kernel = kernel_of(landmarks @ landmarks.T).astype(np.float64)
        factor = np.linalg.cholesky(kernel + JITTER * np.eye(len(kernel)))
        return cls(landmarks, np.linalg.inv(factor).T.astype(np.float32))

    def similarities(self, vectors: Float32Array) -> Float32Array:
        """Return the kernel between unit vectors (N, P) and the landmarks, (N, R)."""
        return kernel_of(vectors @ self.landmarks.T)


@dataclass(frozen=True, eq=False)
class CosineFrame:
    """How directions are compared: seen from `center` (P,), with weights (P,) of the axes.

    scales: (R,) reciprocal lengths of the landmarks in this frame.
    """

    center: Float32Array
    weights: Float32Array
    scales: Float32Array

    @classmethod
    def of(
        cls, landmarks: Float32Array, center: Float32Array, weights: Float32Array
    ) -> CosineFrame:
        """Build the frame of landmarks (R, P)."""
        lengths = np.sqrt(((landmarks - center) ** 2 * weights).sum(axis=1))
        scales = np.where(lengths > MIN_LENGTH, 1 / np.maximum(lengths, MIN_LENGTH), 0)
        return cls(center, weights, scales.astype(np.float32))

    def cosines(self, landmarks: Float32Array, point: Float32Array) -> Float32Array:
        """Return the cosines (R,) between the landmarks and a point (P,)."""
        away = point - self.center
        weighted = away * self.weights
        products = landmarks @ weighted - self.center @ weighted
        scales = self.scales / np.float32(max(math.sqrt(away @ weighted), MIN_LENGTH))
        found: Float32Array = products * scales
        return found


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Remembered instructions that another one is compared with.

    points: (R, P) their projections around that of the shipped mean, `origin`. near: the frame of
    the kernel, around the memory's own mean. wide: the frame of coverage, wholly whitened, around
    the shipped mean, because the memory's own would hide what its instructions have in common.
    densities: (R,) mean cosine of each one's nearest. covered: relative density from which on an
    instruction is covered.

    A request reads `points` once for both frames: what it costs is memory that the forward pass has
    driven out of the processor's caches.
    """

    space: InstructionSpace
    origin: Float32Array
    points: Float32Array
    near: CosineFrame
    wide: CosineFrame
    densities: Float32Array
    covered: float

    @classmethod
    def of(
        cls, space: InstructionSpace, embeddings: Float32Array, center: Float32Array
    ) -> Landmarks:
        """Build them from embeddings (R, D), R >= 1. center: (D,) the memory's mean."""
        origin = space.project(space.mean)
        points = space.project(embeddings.astype(np.float32)) - origin
        halves = space.axes.shape[1] > 0  # they are half whitened
        weights = (space.axes**2).sum(axis=0) if halves else np.ones_like(origin)
        near = CosineFrame.of(points, space.project(center) - origin, np.ones_like(origin))
        wide = CosineFrame.of(points, np.zeros_like(origin), weights)
        densities, covered = _densities(points * np.sqrt(weights) * wide.scales[:, None])
        return cls(space, origin, points, near, wide, densities, covered)

    def compare(self, embedding: Float32Array) -> tuple[Float32Array, float]:
        """Compare an instruction (D,): its similarities (R,), and how far it is covered."""
        point = self.space.project(embedding) - self.origin
        similarities = kernel_of(self.near.cosines(self.points, point))
        return similarities, self._coverage(self.wide.cosines(self.points, point))

    def _coverage(self, cosines: Float32Array) -> float:
        """Return how far an instruction is covered: from 0, far from every landmark, to 1, where
        they are about as near as to each other."""
        count = min(NEIGHBORS, len(cosines))
        nearest = cosines.argpartition(-count)[-count:].tolist()
        around = max(sum(self.densities[i] for i in nearest), count * MIN_DENSITY)
        relative = float(sum(cosines[i] for i in nearest) / around)
        lowest = (1 - FADE) * self.covered
        return min(1.0, max(0.0, (relative - lowest) / max(self.covered - lowest, 1e-9)))


def _densities(vectors: Float32Array) -> tuple[Float32Array, float]:
    """Return the density around each of (R, P) unit vectors, and see Landmarks.covered."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    count = min(NEIGHBORS, len(vectors) - 1)
    if not count:
        return np.ones(len(vectors), dtype=np.float32), 0.0
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    densities = np.take_along_axis(cosines, nearest, axis=1).mean(axis=1)
    relative = densities / np.maximum(densities[nearest].mean(axis=1), MIN_DENSITY)
    return densities, max(float(np.quantile(relative, THINNEST_SHARE)), 0.0)


def kernel_of(cosines: Float32Array) -> Float32Array:
    """Return the kernel of cosines, at most 1."""
    return np.asarray(np.exp((cosines - 1) * np.float32(1 / KERNEL_WIDTH)), dtype=np.float32)
