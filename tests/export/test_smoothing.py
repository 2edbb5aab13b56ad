"""Test that what export changes for 8 bits changes no function, and lowers the error."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from engine.bundle.types import Float32Array, Int64Array
from export.onnx.ops import Int8, LlamaConfig, Weights
from export.packed import TILE, unmix
from export.reference import INPUTS, hidden_row, matrix_inputs
from export.smoothing import READERS, hadamard, smooth
from tests.support.tiny_llama import VOCABULARY, WIDTH, base

BASE = base()
CONFIG = LlamaConfig.of(BASE.config)
CACHED = 3
OUTLIERS = (5, 40)


@cache
def weights() -> Weights:
    """Weights that make a few inputs of each matrix large, as trained ones do."""
    made = dict(BASE.arrays)
    for name in made:
        if "norm" in name:
            made[name] = made[name].copy()
            made[name][list(OUTLIERS)] *= 20
        if "up_proj" in name:
            made[name] = made[name].copy()
            made[name][list(OUTLIERS)] *= 20
    return made


def draw(count: int, seed: int) -> tuple[list[Int64Array], Float32Array]:
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, VOCABULARY, n) for n in random.integers(CACHED + 1, 30, count)]
    return prompts, random.standard_normal((3, WIDTH)).astype(np.float32)


@cache
def smoothed() -> Weights:
    prompts, embeddings = draw(10, 1)
    return smooth(CONFIG, weights(), prompts, CACHED, embeddings)


def test_smoothing_changes_no_function() -> None:
    (prompt, *_), embeddings = draw(1, 2)
    for embedding in (np.zeros_like(embeddings[0]), *embeddings):
        expected = hidden_row(CONFIG, weights(), prompt, embedding)
        found = hidden_row(CONFIG, smoothed(), prompt, embedding)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def rounded(values: Float32Array, levels: int) -> Float32Array:
    step = np.maximum(np.abs(values).max(axis=-1, keepdims=True), 1e-9) / levels
    return np.asarray(np.round(values / step) * step)


@pytest.mark.parametrize("name", INPUTS)
def test_smoothing_lowers_the_error_of_products(name: str) -> None:
    """On prompts that the scales were not chosen on."""
    (prompt, *_), embeddings = draw(1, 3)

    def error(of: Weights) -> float:
        total = 0.0
        for layer, inputs in enumerate(matrix_inputs(CONFIG, of, prompt, embeddings)):
            readers = [of[f"model.layers.{layer}.{reader}.weight"] for reader in READERS[name]]
            x, w = inputs[name], np.concatenate(readers)
            made = rounded(x, Int8.SPAN) @ rounded(w, Int8.LEVELS).T
            total += float(np.square(made - x @ w.T).sum() / np.square(x @ w.T).sum())
        return total

    assert error(smoothed()) < 0.5 * error(weights())


@pytest.mark.parametrize("mix", [1, 4, 16])
def test_unmix_undoes_what_the_forward_pass_mixes(mix: int) -> None:
    random = np.random.default_rng(mix)
    x, matrix = random.standard_normal((5, 512)), random.standard_normal((7, 512))
    runs = x.reshape(5, -1, mix, TILE)
    mixed = np.einsum("nbrt,rs->nbst", runs, hadamard(mix)).reshape(5, -1)
    np.testing.assert_allclose(mixed @ unmix(matrix, mix).T, x @ matrix.T, rtol=0, atol=1e-4)
