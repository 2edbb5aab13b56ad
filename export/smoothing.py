"""Change a backbone so that it loses less in 8 bits and computes the same function.

A row of activations is divided by its largest magnitude (docs/adr/0007), so that a few large inputs
take the precision of all others.

Each input j of a matrix is divided by a scale s_j, and the matrix's column j is multiplied by it
(SmoothQuant, Xiao et al., 2023). The division costs nothing: it goes into what makes the input, a
norm's gain or the rows of the up matrix. The scales minimize the expected error of the product.
With inputs x and matrix W, whose steps are max_j |x_j / s_j| / 127 and max_j |W_ij s_j| / LEVELS,
that is, up to a factor,

    E[max_j (x_j / s_j)^2] / 127^2 x sum_ij (W_ij s_j)^2
    + sum_i max_j (W_ij s_j)^2 / LEVELS^2 x sum_j E[x_j^2] / s_j^2

What the output matrix reads is rotated instead, each head by itself, which goes into the value
matrix (QuaRot, Ashkboos et al., 2024).

Shapes: R rows of activations, K inputs and N outputs of a matrix, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float32Array, Int64Array
from export.onnx.ops import Int8, LlamaConfig, Weights
from export.reference import INPUTS, matrix_inputs

STEPS = 120  # of the descent; 300 lower the error by less than 1 % more
TOKENS = 20  # rows of a prompt that are kept
# The matrices that read each of INPUTS, and the gain or matrix that makes it.
READERS = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp": ("mlp.gate_proj", "mlp.up_proj"),
    "inner": ("mlp.down_proj",),
}
MAKERS = {
    "attention": "input_layernorm",
    "mlp": "post_attention_layernorm",
    "inner": "mlp.up_proj",
}


def smooth(
    config: LlamaConfig,
    weights: Weights,
    prompts: Sequence[Int64Array],
    cached: int,
    embeddings: Float32Array,
) -> dict[str, Float32Array]:
    """Return weights that lose less in 8 bits.

    Args:
        config: sizes of the backbone.
        weights: under their Hugging Face names.
        prompts: tokens (L,) of whole prompts on which activations are observed.
        cached: tokens of the inquiry prompt, which begins each and whose rows are never rounded.
        embeddings: (M, D) of candidates that are scored for each prompt.
    """
    rows = _observe(config, weights, prompts, cached, embeddings)
    smoothed = dict(weights)
    for layer, inputs in enumerate(rows):
        prefix = f"model.layers.{layer}."
        _rotate_values(smoothed, prefix, config.head_width)
        # First what changes the rows of a matrix that reads another input.
        for name in ("inner", "attention", "mlp"):
            readers = [f"{prefix}{reader}.weight" for reader in READERS[name]]
            matrix = np.concatenate([smoothed[reader] for reader in readers])
            scales = choose_scales(inputs[name], matrix)
            for reader in readers:
                smoothed[reader] = smoothed[reader] * scales
            maker = f"{prefix}{MAKERS[name]}.weight"
            made = smoothed[maker]
            smoothed[maker] = made / (scales if made.ndim == 1 else scales[:, None])
    return smoothed


def choose_scales(inputs: Float32Array, matrix: Float32Array) -> Float32Array:
    """Choose the scales (K,) of what a matrix reads by descent on the module's formula.

    inputs: (R, K). matrix: (N, K).
    """
    x, w = np.abs(inputs), np.abs(matrix)
    x = x[x.max(axis=1) > 0]
    x_square, w_square = np.square(x).mean(axis=0), np.square(w).sum(axis=0)
    start = [np.log(np.maximum(a.max(axis=0, initial=0), 1e-4)) for a in (x, w)]
    log_scales = (start[0] - start[1]) / 2
    best, chosen = np.inf, log_scales
    for step in range(STEPS):
        scales = np.exp(log_scales)
        x_largest, x_share = _largest(x / scales)
        w_largest, w_share = _largest(w * scales)
        x_part, w_part = x_square / scales**2, w_square * scales**2
        of_inputs = x_largest / len(x) * w_part.sum() / Int8.SPAN**2
        of_matrix = w_largest * x_part.sum() / Int8.LEVELS**2
        if (error := of_inputs + of_matrix) < best:
            best, chosen = error, log_scales
        # The derivative by log s_j, over the curvature of the two sums.
        x_part, w_part = x_part / x_part.sum(), w_part / w_part.sum()
        slope = of_inputs * (w_part - x_share) + of_matrix * (w_share - x_part)
        rate = 0.3 * min(1, 30 / (step + 1))
        log_scales = log_scales - rate * slope / error / (w_part + x_part + 1e-4)
    # Scales of one matrix may have a common factor; without it gains stay of their size.
    return np.asarray(np.exp(chosen - chosen.mean()), dtype=np.float32)


def hadamard(size: int) -> NDArray[Any]:
    """Return the Walsh-Hadamard matrix of this size, a power of 2, in Sylvester's order."""
    matrix: NDArray[Any] = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return matrix


def _largest(values: NDArray[Any]) -> tuple[float, NDArray[Any]]:
    """Return the sum of the squares of each row's largest value, and each column's share of it."""
    places = values.argmax(axis=1)
    squares = np.square(values[np.arange(len(values)), places], dtype=np.float64)
    total = squares.sum()
    return float(total), np.bincount(places, squares, values.shape[1]) / total


def _rotate_values(weights: dict[str, Float32Array], prefix: str, head_width: int) -> None:
    """Rotate each head of values, and the output matrix back."""
    size = head_width & -head_width  # the largest power of 2 that divides it
    rotation = (hadamard(size) / np.sqrt(size)).astype(np.float32)
    value, out = (f"{prefix}self_attn.{name}_proj.weight" for name in "vo")
    by_head = weights[value].reshape(-1, size, weights[value].shape[1])
    weights[value] = (rotation @ by_head).reshape(weights[value].shape)
    rows = weights[out].reshape(len(weights[out]), -1, size)
    weights[out] = (rows @ rotation).reshape(weights[out].shape)


def _observe(
    config: LlamaConfig,
    weights: Weights,
    prompts: Sequence[Int64Array],
    cached: int,
    embeddings: Float32Array,
) -> list[dict[str, Float32Array]]:
    """Collect rows of activations by INPUTS for every layer: TOKENS of each prompt and those of its
    candidates, the null candidate among them."""
    candidates = np.concatenate([np.zeros_like(embeddings[:1]), embeddings])
    collected: list[dict[str, list[Float32Array]]] = [
        {name: [] for name in INPUTS} for _ in range(config.layers)
    ]
    for tokens in prompts:
        length = len(tokens)
        kept = np.unique(np.linspace(cached, length - 1, TOKENS).astype(int))
        own = np.arange(length, length + len(candidates))
        for layer, inputs in enumerate(matrix_inputs(config, weights, tokens, candidates)):
            for name, rows in inputs.items():
                # The last layer computes nothing but keys and values for tokens.
                last = layer == config.layers - 1 and name != "attention"
                collected[layer][name].append(rows[own if last else np.concatenate([kept, own])])
    return [{name: np.concatenate(rows) for name, rows in each.items()} for each in collected]
