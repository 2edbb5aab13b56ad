"""Rename Phi-3 weights to Llama's, so that Phi-3 is trained, exported and served as a Llama."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import BundleError

Arrays = dict[str, NDArray[np.float32]]
PHI3_ONLY = {"architectures", "auto_map", "sliding_window", "original_max_position_embeddings",
             "rope_scaling", "embd_pdrop", "resid_pdrop", "partial_rotary_factor"}  # fmt: skip


def phi3_as_llama(config: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Convert config and arrays.

    Phi-3 is a Llama that stores query, key and value projections as one matrix, and gate and up as
    another. Its sliding window (2,047) is longer than any prompt here.

    Raises:
        BundleError: rotary positions are scaled, as in the long-context variants.
    """
    if config.get("rope_scaling"):
        raise BundleError("this Phi-3 scales its rotary positions; use a 4k-context variant.")
    heads = config["num_attention_heads"]
    keys = config.get("num_key_value_heads") or heads
    width = config["hidden_size"] // heads
    q, kv = heads * width, keys * width
    parts: dict[str, tuple[tuple[str, ...], list[int]]] = {
        "self_attn.qkv_proj": (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            [q, q + kv],
        ),
        "mlp.gate_up_proj": (("mlp.gate_proj", "mlp.up_proj"), [config["intermediate_size"]]),
    }
    split: Arrays = {}
    for name, array in arrays.items():
        joined = next((part for part in parts if part in name), None)
        if joined is None:
            split[name] = array
            continue
        names, at = parts[joined]
        pieces = np.split(array, at, axis=0)
        split |= {name.replace(joined, n): p for n, p in zip(names, pieces, strict=True)}
    kept = {k: v for k, v in config.items() if k not in PHI3_ONLY}
    return {**kept, "model_type": "llama", "head_dim": width}, split
