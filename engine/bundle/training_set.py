"""What a bundle remembers of its training instructions, without their text.

fingerprints tell evaluation which questions it must leave out; token frequencies tell how unlike
them a new instruction is, where probabilities are extrapolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = "training_set.npz"
QUANTILES = 101


@dataclass(frozen=True)
class TrainingSet:
    """fingerprints: (N,) uint32 of the normalised texts, sorted. surprisal: (vocabulary,) -log of
    a token's smoothed share of all training tokens. quantiles: (QUANTILES,) of the instructions'
    mean surprisal."""

    fingerprints: NDArray[np.uint32]
    surprisal: NDArray[np.float32]
    quantiles: NDArray[np.float32]

    def ood_score(self, tokens: NDArray[np.int64]) -> float:
        """Share of the training instructions, in [0, 1], whose tokens are commoner on average than
        those of this prompt; near 1 the instruction is unlike what was trained on."""
        mean = float(self.surprisal[tokens].mean())
        return float(np.searchsorted(self.quantiles, mean) / len(self.quantiles))


def describe(
    fingerprints: Sequence[int], prompts: Sequence[NDArray[np.int64]], vocabulary: int
) -> TrainingSet:
    """The TrainingSet of these prompts."""
    counts = np.bincount(np.concatenate(prompts), minlength=vocabulary) + 0.5
    surprisal = -np.log(counts / counts.sum()).astype(np.float32)
    surprisal = surprisal.astype(np.float16).astype(np.float32)
    means = [surprisal[p].mean() for p in prompts]
    quantiles = np.quantile(means, np.linspace(0, 1, QUANTILES)).astype(np.float32)
    return TrainingSet(np.unique(np.array(fingerprints, dtype=np.uint32)), surprisal, quantiles)


def save_training_set(folder: Path, known: TrainingSet) -> None:
    """Write training_set.npz; no pickle."""
    np.savez_compressed(
        folder / FILE,
        fingerprints=known.fingerprints,
        surprisal=known.surprisal.astype(np.float16),
        quantiles=known.quantiles,
    )


def load_training_set(folder: Path) -> TrainingSet | None:
    """The inverse; None where the folder brings none."""
    if not (folder / FILE).is_file():
        return None
    with np.load(folder / FILE) as file:
        surprisal = file["surprisal"].astype(np.float32)
        return TrainingSet(file["fingerprints"], surprisal, file["quantiles"])
