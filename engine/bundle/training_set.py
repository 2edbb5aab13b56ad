"""Statistics of the training instructions that a bundle carries, without their text.

Fingerprints tell evaluation which questions to leave out. Token frequencies give the OOD score of a
new instruction: near 1, its probabilities are extrapolation. The mean embedding is what embeddings
of instructions are centered on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bundle.instruction_space import InstructionSpace

FILE = "training_set.npz"
QUANTILES = 101


@dataclass(frozen=True)
class TrainingSet:
    """Statistics of N training instructions.

    fingerprints: (N,) uint32 of the normalized texts, sorted. surprisal: (V,), -log of each token's
    smoothed share of all training tokens; V is the vocabulary size. quantiles: (QUANTILES,) of the
    instructions' mean surprisal. instruction_space: how embeddings by these weights are compared
    (python -m training.instruction_space); None if it was not computed. weights: ID of the weights
    that the space belongs to (training/weights/adapter.py); empty if that is unknown.
    """

    fingerprints: NDArray[np.uint32]
    surprisal: NDArray[np.float32]
    quantiles: NDArray[np.float32]
    instruction_space: InstructionSpace | None = None
    weights: str = ""

    def ood_score(self, tokens: NDArray[np.int64]) -> float:
        """Return the out-of-distribution score of a prompt, in [0, 1]: the percentile of its mean
        token surprisal among the training instructions. tokens: (L,)."""
        mean = float(self.surprisal[tokens].sum() / len(tokens))
        return float(self.quantiles.searchsorted(mean) / len(self.quantiles))


def describe(
    fingerprints: Sequence[int], prompts: Sequence[NDArray[np.int64]], vocabulary: int
) -> TrainingSet:
    """Compute the statistics of these prompts. vocabulary: number of token IDs."""
    counts = np.bincount(np.concatenate(prompts), minlength=vocabulary) + 0.5
    surprisal = -np.log(counts / counts.sum()).astype(np.float32)
    surprisal = surprisal.astype(np.float16).astype(np.float32)
    means = [surprisal[p].mean() for p in prompts]
    quantiles = np.quantile(means, np.linspace(0, 1, QUANTILES)).astype(np.float32)
    return TrainingSet(np.unique(np.array(fingerprints, dtype=np.uint32)), surprisal, quantiles)


def save_training_set(folder: Path, training_set: TrainingSet) -> None:
    """Write training_set.npz, without pickled objects."""
    arrays: dict[str, NDArray[Any]] = {
        "fingerprints": training_set.fingerprints,
        "surprisal": training_set.surprisal.astype(np.float16),
        "quantiles": training_set.quantiles,
        "weights": np.array(training_set.weights),
    }
    if (space := training_set.instruction_space) is not None:
        arrays["instruction_mean"] = space.mean
        arrays["instruction_axes"] = space.axes.astype(np.float16)
    np.savez_compressed(folder / FILE, **arrays)  # type: ignore[arg-type]


def load_training_set(folder: Path) -> TrainingSet | None:
    """Read training_set.npz; return None if the folder has none."""
    if not (folder / FILE).is_file():
        return None
    with np.load(folder / FILE) as file:
        surprisal = file["surprisal"].astype(np.float32)
        space = None
        if "instruction_axes" in file:
            axes = file["instruction_axes"].astype(np.float32)
            space = InstructionSpace(file["instruction_mean"], axes)
        weights = str(file["weights"]) if "weights" in file else ""
        return TrainingSet(file["fingerprints"], surprisal, file["quantiles"], space, weights)
