"""Arrays that scoring and encoding need besides the two graphs, stored in a bundle's scoring.npz.

Shapes: T tasks, E encoder width, C representation width, D backbone width.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import BundleError
from engine.bundle.instruction_space import InstructionSpace
from engine.bundle.manifest import REBUILD_HINT
from engine.bundle.task_places import TaskPlaces, from_arrays, to_arrays
from engine.bundle.types import Float32Array

FILE = "scoring.npz"
log = logging.getLogger(__name__)
PART = re.compile(r"part \d+")  # a keyword that numbers the parts of a task


@dataclass(frozen=True)
class TaskNorms:
    """Reference values of accuracies and keywords, measured on the training candidates.

    center: (E,) mean keyword embedding. means: task -> mean accuracy, for the tasks they took.
    """

    center: Float32Array
    means: Mapping[str, float]

    def of(self, tasks: Sequence[str]) -> NDArray[np.float64]:
        """Return mu_t, (T,), NaN for tasks that the training candidates did not take.

        Tasks are matched by their sets of keywords; a keyword `part N` is ignored.
        """
        return np.array([self._by_keywords.get(keyword_set(task), np.nan) for task in tasks])

    @cached_property
    def _by_keywords(self) -> dict[frozenset[str], float]:
        return {keyword_set(task): mean for task, mean in self.means.items()}


def keyword_set(task: str) -> frozenset[str]:
    """Return the keywords of a task without `part N`, by which tasks are the same."""
    words = frozenset(task.split(", "))
    if "part " not in task:  # matching 2,500 words took most of the 1 ms to encode a candidate
        return words
    return frozenset(w for w in words if not PART.fullmatch(w))


def keywords_id(task: str) -> int:
    """Identify the keywords of a task, whatever their order: 32 bits."""
    return zlib.crc32(", ".join(sorted(keyword_set(task))).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Connector:
    """The linear map e_c = W c + b from representation to embedding. weight: (D, C). bias: (D,)."""

    weight: Float32Array
    bias: Float32Array


@dataclass(frozen=True)
class ScoringArrays:
    """The content of scoring.npz.

    readout: (D,), the final norm's gain times (w_yes - w_no). encoder_tokens: the encoder's maximum
    input; longer texts are refused, not truncated. instruction_space: how embeddings of
    instructions are compared; neutral in a bundle that does not know it. places: of tasks, None in
    a bundle that does not know any.
    """

    readout: Float32Array
    connector: Connector
    norms: TaskNorms
    encoder_tokens: int
    instruction_space: InstructionSpace
    places: TaskPlaces | None = None


def save_arrays(folder: Path, arrays: ScoringArrays) -> None:
    """Write scoring.npz, without pickled objects."""
    norms = arrays.norms
    places: Any = {} if arrays.places is None else to_arrays(arrays.places)
    np.savez(
        folder / FILE,
        readout=arrays.readout,
        connector_weight=arrays.connector.weight,
        connector_bias=arrays.connector.bias,
        center=norms.center,
        tasks=np.array(list(norms.means)),
        task_means=np.array(list(norms.means.values()), dtype=np.float64),
        encoder_tokens=np.int64(arrays.encoder_tokens),
        instruction_mean=arrays.instruction_space.mean,
        instruction_axes=arrays.instruction_space.axes.astype(np.float16),
        **places,
    )


def load_arrays(folder: Path) -> ScoringArrays:
    """Read scoring.npz; raise BundleError for values that are not finite or shapes that differ."""
    with np.load(folder / FILE) as file:
        arrays = {name: file[name] for name in file.files}
    readout, weight = arrays["readout"], arrays["connector_weight"]
    if weight.shape[0] != len(readout) or arrays["connector_bias"].shape != readout.shape:
        raise BundleError(
            f"{folder / FILE}: connector_weight is {weight.shape}, readout {readout.shape};"
            f" both must have the backbone's width; {REBUILD_HINT}."
        )
    space = _instruction_space(folder, arrays, len(readout))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BundleError(f"{folder / FILE}: {name} has values that are not finite.")
    tasks = [str(t) for t in arrays["tasks"]]
    means = dict(zip(tasks, arrays["task_means"].tolist(), strict=True))
    norms = TaskNorms(arrays["center"], means)
    connector = Connector(weight, arrays["connector_bias"])
    places = from_arrays(arrays) if space.axes.shape[1] else None  # which are on its axes
    if places is not None and places.landmarks.shape[1] != space.axes.shape[1]:
        raise BundleError(
            f"{folder / FILE}: places have {places.landmarks.shape[1]} axes, instructions"
            f" {space.axes.shape[1]}; {REBUILD_HINT}."
        )
    tokens = int(arrays["encoder_tokens"])
    return ScoringArrays(readout, connector, norms, tokens, space, places)


def _instruction_space(
    folder: Path, arrays: Mapping[str, NDArray[Any]], width: int
) -> InstructionSpace:
    neutral = InstructionSpace.unknown(width)
    mean = arrays.get("instruction_mean", neutral.mean)
    axes = arrays.get("instruction_axes", neutral.axes)
    for name, array in (("instruction_mean", mean), ("instruction_axes", axes)):
        if array.shape[0] != width:
            raise BundleError(
                f"{folder / FILE}: {name} is {array.shape}, expected {width} rows; {REBUILD_HINT}."
            )
    if not mean.any():
        log.info("%s has no mean embedding, so instructions are not centered on one", folder)
    return InstructionSpace(mean, axes.astype(np.float32))
