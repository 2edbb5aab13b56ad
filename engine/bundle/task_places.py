"""Where the tasks of aptitude tests lie among instructions, and where training instructions do.

A place is a unit vector (P,): the direction of an embedding from the shipped mean, projected on the
shipped axes (engine/bundle/instruction_space.py). A task's place is that of the mean embedding of
its questions. If they are not known, it is estimated from the task's keywords.

Shapes: T tasks, N instructions, L landmarks, E encoder width, P axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float32Array

FILE = "task_places.npz"
PREFIX = "places_"  # of the arrays in a file
ID_BYTES = 8
CLASSIFIERS = ("everyday", "unusual")
NEIGHBORS = 5  # landmarks whose mean cosine is the nearness to the training instructions


@dataclass(frozen=True, eq=False)
class TaskPlaces:
    """Places by one bundle's weights.

    of_tasks: keywords -> place (P,), of tasks whose questions are known. keyword_weight (E, P),
    keyword_bias (P,): estimate a place from a keyword embedding of length 1. landmarks: (L, P)
    places of training instructions. everyday, unusual: (P + 1,) weights and bias of logistic
    classifiers (training/difficulty), None if there are none. space: `id` of the instruction space
    that all of it is in; empty if that is unknown. trained: (K,) uint32 keywords_id of the tasks
    that training had; empty if that is unknown.
    """

    of_tasks: Mapping[str, Float32Array]
    keyword_weight: Float32Array
    keyword_bias: Float32Array
    landmarks: Float32Array = field(repr=False)
    everyday: Float32Array | None = None
    unusual: Float32Array | None = None
    space: str = ""
    trained: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32), repr=False)

    @cached_property
    def id(self) -> bytes:
        """Identify the weights that places can be compared by: ID_BYTES of a hash."""
        content = np.ascontiguousarray(self.landmarks, dtype="<f2").tobytes()
        return hashlib.sha256(content).digest()[:ID_BYTES]

    def estimate(self, embeddings: Float32Array) -> Float32Array:
        """Estimate places (T, P) from embeddings of keywords (T, E), each of length 1."""
        return normalized(embeddings @ self.keyword_weight + self.keyword_bias)

    def nearness(self, places: Float32Array) -> Float32Array:
        """Return how near places (N, P) are to the training instructions, (N,): the mean cosine of
        the NEIGHBORS nearest landmarks."""
        cosines = places @ self.landmarks.T
        count = min(NEIGHBORS, cosines.shape[1])
        nearest = np.partition(cosines, -count, axis=1)[:, -count:]
        return np.asarray(nearest.mean(axis=1), dtype=np.float32)

    def everyday_share(self, places: Float32Array) -> Float32Array:
        """Return the probabilities (N,) that instructions at places (N, P) are everyday prompts,
        which hardly any strong candidate fails; 0 if the bundle cannot tell."""
        return _probability(self.everyday, places)

    def unusualness(self, places: Float32Array) -> Float32Array:
        """Return the probabilities (N,) that texts at places (N, P) are no instructions at all but
        bytes, logs or dumps; 0 if the bundle cannot tell."""
        return _probability(self.unusual, places)

    def pack(self, place: Float32Array) -> bytes:
        """Encode a place (P,) for a TaskResult: `id`, then half-precision values."""
        return self.id + place.astype("<f2").tobytes()

    def unpack(self, content: bytes) -> Float32Array | None:
        """Decode `pack`; None for what other weights made, and for what is no place."""
        body = content[ID_BYTES:]
        if content[:ID_BYTES] != self.id or len(body) != 2 * self.landmarks.shape[1]:
            return None
        place = np.frombuffer(body, dtype="<f2").astype(np.float32)
        length = float(np.linalg.norm(place))
        return place / np.float32(length) if np.isfinite(length) and length > 0 else None


def _probability(weights: Float32Array | None, places: Float32Array) -> Float32Array:
    if weights is None:
        return np.zeros(len(places), dtype=np.float32)
    return np.asarray(1 / (1 + np.exp(-(places @ weights[:-1] + weights[-1]))), dtype=np.float32)


def normalized(vectors: Float32Array) -> Float32Array:
    """Scale vectors (..., P) to length 1."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-9), dtype=np.float32)


def to_arrays(places: TaskPlaces) -> dict[str, NDArray[Any]]:
    """Return what an .npz file holds of them, in half precision."""
    arrays: dict[str, NDArray[Any]] = {
        "tasks": np.array(list(places.of_tasks)),
        "vectors": np.array(list(places.of_tasks.values())),
        "keyword_weight": places.keyword_weight,
        "keyword_bias": places.keyword_bias,
        "landmarks": places.landmarks,
        "space": np.array(places.space),
        "trained": places.trained,
    }
    for name in CLASSIFIERS:
        if (weights := getattr(places, name)) is not None:
            arrays[name] = weights
    half = {k: v.astype(np.float16) if v.dtype.kind == "f" else v for k, v in arrays.items()}
    return {PREFIX + name: array for name, array in half.items()}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> TaskPlaces | None:
    """Invert to_arrays; None if the arrays hold no places."""
    if PREFIX + "landmarks" not in arrays:
        return None
    tasks = [str(task) for task in arrays[PREFIX + "tasks"]]
    names = ("vectors", "keyword_weight", "keyword_bias", "landmarks")
    vectors, weight, bias, landmarks = (arrays[PREFIX + n].astype(np.float32) for n in names)
    of_tasks = dict(zip(tasks, normalized(vectors), strict=True))
    fitted = {n: arrays[PREFIX + n].astype(np.float32) for n in CLASSIFIERS if PREFIX + n in arrays}
    space = str(arrays.get(PREFIX + "space", ""))
    trained = arrays.get(PREFIX + "trained", np.zeros(0, np.uint32))
    # Landmarks stay as they are, so that the identity survives further copies.
    return TaskPlaces(of_tasks, weight, bias, landmarks, **fitted, space=space, trained=trained)


def load_task_places(folder: Path) -> TaskPlaces | None:
    """Read task_places.npz of weights or of a checkpoint; None if the folder has none."""
    if not (folder / FILE).is_file():
        return None
    with np.load(folder / FILE) as file:
        return from_arrays({name: file[name] for name in file.files})


def save_task_places(folder: Path, places: TaskPlaces) -> None:
    """Write task_places.npz, without pickled objects."""
    arrays: Any = to_arrays(places)
    np.savez_compressed(folder / FILE, **arrays)
