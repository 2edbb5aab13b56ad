"""Test the instruction's embedding, the null candidate's row, on the shipped bundle."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer

from cpp_ext import score
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.bundle.prompt import render
from engine.bundle.types import Float32Array
from engine.inference.backend import ScoringHead, log_odds, round_embeddings
from engine.inference.fused import FusedBackend
from engine.inference.onnx import OnnxBackend
from tests.conftest import INSTRUCTIONS
from tests.support.backends import open_format
from tools.processes import BUNDLE

GRAPHS = ["backbone.int8.onnx", "backbone.onnx", "backbone.int8.fused"]
MANIFEST, ARRAYS = read_manifest(BUNDLE, "bundle"), load_arrays(BUNDLE)
HEAD = ScoringHead(ARRAYS.readout, MANIFEST.norm_eps, MANIFEST.calibration)
TOKENIZER = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
PROMPTS = [render(text, TOKENIZER).tokens for text in ("", *INSTRUCTIONS[:6])]
TABLE = np.random.default_rng(7).normal(0, 0.05, (40, MANIFEST.width)).astype(np.float32)
NULL = np.zeros((1, MANIFEST.width), dtype=np.float32)


@pytest.fixture(scope="module", params=GRAPHS)
def backend(request: pytest.FixtureRequest) -> OnnxBackend | FusedBackend:
    return open_format(request.param, 1)


@pytest.mark.parametrize("rows", [[], [3], [5, 0, 11], list(range(40))])
def test_the_null_candidate_changes_no_probability_and_has_its_own_row(
    backend: OnnxBackend | FusedBackend, rows: list[int]
) -> None:
    """As before it was there, and as a forward pass of its own gives it."""
    calibration = MANIFEST.calibration
    for tokens in PROMPTS:
        found = backend.probabilities([tokens], TABLE, np.array(rows, dtype=np.int64), HEAD)
        assert found.p.shape == (1, len(rows))
        if rows:
            without = score(
                backend.hidden([tokens], TABLE[rows]),
                HEAD.weight,
                eps=HEAD.eps,
                scale=calibration.scale,
                offset=calibration.offset,
            )
            np.testing.assert_allclose(found.p, without, rtol=0, atol=2e-6)
        alone = backend.hidden([tokens], NULL)[:, 0]
        assert relative_error(found.embeddings, alone) < 1e-3
        np.testing.assert_array_equal(found.embeddings, round_embeddings(found.embeddings))


def test_each_request_of_a_batch_gets_the_embedding_of_its_own_prompt(
    backend: OnnxBackend | FusedBackend,
) -> None:
    """Centered, an embedding is far nearer to itself than to that of another instruction, although
    an int8 product depends on its batch (docs/adr/0007)."""
    together = backend.probabilities(PROMPTS, TABLE, np.arange(5), HEAD).embeddings
    alone = np.concatenate(
        [backend.probabilities([t], TABLE, np.arange(5), HEAD).embeddings for t in PROMPTS]
    )
    assert relative_error(together, alone) < 0.05
    cosines = unit(together) @ unit(alone).T
    assert (cosines.argmax(axis=1) == np.arange(len(PROMPTS))).all()


def test_log_odds_invert_the_logistic_function_within_bounds() -> None:
    z = np.array([-5.0, -0.3, 0.0, 2.0, 8.0], dtype=np.float32)
    np.testing.assert_allclose(log_odds(1 / (1 + np.exp(-z))), z, atol=1e-2)
    extreme = log_odds(np.array([0.0, 1.0, np.nan], dtype=np.float32))
    assert np.isfinite(extreme[:2]).all()
    assert extreme[0] < -9 < 9 < extreme[1]
    assert np.isnan(extreme[2])


def unit(embeddings: Float32Array) -> Float32Array:
    centered = embeddings - ARRAYS.instruction_space.mean
    return centered / np.linalg.norm(centered, axis=1, keepdims=True)


def relative_error(found: Float32Array, expected: Float32Array) -> float:
    lengths = np.linalg.norm(expected, axis=1)
    return float((np.linalg.norm(found - expected, axis=1) / lengths).max())
