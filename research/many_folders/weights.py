"""Weights on the device machine: base matrices from their stored bytes, the shipped adapter, models
of runs, and what a run changed as a low-rank adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from research.many_folders.model import PARTS, TUNED, FusedModel
from research.many_folders.run import Start

Arrays = dict[str, NDArray[np.float32]]
RAW = "raw/"
BLOCK = 32
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONFIG = {
    "rms_norm_eps": 1e-5,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rope_theta": 100_000.0,
}


def dequantised(data: NDArray[Any]) -> NDArray[np.float32]:
    """GGUF blocks of 32: Q4_1 (scale, least, nibbles; 20 bytes), Q8_0 (scale, bytes; 34 bytes), or
    float32 as it is. Distinguished by the length of a row, which is 576 or 1,536 values."""
    if data.dtype == np.float32:
        return data
    rows, width = data.shape
    size = next(s for s in (20, 34) if (width // s) * BLOCK in (576, 1536) and width % s == 0)
    blocks = data.reshape(-1, size)
    scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    if size == 34:
        values = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32) * scale
    else:
        least = np.ascontiguousarray(blocks[:, 2:4]).view(np.float16).astype(np.float32)
        nibbles = blocks[:, 4:]
        values = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.float32)
        values = values * scale + least
    return values.reshape(rows, -1)


def unpermuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """training.weights.gguf: undo the interleaving of the rotary halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


@dataclass(frozen=True)
class Weights:
    """base: Hugging Face names -> arrays. shipped: the same with the shipped change."""

    base: Arrays
    shipped: Arrays
    config: Mapping[str, Any]
    connector: tuple[NDArray[np.float32], NDArray[np.float32]]
    start: Start
    yes: int
    no: int


def load_weights(path: Path, device: torch.device) -> Weights:
    """Read weights.npz. The connector is for standardised representations."""
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    base: Arrays = {}
    heads = {"attn_q": 9, "attn_k": 3}
    for name, data in found.items():
        if not name.startswith(RAW):
            continue
        parts = name.removeprefix(RAW).split(".")
        array = dequantised(data)
        if parts[0] == "blk":
            if parts[2] in heads:
                array = unpermuted(array, heads[parts[2]])
            base[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = array
        elif parts[0] == "token_embd":
            base["model.embed_tokens.weight"] = array
        else:
            base["model.norm.weight"] = array
    shipped = dict(base)
    for name in (n for n in found if ".lora_A." in n):
        target = name.removeprefix("lora/base_model.model.").replace(".lora_A", "")
        low, high = (
            found[n].astype(np.float32) for n in (name, name.replace(".lora_A.", ".lora_B."))
        )
        shipped[target] = base[target] + np.float32(found["lora_scale"]) * (high @ low)
    shift, scale = found["shift"], found["scale"]
    weight, bias = found["connector_weight"], found["connector_bias"]
    start = Start(
        torch.from_numpy(shift).to(device),
        torch.from_numpy(scale).to(device),
        (float(found["calibration"][0]), float(found["calibration"][1])),
        torch.from_numpy(found["center"]).to(device),
    )
    config = {**CONFIG, "num_hidden_layers": int(found["layers"])}
    yes, no = (int(i) for i in found["yes_no"])
    connector = (weight * scale, bias + weight @ shift)
    return Weights(base, shipped, config, connector, start, yes, no)


def model_of(weights: Weights, begin: str, device: torch.device) -> FusedModel:
    """A model with the shipped weights, or with the base model's and a connector of their size."""
    arrays = weights.base if begin == "base" else weights.shipped
    model = FusedModel(arrays, weights.config, weights.connector, weights.yes, weights.no)
    if begin == "base":
        size = float(model.embeddings.pow(2).mean().sqrt())
        torch.nn.init.normal_(
            model.connector.weight, std=size / (2 * model.connector.in_features) ** 0.5
        )
        torch.nn.init.zeros_(model.connector.bias)
    model.kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    model.to(device)
    model.match.center = weights.start.center
    return model


def tuned_state(model: FusedModel) -> dict[str, torch.Tensor]:
    """A copy of what training changes."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def mean_state(
    states: list[dict[str, torch.Tensor]], shares: list[float]
) -> dict[str, torch.Tensor]:
    """The weighted mean of some models; the match is the first one's, to be fitted again."""
    found = {n: sum(s[n] * w for s, w in zip(states, shares, strict=True)) for n in states[0]}
    return found | {n: states[0][n] for n in found if n.startswith("match")}


def best_of_rank(change: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, rank) and (rank, in) in half precision, whose product is nearest to `change` (out, in).
    By the smaller Gram matrix in double precision: a device finds its vectors ten times faster than
    singular ones."""
    wide = change.double()
    if wide.shape[0] > wide.shape[1]:
        low, high = best_of_rank(change.T, rank)
        return high.T.contiguous(), low.T.contiguous()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    u = vectors.flip(1)[:, :rank]
    root = values.flip(0)[:rank].clamp(min=1e-24).sqrt().sqrt()
    return (u * root).half(), ((u.T @ wide) / root[:, None]).half()


@torch.no_grad()
def cut(model: FusedModel, weights: Weights, rank: int) -> dict[str, NDArray[np.float16]]:
    """training.model.lora.cut: replace each tuned matrix by the base's plus the best change of this
    rank; returns the change by peft's names."""
    factors: dict[str, NDArray[np.float16]] = {}
    for name in TUNED:
        for i, parameter in enumerate(getattr(model, name)):
            done = []
            at = 0
            for part in PARTS[name]:
                module = f"model.layers.{i}.{part}"
                before = torch.from_numpy(weights.base[f"{module}.weight"]).to(parameter.device)
                after = parameter[at : at + len(before)]
                at += len(before)
                high, low = best_of_rank(after - before, rank)
                factors[f"base_model.model.{module}.lora_A.weight"] = low.cpu().numpy()
                factors[f"base_model.model.{module}.lora_B.weight"] = high.cpu().numpy()
                done.append(before + high.float() @ low.float())
            parameter.copy_(torch.cat(done))
    return factors
