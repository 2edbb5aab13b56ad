"""How far a probability depends on the other requests of its forward pass."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.types import Float32Array
from engine.inference.backend import ScoringHead
from tests.conftest import INSTRUCTIONS
from tests.support.backends import open_format
from tools.processes import ROOT

BUNDLE = ROOT / "artifacts" / "bundle"


@pytest.mark.parametrize(
    ("graph", "largest", "mean"),
    [
        ("backbone.int8.onnx", 0.02, 0.001),
        ("backbone.onnx", 1e-4, 1e-5),
        ("backbone.int8.fused", 1e-7, 1e-8),  # packed: the same arithmetic in any company
    ],
)
def test_a_probability_hardly_depends_on_its_batch(graph: str, largest: float, mean: float) -> None:
    """The bounds are those of docs/adr/0007."""
    manifest, arrays = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    head = ScoringHead(arrays.readout, manifest.norm_eps, manifest.calibration)
    backend = open_format(graph, 2)
    texts = [text * (1 + i % 3) for i, text in enumerate(INSTRUCTIONS[:24])]
    prompts = [render(text, tokenizer).tokens for text in texts]
    embeddings = np.random.default_rng(7).normal(0, 0.05, (8, arrays.readout.shape[-1]))
    embeddings = embeddings.astype(np.float32)

    def scores(count: int, rows: int = 8) -> Float32Array:
        parts = []
        for i in range(0, len(prompts), count):
            batch = prompts[i : i + count]
            parts.append(backend.probabilities(batch, embeddings, np.arange(rows), head).p)
        return np.concatenate(parts)

    alone = scores(1)
    assert np.ptp(alone) > 0.01, "the prompts and candidates differ"
    assert np.abs(alone[:, :3] - scores(1, 3)).max() < 1e-5
    moved = np.abs(alone - scores(8))
    assert moved.max() < largest
    assert moved.mean() < mean
