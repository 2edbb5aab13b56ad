"""Compute backbone and encoder in plain NumPy, one sequence at a time, as the reference for graphs.

Slow on purpose: a square causal mask over [inquiry prompt, instruction, candidate], in float64,
without sharing or caching.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import erf
from typing import Any

import numpy as np

from engine.bundle.types import Float32Array, Float64Array, Int64Array
from export.onnx.ops import LlamaConfig, Weights

# What matrices of a layer read: those of query, key and value; of gate and up; of down.
INPUTS = ("attention", "mlp", "inner")


def hidden_row(
    config: LlamaConfig, weights: Weights, tokens: Int64Array, embedding: Float32Array
) -> Float64Array:
    """Compute the residual stream at the candidate's position, before the final norm.

    Args:
        config: sizes of the backbone.
        weights: under their Hugging Face names.
        tokens: (L,) ids of the whole prompt.
        embedding: (D,) of the candidate.

    Returns:
        (D,) float64.
    """
    prefix = weights["model.embed_tokens.weight"][tokens]
    x = np.concatenate([prefix, embedding[None]]).astype(np.float64)
    for layer in range(config.layers):
        x, _, _ = _layer(config, _weights(weights, layer), x)
    return np.asarray(x[-1])


def keys_values(
    config: LlamaConfig, weights: Weights, tokens: Int64Array
) -> list[tuple[Float32Array, Float32Array]]:
    """Compute the keys and values (K, L, H) of every layer for a prompt prefix, tokens (L,)."""
    x = weights["model.embed_tokens.weight"][tokens].astype(np.float64)
    layers = []
    for layer in range(config.layers):
        x, key, value = _layer(config, _weights(weights, layer), x)
        layers.append((key.astype(np.float32), value.astype(np.float32)))
    return layers


def matrix_inputs(
    config: LlamaConfig, weights: Weights, tokens: Int64Array, embeddings: Float32Array
) -> list[dict[str, Float32Array]]:
    """Compute what each layer's matrices read for a whole prompt and M candidates (M, D).

    Returns for every layer the rows (L + M, K) by INPUTS; the last M are the candidates'.
    """
    x = np.concatenate([weights["model.embed_tokens.weight"][tokens], embeddings])
    x, layers = x.astype(np.float64), []
    for layer in range(config.layers):
        inputs: dict[str, Float32Array] = {}
        x, _, _ = _layer(config, _weights(weights, layer), x, len(embeddings), inputs)
        layers.append(inputs)
    return layers


def _weights(weights: Weights, layer: int) -> dict[str, Float32Array]:
    return {
        name.split(f"layers.{layer}.")[1].removesuffix(".weight"): array
        for name, array in weights.items()
        if f".layers.{layer}." in name
    }


def _layer(
    config: LlamaConfig,
    w: dict[str, Float32Array],
    x: Float64Array,
    candidates: int = 1,
    inputs: dict[str, Float32Array] | None = None,
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return the output (L, D) of a layer, and its keys and values (K, L, H).

    candidates: rows at the end that have one position and do not see each other. inputs: filled
    with what the matrices read.
    """
    rows = len(x)
    first = rows - candidates
    positions, seen = np.minimum(np.arange(rows), first), np.tri(rows, dtype=bool)
    seen[first:, first:] = np.eye(candidates, dtype=bool)
    normed = _norm(x, w["input_layernorm"], config.eps)

    def heads(name: str, count: int) -> Float64Array:
        flat = normed @ w[f"self_attn.{name}_proj"].T
        return flat.reshape(rows, count, config.head_width).swapaxes(0, 1)

    group = config.heads // config.kv_heads
    query = _rotate(heads("q", config.heads), positions, config.theta)
    key = _rotate(heads("k", config.kv_heads), positions, config.theta)
    value = heads("v", config.kv_heads)
    scores = query @ np.repeat(key, group, axis=0).swapaxes(1, 2) / np.sqrt(config.head_width)
    scores = np.where(seen, scores, -np.inf)
    attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attention /= attention.sum(axis=-1, keepdims=True)
    mixed = (attention @ np.repeat(value, group, axis=0)).swapaxes(0, 1).reshape(rows, -1)
    x = x + mixed @ w["self_attn.o_proj"].T
    normed_mlp = _norm(x, w["post_attention_layernorm"], config.eps)
    gate = normed_mlp @ w["mlp.gate_proj"].T
    inner = gate / (1 + np.exp(-gate)) * (normed_mlp @ w["mlp.up_proj"].T)
    if inputs is not None:
        for name, read in zip(INPUTS, (normed, normed_mlp, inner), strict=True):
            inputs[name] = read.astype(np.float32)
    return np.asarray(x + inner @ w["mlp.down_proj"].T), key, value


def _norm(x: Float64Array, gain: Float32Array, eps: float) -> Float64Array:
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain)


def _rotate(x: Float64Array, positions: Int64Array, theta: float) -> Float64Array:
    width = x.shape[-1]
    frequency = theta ** (-np.arange(width // 2) / (width // 2))
    angle = positions[:, None] * np.concatenate([frequency, frequency])
    first, second = np.split(x, 2, axis=-1)
    return np.asarray(x * np.cos(angle) + np.concatenate([-second, first], axis=-1) * np.sin(angle))


def encoder_row(config: Mapping[str, Any], weights: Weights, tokens: Int64Array) -> Float64Array:
    """Embed tokens (L,), special tokens included: (E,), mean-pooled, of length 1 (BERT family)."""

    def linear(x: Float64Array, name: str) -> Float64Array:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(x: Float64Array, name: str) -> Float64Array:
        centered = x - x.mean(axis=-1, keepdims=True)
        size = np.sqrt((centered**2).mean(axis=-1, keepdims=True) + config["layer_norm_eps"])
        return np.asarray(centered / size * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    words, positions, segments = (
        weights[f"embeddings.{kind}_embeddings.weight"]
        for kind in ("word", "position", "token_type")
    )
    x = (words[tokens] + positions[: len(tokens)] + segments[0]).astype(np.float64)
    x = norm(x, "embeddings.LayerNorm")
    heads = config["num_attention_heads"]
    gelu = np.vectorize(lambda v: 0.5 * v * (1 + erf(v / np.sqrt(2))))
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            linear(x, f"{at}.attention.self.{part}").reshape(len(tokens), heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
        attention = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        mixed = (attention @ value).swapaxes(0, 1).reshape(len(tokens), -1)
        attended = x + linear(mixed, f"{at}.attention.output.dense")
        x = norm(attended, f"{at}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    pooled = x.mean(axis=0)
    return np.asarray(pooled / np.linalg.norm(pooled))
