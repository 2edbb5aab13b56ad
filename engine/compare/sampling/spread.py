"""Draw instructions that are spread over the embedding space, and group them into regions.

Shapes: N instructions, D width, K drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.bundle.types import Float32Array, FloatArray, Int64Array
from engine.compare.sampling.vectors import names_of

MAX_REGIONS = 8
MIN_NAMED_SHARE = 0.9  # of instructions that have a category, for categories to be the regions
MIN_SPREAD = 1e-3  # largest standard deviation of an axis, below which texts are all alike
ITERATIONS = 30  # of k-means; it converges in fewer
RESTARTS = 5
TIE = 1e-6  # mean distance that is rounding alone
TRIED = 8  # rows of which a step of the draw takes one
MAX_AXES = 32  # that k-means looks at, those of the largest spread


@dataclass(frozen=True)
class Regions:
    """Groups of similar instructions. names: of the groups. labels: (K,) positions in `names`."""

    names: tuple[str, ...]
    labels: Int64Array


def draw_spread(
    vectors: Float32Array, count: int, seed: int, novelty: FloatArray | None = None
) -> list[int]:
    """Draw `count` rows of `vectors` (N, D), far from each other, by the seeding of k-means++.

    Each step draws a few rows by their squared distance to the nearest row taken before, times
    their novelty, and takes the one that brings all rows nearest to those taken (the greedy variant
    of Arthur and Vassilvitskii 2007). So outliers do not come first, as in farthest-point sampling,
    and dense regions are not drawn again and again, as at random. Rows are returned in the order of
    the draw, so any beginning of them is spread too.

    novelty: (N,) weights of 0 or more, larger where less is known; None means that all are alike.
    """
    rows = len(vectors)
    generator = np.random.default_rng(seed)
    weights = np.ones(rows) if novelty is None else np.maximum(novelty, 1e-9)
    distance = np.ones(rows)
    drawn: list[int] = []
    free = np.ones(rows, dtype=bool)
    while len(drawn) < min(count, rows):
        mass = weights * (distance + 1e-9) * free
        tried = generator.choice(rows, size=TRIED, p=mass / mass.sum())
        # Squared distances of unit vectors, halved: (TRIED, N).
        nearest = np.minimum(distance, np.maximum(0.0, 1.0 - vectors[tried] @ vectors.T))
        potential = nearest @ weights
        # Rows that do equally well, as equal texts do, are taken as they were drawn.
        best = int((potential <= potential.min() + TIE * weights.sum()).argmax())
        drawn.append(int(tried[best]))
        free[drawn[-1]] = False
        distance = nearest[best]
    return drawn


def find_regions(
    vectors: Float32Array,
    texts: Sequence[str],
    categories: Sequence[str],
    count: int | None = None,
    seed: int = 0,
) -> Regions:
    """Group K instructions: by their categories if nearly all have one, else by k-means.

    vectors: (K, D) of length 1. count: number of groups; None chooses by K.
    """
    named = [category for category in categories if category]
    if count is None and named and len(named) >= MIN_NAMED_SHARE * len(categories):
        names = sorted({category or "(no category)" for category in categories})
        return Regions(
            tuple(names), np.array([names.index(c or "(no category)") for c in categories])
        )
    count = count or min(MAX_REGIONS, round(math.sqrt(len(texts) / 8)))
    count = max(1, min(count, len(texts)))
    is_alike = float(vectors.std(axis=0).max()) < MIN_SPREAD
    points = _principal_axes(vectors)
    labels = _clusters(points, 1 if is_alike else count, seed)
    used, labels = np.unique(labels, return_inverse=True)
    if len(used) == 1:
        return Regions(("all",), labels.astype(np.int64))
    return Regions(tuple(names_of(texts, labels, len(used))), labels.astype(np.int64))


def _principal_axes(vectors: Float32Array) -> FloatArray:
    """Project (K, D) to the axes of the largest spread; sparse vectors say little about pairs."""
    left, values, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    axes = min(MAX_AXES, max(1, len(vectors) // 4), len(values))
    projected = left[:, :axes] * values[:axes]
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    return np.asarray(projected / np.maximum(lengths, 1e-9), dtype=np.float64)


def _clusters(points: FloatArray, count: int, seed: int) -> Int64Array:
    """Run k-means a few times; returns the labels (K,) of the best run."""
    best, best_error = np.zeros(len(points), dtype=np.int64), math.inf
    for restart in range(RESTARTS):
        centers = points[draw_spread(points.astype(np.float32), count, seed + restart)]
        labels = np.zeros(len(points), dtype=np.int64)
        for _ in range(ITERATIONS):
            distance = ((points[:, None] - centers[None]) ** 2).sum(axis=2)
            new = distance.argmin(axis=1)
            if (new == labels).all() and _:
                break
            labels = new
            for group in range(len(centers)):
                if (members := points[labels == group]).size:
                    centers[group] = members.mean(axis=0)
        error = float(((points - centers[labels]) ** 2).sum())
        if error < best_error - 1e-9:
            best, best_error = labels, error
    return best
