"""Backbone and encoder in plain NumPy, one row at a time: what the graphs are held to.

Slow on purpose: a square causal mask over [x, p, e_c] or [e_c, x, p], no sharing, no tricks.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import erf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bundle.manifest import Layout
from engine.bundle.types import Float64Array
from export.onnx.ops import Arrays, LlamaConfig


def hidden_row(
    config: LlamaConfig,
    arrays: Arrays,
    tokens: NDArray[np.int64],
    embedding: NDArray[np.float32],
    layout: Layout,
) -> Float64Array:
    """tokens (L,), embedding (D,) -> the last row of the residual stream (D,), before the norm."""
    prefix = arrays["model.embed_tokens.weight"][tokens]
    parts = [prefix, embedding[None]] if layout == "candidate_last" else [embedding[None], prefix]
    x = np.concatenate(parts).astype(np.float64)
    for layer in range(config.layers):
        x, _, _ = _layer(config, _weights(arrays, layer), x)
    return np.asarray(x[-1])


def keys_values(
    config: LlamaConfig, arrays: Arrays, tokens: NDArray[np.int64]
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Keys and values (K, L, H) of every layer for tokens (L,) that stand first."""
    x = arrays["model.embed_tokens.weight"][tokens].astype(np.float64)
    found = []
    for layer in range(config.layers):
        x, key, value = _layer(config, _weights(arrays, layer), x)
        found.append((key.astype(np.float32), value.astype(np.float32)))
    return found


def _weights(arrays: Arrays, layer: int) -> dict[str, NDArray[np.float32]]:
    return {
        name.split(f"layers.{layer}.")[1].removesuffix(".weight"): array
        for name, array in arrays.items()
        if f".layers.{layer}." in name
    }


def _layer(
    c: LlamaConfig, w: Arrays, x: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """The layer's output (rows, D), its keys and values (K, rows, H)."""
    rows = len(x)
    normed = _norm(x, w["input_layernorm"], c.eps)

    def heads(name: str, count: int) -> Float64Array:
        flat = normed @ w[f"self_attn.{name}_proj"].T
        return flat.reshape(rows, count, c.head_width).swapaxes(0, 1)

    group = c.heads // c.kv_heads
    query = _rotate(heads("q", c.heads), c.theta)
    key, value = _rotate(heads("k", c.kv_heads), c.theta), heads("v", c.kv_heads)
    scores = query @ np.repeat(key, group, axis=0).swapaxes(1, 2) / np.sqrt(c.head_width)
    scores = np.where(np.tri(rows, dtype=bool), scores, -np.inf)
    share = np.exp(scores - scores.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    mixed = (share @ np.repeat(value, group, axis=0)).swapaxes(0, 1).reshape(rows, -1)
    x = x + mixed @ w["self_attn.o_proj"].T
    normed = _norm(x, w["post_attention_layernorm"], c.eps)
    gate = normed @ w["mlp.gate_proj"].T
    inner = gate / (1 + np.exp(-gate)) * (normed @ w["mlp.up_proj"].T)
    return np.asarray(x + inner @ w["mlp.down_proj"].T), key, value


def _norm(x: Float64Array, gain: NDArray[np.float32], eps: float) -> Float64Array:
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain)


def _rotate(x: Float64Array, theta: float) -> Float64Array:
    rows, width = x.shape[-2:]
    frequency = theta ** (-np.arange(width // 2) / (width // 2))
    angle = np.arange(rows)[:, None] * np.concatenate([frequency, frequency])
    first, second = np.split(x, 2, axis=-1)
    return np.asarray(x * np.cos(angle) + np.concatenate([-second, first], axis=-1) * np.sin(angle))


def encoder_row(
    config: Mapping[str, Any], arrays: Arrays, tokens: NDArray[np.int64]
) -> Float64Array:
    """tokens (L,) with special ones -> psi (E,), mean-pooled and normalised (BERT family)."""

    def linear(x: Float64Array, name: str) -> Float64Array:
        return np.asarray(x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"])

    def norm(x: Float64Array, name: str) -> Float64Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        size = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + config["layer_norm_eps"])
        return np.asarray(centred / size * arrays[f"{name}.weight"] + arrays[f"{name}.bias"])

    words, places, segments = (
        arrays[f"embeddings.{kind}_embeddings.weight"]
        for kind in ("word", "position", "token_type")
    )
    x = (words[tokens] + places[: len(tokens)] + segments[0]).astype(np.float64)
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
        share = np.exp(scores - scores.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        mixed = (share @ value).swapaxes(0, 1).reshape(len(tokens), -1)
        attended = x + linear(mixed, f"{at}.attention.output.dense")
        x = norm(attended, f"{at}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{at}.intermediate.dense"))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    pooled = x.mean(axis=0)
    return np.asarray(pooled / np.linalg.norm(pooled))
