"""Test that torch, the graph with either kernel, and the server agree on the shipped model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cpp_ext import score, score_reference
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.inference.onnx import OnnxBackend
from engine.registry.catalog import read_catalog
from engine.registry.matching.task_match import add_log_odds
from engine.registry.onnx_encoder import load_encoder
from modelsat import Client
from tests.conftest import CHECKPOINT, INSTRUCTIONS
from tests.support import tiny_llama
from tools.processes import BUNDLE
from training.model.model import ModelSat, build
from training.weights.base import load_base

pytestmark = pytest.mark.slow

MANIFEST = read_manifest(BUNDLE, "bundle")
ARRAYS = load_arrays(BUNDLE)
CATALOG = sorted(read_catalog(BUNDLE / "zoo.json"), key=lambda c: c.id)
LIMIT = 1e-3
# The server's default graph, which docs/explanation/quality.md evaluates. One probability in 100
# may differ by more than INT8_LIMIT.
INT8_MEAN, INT8_LIMIT, INT8_MOST = 0.01, 0.03, 0.05
Kernel = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    encoder = load_encoder(BUNDLE, ARRAYS)
    return np.stack([encoder.encode(c) for c in CATALOG])


@pytest.fixture(scope="module")
def prompts() -> list[NDArray[np.int64]]:
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return [render(text, tokenizer).tokens for text in INSTRUCTIONS]


@pytest.fixture(scope="module")
def model() -> ModelSat:
    """The checkpoint, loaded in transformers."""
    base = load_base(str(CHECKPOINT / "backbone"))
    return ModelSat(build(base, causal=True), torch.nn.Linear(1, 1), base.tokenizer).eval()


def p_of(hidden: NDArray[np.float32], kernel: Kernel = score) -> NDArray[np.float32]:
    """(B, M) probabilities of rows before the final norm."""
    return kernel(
        hidden,
        ARRAYS.readout,
        eps=MANIFEST.norm_eps,
        scale=MANIFEST.calibration.scale,
        offset=MANIFEST.calibration.offset,
    )


@torch.no_grad()
def in_torch(
    model: ModelSat,
    prompts: list[NDArray[np.int64]],
    embeddings: NDArray[np.float32],
) -> NDArray[np.float32]:
    """(B, M) probabilities."""
    margins = model.margins(*tiny_llama.padded(prompts), torch.from_numpy(embeddings))
    calibration = MANIFEST.calibration
    p: NDArray[np.float32] = torch.sigmoid(calibration.scale * margins + calibration.offset).numpy()
    return p


@pytest.fixture(scope="module")
def from_torch(
    model: ModelSat, prompts: list[NDArray[np.int64]], embeddings: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(64, M) probabilities of the checkpoint."""
    return in_torch(model, prompts, embeddings)


@pytest.mark.parametrize("kernel", [score, score_reference])
def test_graph_and_kernel_agree_with_torch(
    kernel: Kernel,
    prompts: list[NDArray[np.int64]],
    embeddings: NDArray[np.float32],
    from_torch: NDArray[np.float32],
) -> None:
    backend = OnnxBackend(BUNDLE / "backbone.onnx")
    found = p_of(backend.hidden(prompts, embeddings), kernel)
    assert found.shape == (64, len(CATALOG))
    np.testing.assert_allclose(found, from_torch, atol=LIMIT)
    assert found.std(axis=1).min() > 0.01, "the candidates differ"


def test_server_agrees_with_torch(client: Client, from_torch: NDArray[np.float32]) -> None:
    """In what the weights say: without the match with the candidates' tests."""
    decisions = [client.route(text) for text in INSTRUCTIONS]
    by_name = [{r.candidate: r.probability for r in decision.ranking} for decision in decisions]
    explained = [client.explain_decision(decision.decision_id) for decision in decisions]
    added = [{e.candidate: e.match for e in each.candidates} for each in explained]
    p = np.array([[p[c.id] for c in CATALOG] for p in by_name], dtype=np.float32)
    match = np.array([[m[c.id] for c in CATALOG] for m in added], dtype=np.float32)
    found = add_log_odds(p, -match)
    np.testing.assert_allclose(found, from_torch, atol=INT8_MOST)
    off = np.abs(found - from_torch)
    assert np.quantile(off, 0.99) < INT8_LIMIT
    assert off.mean() < INT8_MEAN


def test_other_candidates_do_not_change_a_probability(
    model: ModelSat,
    prompts: list[NDArray[np.int64]],
    embeddings: NDArray[np.float32],
) -> None:
    """With the shipped weights: alone, and as first and last of 101 candidates."""
    own, prompt = embeddings[:1], prompts[:1]
    others = np.tile(embeddings[1:], (8, 1))[:100]
    alone = in_torch(model, prompt, own)[0, 0]
    first = in_torch(model, prompt, np.concatenate([own, others]))[0, 0]
    last = in_torch(model, prompt, np.concatenate([others, own]))[0, -1]
    np.testing.assert_allclose([first, last], alone, atol=1e-4)
    backend = OnnxBackend(BUNDLE / "backbone.onnx")
    crowd = backend.hidden(prompt, np.concatenate([others, own]))
    single = backend.hidden(prompt, own)
    np.testing.assert_allclose(p_of(crowd)[0, -1], p_of(single)[0, 0], atol=1e-4)
