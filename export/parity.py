"""Measure how far a graph's probabilities are from the NumPy reference, on fixed instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from cpp_ext import score_reference
from engine.bundle.manifest import Manifest
from engine.bundle.prompt import render
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.backend import Hidden
from export.onnx.ops import LlamaConfig, Weights
from export.reference import hidden_row

INSTRUCTIONS = (
    "Hi",
    "If 3x + 7 = 22, what is x?",
    "Write a haiku about the sea, then explain its metre to a child of ten in two sentences.",
    "Which treaty ended the Thirty Years' War, and what did it change in the Holy Roman Empire?",
)


class HiddenBackend(Protocol):
    """A backend that gives the rows before the final norm."""

    def hidden(self, tokens: Sequence[Int64Array], embeddings: Float32Array) -> Hidden:
        """Run the forward pass: (B, K, D), see OnnxBackend.hidden."""


@dataclass(frozen=True)
class ParityCheck:
    """The reference's results for INSTRUCTIONS and a few candidates.

    prompts: B arrays of tokens (L,). embeddings: (M, D). readout: (D,).
    hidden: (B, M, D) of the reference.
    """

    prompts: list[Int64Array]
    embeddings: Float32Array
    readout: Float32Array
    manifest: Manifest
    hidden: Float32Array

    def max_difference(self, backend: HiddenBackend) -> float:
        """Return the largest |p - p(reference)|, with all prompts in one batch."""
        p = self._probabilities(backend.hidden(self.prompts, self.embeddings))
        return float(np.abs(p - self._probabilities(self.hidden)).max())

    def _probabilities(self, hidden: Float32Array) -> Float32Array:
        manifest = self.manifest
        return score_reference(
            hidden,
            self.readout,
            eps=manifest.norm_eps,
            scale=manifest.calibration.scale,
            offset=manifest.calibration.offset,
        )


def prepare_parity_check(
    config: LlamaConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    embeddings: Float32Array,
    readout: Float32Array,
    manifest: Manifest,
) -> ParityCheck:
    """Run the reference. Takes about 0.5 s for each prompt and candidate at 30 layers."""
    prompts = [render(text, tokenizer).tokens for text in INSTRUCTIONS]
    hidden = [[hidden_row(config, weights, p, e) for e in embeddings] for p in prompts]
    return ParityCheck(prompts, embeddings, readout, manifest, np.array(hidden, dtype=np.float32))
