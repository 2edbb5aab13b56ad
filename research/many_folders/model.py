"""Compute the forward pass in as few operations as eager torch allows.

This is the function of training.model.model.ModelSat (a test compares them) with one more row, the
null candidate, whose embedding is zero. Matrices that read the same input are stored as one.

Shapes: B instructions, L prompt tokens, M candidates, S = L + 1 + M rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from research.many_folders.match import Match

TUNED = ("qkv", "o", "up", "down")
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class FusedModel(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Tuned: the matrices of the layers and the connector. arrays: Hugging Face names -> (merged)
    weights, token embeddings of the used ids alone; yes, no: rows of these."""

    def __init__(
        self,
        arrays: Mapping[str, Any],
        config: Mapping[str, Any],
        connector: tuple[Any, Any],
        yes: int,
        no: int,
    ) -> None:
        super().__init__()
        self.kind = torch.float32  # of the products; norms and the residual stream are float32
        self.layers, self.eps = int(config["num_hidden_layers"]), float(config["rms_norm_eps"])
        self.heads = int(config["num_attention_heads"])
        self.groups, self.size = int(config["num_key_value_heads"]), int(config["head_dim"])
        for name in TUNED:
            parts = [joined(arrays, i, name) for i in range(self.layers)]
            setattr(self, name, nn.ParameterList([nn.Parameter(p) for p in parts]))
        gains = [
            [arrays[f"model.layers.{i}.{n}.weight"] for i in range(self.layers)]
            for n in ("input_layernorm", "post_attention_layernorm")
        ]
        self.register_buffer("before", torch.stack([torch.as_tensor(g) for g in gains[0]]))
        self.register_buffer("after", torch.stack([torch.as_tensor(g) for g in gains[1]]))
        embeddings = torch.as_tensor(arrays["model.embed_tokens.weight"])
        gain = torch.as_tensor(arrays["model.norm.weight"])
        self.register_buffer("readout", gain * (embeddings[yes] - embeddings[no]))
        self.register_buffer("embeddings", embeddings)
        self.connector = nn.Linear(connector[0].shape[1], connector[0].shape[0])
        with torch.no_grad():
            self.connector.weight.copy_(torch.as_tensor(connector[0]))
            self.connector.bias.copy_(torch.as_tensor(connector[1]))
        self.match = Match(len(gain))
        cos, sin = rotations(512, self.size, float(config["rope_theta"]))
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, tokens: Tensor, lengths: Tensor, c: Tensor) -> Tensor:
        """tokens (B, L), lengths (B,), c (M, C) -> (B, 1 + M, D) before the final norm, the null
        candidate's row first."""
        batch, length = tokens.shape
        e = self.connector(c)
        e = torch.cat([torch.zeros_like(e[:1]), e])
        tail = len(e)
        h = torch.cat([self.embeddings[tokens].float(), e.expand(batch, -1, -1)], dim=1)
        steps = torch.arange(length, device=tokens.device)
        positions = torch.cat([steps.expand(batch, -1), lengths[:, None].expand(-1, tail)], dim=1)
        turns = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        mask = tree_mask(lengths, length, tail, self.kind)
        for i in range(self.layers):
            h = self._layer(i, h, mask, turns, tail if i == self.layers - 1 else h.shape[1])
        return h

    def _layer(
        self, i: int, h: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor], tail: int
    ) -> Tensor:
        kind = mask.dtype
        x = rms_norm(h, h.shape[-1:], self.before[i], self.eps).to(kind)
        qkv = linear(x, self.qkv[i].to(kind)).unflatten(-1, (-1, self.size))
        qk, v = qkv[:, :, : self.heads + self.groups], qkv[:, :, self.heads + self.groups :]
        qk = turned(qk, *turns)
        q = qk[:, -tail:, : self.heads].transpose(1, 2)
        each = self.heads // self.groups
        k = qk[:, :, self.heads :].repeat_interleave(each, dim=2).transpose(1, 2)
        v = v.repeat_interleave(each, dim=2).transpose(1, 2)
        rows = mask[:, :, -tail:].expand(-1, self.heads, -1, -1)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=rows)
        h = h[:, -tail:] + linear(mixed.transpose(1, 2).flatten(2), self.o[i].to(kind))
        x = rms_norm(h, h.shape[-1:], self.after[i], self.eps).to(kind)
        gate, up = linear(x, self.up[i].to(kind)).chunk(2, dim=-1)
        return h + linear(silu(gate) * up, self.down[i].to(kind))

    def margins(self, h: Tensor) -> Tensor:
        """(B, 1 + M) logit('Yes') - logit('No') of rows."""
        return rms_norm(h, h.shape[-1:], None, self.eps) @ self.readout


def joined(arrays: Mapping[str, Any], layer: int, name: str) -> Tensor:
    """One of TUNED of a layer, in float32."""
    parts = [arrays[f"model.layers.{layer}.{part}.weight"] for part in PARTS[name]]
    return torch.cat([torch.as_tensor(p).float() for p in parts])


def rotations(length: int, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos, sin (length, size) of the rotary embedding."""
    rates = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(length)[:, None] * rates
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().float(), angles.sin().float()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, S, heads, size), in x's type."""
    low, high = x.chunk(2, dim=-1)
    half = torch.cat([-high, low], dim=-1)
    return x * cos.to(x.dtype) + half * sin.to(x.dtype)


def tree_mask(lengths: Tensor, length: int, tail: int, kind: torch.dtype) -> Tensor:
    """(B, 1, S, S) additive: prefix rows are causal, tail rows see the prefix and themselves."""
    total = length + tail
    at = torch.arange(total, device=lengths.device)
    causal = (at[:, None] >= at) & (at < length)
    known = (at < lengths[:, None])[:, None]  # (B, 1, S)
    allowed = causal & ((at < length)[:, None] | known)
    allowed = allowed | torch.eye(total, dtype=torch.bool, device=lengths.device)
    mask = torch.zeros(allowed.shape, dtype=kind, device=lengths.device)
    return mask.masked_fill_(~allowed, torch.finfo(kind).min)[:, None]
