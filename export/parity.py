"""How far a graph's probabilities are from the plain NumPy reference, on fixed instructions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cpp_ext import score_reference
from engine.contract.bundle import Manifest
from engine.contract.prompt import render
from engine.scoring.backend import Backend
from export.llama import LlamaConfig
from export.reference import Arrays, hidden_row

INSTRUCTIONS = (
    "Hi",
    "If 3x + 7 = 22, what is x?",
    "Write a haiku about the sea, then explain its metre to a child of ten in two sentences.",
    "Which treaty ended the Thirty Years' War, and what did it change in the Holy Roman Empire?",
)


def backbone_parity(
    backend: Backend,
    config: LlamaConfig,
    arrays: Arrays,
    tokenizer: Tokenizer,
    embeddings: NDArray[np.float32],
    readout: NDArray[np.float32],
    manifest: Manifest,
) -> float:
    """Largest |p(graph) - p(reference)| over INSTRUCTIONS in one batch x embeddings (M, D)."""
    prompts = [render(text, tokenizer).tokens for text in INSTRUCTIONS]
    reference = np.array(
        [[hidden_row(config, arrays, p, e, manifest.layout) for e in embeddings] for p in prompts],
        dtype=np.float32,
    )

    def p(hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        calibration = manifest.calibration
        return score_reference(
            hidden,
            readout,
            eps=manifest.norm_eps,
            scale=calibration.scale,
            offset=calibration.offset,
        )

    return float(np.abs(p(backend.hidden(prompts, embeddings)) - p(reference)).max())
