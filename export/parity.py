"""How far a graph's probabilities are from the plain NumPy reference, on fixed instructions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cpp_ext import score_reference
from engine.bundle.manifest import Manifest
from engine.bundle.prompt import render
from engine.inference.onnx import OnnxBackend
from export.onnx.ops import Arrays, LlamaConfig
from export.reference import hidden_row

INSTRUCTIONS = (
    "Hi",
    "If 3x + 7 = 22, what is x?",
    "Write a haiku about the sea, then explain its metre to a child of ten in two sentences.",
    "Which treaty ended the Thirty Years' War, and what did it change in the Holy Roman Empire?",
)


@dataclass(frozen=True)
class Parity:
    """INSTRUCTIONS as prompts x embeddings (M, D), and what the reference makes of them:
    hidden (B, M, D)."""

    prompts: list[NDArray[np.int64]]
    embeddings: NDArray[np.float32]
    readout: NDArray[np.float32]
    manifest: Manifest
    hidden: NDArray[np.float32]

    def of(self, backend: OnnxBackend) -> float:
        """Largest |p(backend) - p(reference)|, all prompts in one batch."""
        found = self._p(backend.hidden(self.prompts, self.embeddings))
        return float(np.abs(found - self._p(self.hidden)).max())

    def _p(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        manifest = self.manifest
        return score_reference(
            hidden,
            self.readout,
            eps=manifest.norm_eps,
            scale=manifest.calibration.scale,
            offset=manifest.calibration.offset,
        )


def parity(
    config: LlamaConfig,
    arrays: Arrays,
    tokenizer: Tokenizer,
    embeddings: NDArray[np.float32],
    readout: NDArray[np.float32],
    manifest: Manifest,
) -> Parity:
    """Run the reference: about half a second a pair at 30 layers."""
    prompts = [render(text, tokenizer).tokens for text in INSTRUCTIONS]
    hidden = [
        [hidden_row(config, arrays, p, e, manifest.layout) for e in embeddings] for p in prompts
    ]
    return Parity(prompts, embeddings, readout, manifest, np.array(hidden, dtype=np.float32))
