"""Write the backbone for the fused forward pass: matrices packed as its kernels read them.

cpp_ext/forward/weights.h describes the file. Sizes are padded with zeros here, so that the kernels
know no remainders.

Shapes: D width, N outputs and K inputs of a matrix, H head width, F inner units, P tokens of the
inquiry prompt.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from engine.bundle.types import Float32Array, Int64Array
from export.onnx.llama import CachedPrompt
from export.onnx.ops import Int8, LlamaConfig, Weights
from export.smoothing import hadamard

Number = Literal["int8", "bf16"]
MAGIC, VERSION = b"MSATFWD\0", 2
LEVELS = 127  # of int8 weights on each side of 0; the kernels add products in 32 bits
PANEL, TILE, ALIGNMENT = 32, 16, 64
NORM_MIX, INNER_MIXES = 4, (4, 16)  # runs of TILE inputs of a matrix that are mixed in int8
NUMBERS: dict[Number, int] = {"int8": 0, "bf16": 1}


@dataclass(frozen=True)
class PackedSizes:
    """Sizes of the backbone, padded. width: D. head: H. inner: F. mixed: of attention's output."""

    width: int
    half: int
    head: int
    inner: int
    mixed: int

    @staticmethod
    def of(config: LlamaConfig, inner: int) -> PackedSizes:
        """Pad D and F to whole blocks, and half a head to 16 columns of a panel."""
        half = _padded(config.head_width // 2, TILE)
        mixed = _padded(config.heads * 2 * half, 64)
        return PackedSizes(_padded(config.width, 64), half, 2 * half, _padded(inner, 64), mixed)


def write_packed(
    config: LlamaConfig,
    weights: Weights,
    path: Path,
    *,
    number: Number,
    prompt: Int64Array,
    cached: CachedPrompt,
    positions: int,
) -> None:
    """Write the backbone's weights to `path`.

    Args:
        config: sizes of the backbone.
        weights: the backbone's weights under their Hugging Face names.
        path: the file to write.
        number: of the matrices and the token table.
        prompt: (P,) tokens of the inquiry prompt.
        cached: its keys and values, from export.reference.keys_values.
        positions: more than the tokens of the longest prompt.
    """
    inner = weights["model.layers.0.mlp.gate_proj.weight"].shape[0]
    sizes = PackedSizes.of(config, inner)
    table = weights["model.embed_tokens.weight"]
    mix = 1
    if number == "int8":
        mix = max(m for m in INNER_MIXES if sizes.inner % (m * TILE) == 0)
    with path.open("wb") as file:
        file.write(
            struct.pack(
                "<8s2I10i1fi", MAGIC, VERSION, NUMBERS[number], config.width, sizes.width,
                config.layers, config.heads, config.kv_heads, sizes.head, sizes.inner, len(prompt),
                positions, len(table), config.eps, mix,
            )
        )  # fmt: skip
        _write_table(file, _pad(table, len(table), sizes.width), number)
        _write(file, prompt.astype("<i4"))
        half = config.head_width // 2
        frequency = config.theta ** (-np.arange(half, dtype=np.float64) / half)
        angle = np.arange(positions)[:, None] * frequency
        for values in (np.cos(angle), np.sin(angle)):
            _write(file, _pad(values, positions, sizes.half).astype("<f4"))
        for layer in range(config.layers):
            _write_layer(file, config, weights, sizes, layer, number, mix)
            for heads in (
                cached[layer] if cached else (np.zeros((config.kv_heads, 0, 2 * half)),) * 2
            ):
                _write(file, _spread(heads, half, sizes.half).astype("<f4"))


def _write_layer(
    file: BinaryIO, config: LlamaConfig, weights: Weights, sizes: PackedSizes, layer: int,
    number: Number, mix: int,
) -> None:  # fmt: skip
    def of(name: str) -> Float32Array:
        return weights[f"model.layers.{layer}.{name}.weight"]

    def heads(name: str) -> NDArray[Any]:
        """(heads, H, padded D), each half of a head padded."""
        matrix = of(f"self_attn.{name}_proj").reshape(-1, config.head_width, config.width)
        rows = _spread(matrix.swapaxes(1, 2), config.head_width // 2, sizes.half).swapaxes(1, 2)
        return np.pad(rows, ((0, 0), (0, 0), (0, sizes.width - config.width)))

    def gain(name: str) -> None:
        _write(file, _pad(of(name)[None], 1, sizes.width)[0].astype("<f4"))

    gain("input_layernorm")
    scaled = heads("q") * np.float32(config.head_width**-0.5)
    rotated = np.concatenate([scaled, heads("k")])
    # Panels of 16 columns of a head's first half and 16 of its second, which rotate together.
    pairs = rotated.reshape(len(rotated), 2, -1, TILE, sizes.width).swapaxes(1, 2)
    values = heads("v")
    norm_mix = 1 if mix == 1 else NORM_MIX
    qkv = np.concatenate([a.reshape(-1, sizes.width) for a in (pairs, values)])
    _write_matrix(file, unmix(qkv, norm_mix), number)
    by_head = of("self_attn.o_proj").reshape(config.width, config.heads, config.head_width)
    out = _spread(by_head, config.head_width // 2, sizes.half).reshape(config.width, -1)
    _write_matrix(file, _pad(out, sizes.width, sizes.mixed), number)
    gain("post_attention_layernorm")
    gate, up = (
        _pad(of(f"mlp.{part}_proj"), sizes.inner, sizes.width).reshape(-1, TILE, sizes.width)
        for part in ("gate", "up")
    )
    gate_up = np.stack([gate, up], axis=1).reshape(-1, sizes.width)
    _write_matrix(file, unmix(gate_up, norm_mix), number)
    down = _pad(of("mlp.down_proj"), sizes.width, sizes.inner)
    _write_matrix(file, unmix(down, mix), number)


def unmix(matrix: NDArray[Any], mix: int) -> NDArray[Any]:
    """Multiply a matrix (N, K) by the inverse of mix_row of cpp_ext/forward/norm.h, which mixes
    `mix` runs of TILE inputs of it."""
    runs = matrix.reshape(len(matrix), -1, mix, TILE)
    mixed = np.einsum("nbrt,rs->nbst", runs, hadamard(mix) / mix)
    return np.asarray(mixed, dtype=np.float32).reshape(matrix.shape)


def _write_table(file: BinaryIO, table: Float32Array, number: Number) -> None:
    if number == "bf16":
        _write(file, to_bf16(table))
        return
    scale = np.maximum(np.abs(table).max(axis=1), 1e-9) / 127
    _write(file, np.round(table / scale[:, None]).astype(np.int8))
    _write(file, scale.astype("<f4"))


def _write_matrix(file: BinaryIO, matrix: NDArray[Any], number: Number) -> None:
    """Write a matrix (N, K) in panels; int8 with scales and 128 times the sum of each column."""
    if number == "bf16":
        _write(file, _panels(to_bf16(matrix), 2))
        return
    scale = np.maximum(np.abs(matrix).max(axis=1), 1e-9) / LEVELS
    rounded = np.round(matrix / scale[:, None]).astype(np.int8)
    _write(file, _panels(rounded, 4))
    _write(file, scale.astype("<f4"))
    _write(file, (Int8.ZERO * rounded.sum(axis=1, dtype=np.int64)).astype("<i4"))


def _panels(matrix: NDArray[Any], group: int) -> NDArray[Any]:
    """(N, K) -> (N / 32, blocks, 2 tiles, 16 groups of inputs, 16 columns, inputs of a group)."""
    columns, inputs = matrix.shape
    blocks = inputs // (16 * group)
    split = matrix.reshape(columns // PANEL, 2, TILE, blocks, 16, group)
    return split.transpose(0, 3, 1, 4, 2, 5)


def to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; the bits."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded: NDArray[np.uint16] = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return rounded


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pad(matrix: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    return np.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def _spread(heads: Sequence[Any] | NDArray[Any], half: int, padded: int) -> NDArray[Any]:
    """Pad both halves of the last axis: (..., 2 * half) -> (..., 2 * padded)."""
    array = np.asarray(heads)
    parts = array.reshape(*array.shape[:-1], 2, half)
    wide = np.pad(parts, [(0, 0)] * (parts.ndim - 1) + [(0, padded - half)])
    return wide.reshape(*array.shape[:-1], 2 * padded)


def _write(file: BinaryIO, array: NDArray[Any]) -> None:
    """Append a section at the next multiple of ALIGNMENT."""
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    file.write(np.ascontiguousarray(array).tobytes())
