"""Compare instructions with landmarks among those that are remembered.

KernelFeatures are what corrections are functions of. Coverage tells whether an instruction is one
of those that are remembered, or far from all of them: outcomes on one kind of instructions say
nothing about other kinds, yet offsets hold everywhere, and functions of the kernel that explain a
large error reach far. So corrections fade where the memory is thinner than around its own
instructions (the local outlier factor of Breunig et al., 2000).

Shapes: N instructions, D width, P axes, R landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.types import Float32Array, Int64Array

KERNEL_WIDTH = 0.3  # exp((cosine - 1) / width); .2 and .45 lose .001 of AUC each
JITTER = 1e-4
NEIGHBORS = 10
# Of the landmarks, how many may lie in thinner places than what counts as covered; and how far
# below that coverage ends, as a share of it.
THINNEST_SHARE, FADE = 0.05, 0.15
MIN_DENSITY = 0.05


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


@dataclass(frozen=True, eq=False)
class Coverage:
    """Landmarks as unit vectors (R, P) around the shipped mean, wholly whitened, with the density
    (R,) around each: the mean cosine of its nearest ones.

    center, scale: (P,) of the projections that become these vectors. covered: relative density from
    which on an instruction is covered. The memory's own mean would hide what its instructions have
    in common.
    """

    vectors: Float32Array
    densities: Float32Array
    center: Float32Array
    scale: Float32Array
    covered: float

    @classmethod
    def of(cls, space: InstructionSpace, embeddings: Float32Array) -> Coverage:
        """Build it from the embeddings (R, D) of landmarks, R >= 1."""
        center = space.project(space.mean)
        halves = space.axes.shape[1] > 0  # they are half whitened
        scale = np.linalg.norm(space.axes, axis=0) if halves else np.ones_like(center)
        vectors = _unit_vectors(space.project(embeddings.astype(np.float32)), center, scale)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -np.inf)
        count = min(NEIGHBORS, len(vectors) - 1)
        if not count:
            return cls(vectors, np.ones(len(vectors), dtype=np.float32), center, scale, 0.0)
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        densities = np.take_along_axis(cosines, nearest, axis=1).mean(axis=1)
        relative = densities / np.maximum(densities[nearest].mean(axis=1), MIN_DENSITY)
        covered = max(float(np.quantile(relative, THINNEST_SHARE)), 0.0)
        return cls(vectors, densities, center, scale, covered)

    def at(self, projection: Float32Array) -> float:
        """Return how far an instruction is covered: from 0, far from every landmark, to 1, where
        they are about as near as to each other.

        projection: (P,) of its embedding, see InstructionSpace.project.
        """
        cosines = self.vectors @ _unit_vectors(projection, self.center, self.scale)
        count = min(NEIGHBORS, len(cosines))
        nearest = np.argpartition(-cosines, count - 1)[:count]
        around = max(float(self.densities[nearest].mean()), MIN_DENSITY)
        relative = float(cosines[nearest].mean()) / around
        lowest = (1 - FADE) * self.covered
        return min(1.0, max(0.0, (relative - lowest) / max(self.covered - lowest, 1e-9)))


def _kernel(one: Float32Array, other: Float32Array) -> Float32Array:
    return np.asarray(np.exp((one @ other.T - 1) / KERNEL_WIDTH), dtype=np.float32)


def _unit_vectors(
    projections: Float32Array, center: Float32Array, scale: Float32Array
) -> Float32Array:
    vectors = (projections - center) * scale
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
