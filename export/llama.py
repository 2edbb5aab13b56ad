"""The backbone (Llama family) as an ONNX graph that ends at the candidate rows.

Inputs   tokens (B, L) int64, right-padded; lengths (B,) int64; embeddings (R, D) float32
Output   hidden (B, R, D): the residual stream at the candidates' rows, before the final norm

candidate_last reads the prefix once; each of the R candidate rows attends to the prefix and to
itself, so scores are (R, L+1) and never (L+R)^2. In the last layer only candidate rows have
queries, attention output and MLP. Letters: B requests, L tokens, R = M candidates x V variants,
D width, K key/value heads, G query heads per key/value head, H head width, S = L + R rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.bundle import Layout
from engine.contract.errors import BundleError
from export.graph import FLOAT, INT64, MASKED, Graph

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class LlamaConfig:
    """What of a Hugging Face config the graph needs."""

    layers: int
    heads: int
    kv_heads: int
    head_width: int
    width: int
    eps: float
    theta: float

    @staticmethod
    def of(config: Mapping[str, Any]) -> LlamaConfig:
        """Raises BundleError where the config asks for what the emitter does not have."""
        extra = [k for k in ("attention_bias", "mlp_bias", "rope_scaling") if config.get(k)]
        if config["model_type"] != "llama" or config["hidden_act"] != "silu" or extra:
            raise BundleError(
                f"backbone is {config['model_type']}/{config['hidden_act']} with {extra}; this"
                " exporter writes plain Llama-family graphs only."
            )
        rope = config.get("rope_parameters") or {}  # where transformers 5 keeps them
        if rope.get("rope_type", "default") != "default":
            raise BundleError(f"rope_type is {rope['rope_type']!r}; only 'default' is written.")
        theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        heads = config["num_attention_heads"]
        return LlamaConfig(
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["hidden_size"],
            config["rms_norm_eps"],
            theta,
        )


def emit_backbone(config: LlamaConfig, arrays: Arrays, layout: Layout, path: Path) -> None:
    """Write the graph of `arrays` (Hugging Face names) for `layout` to `path`."""
    g = Graph("backbone")
    tokens = g.input("tokens", INT64, ["B", "L"])
    lengths = g.input("lengths", INT64, ["B"])
    embeddings = g.input("embeddings", FLOAT, ["R", config.width])
    table = g.weight("model.embed_tokens.weight", arrays["model.embed_tokens.weight"])
    prefix = g.op("Gather", table, tokens)
    emitter = _Emitter(g, config, arrays)
    emit = _candidate_last if layout == "candidate_last" else _capability_first
    rows = emit(emitter, prefix, lengths, embeddings)
    g.output("hidden", rows, ["B", "R", config.width])
    g.save(path)


def _candidate_last(e: _Emitter, prefix: str, lengths: str, embeddings: str) -> str:
    g, c = e.g, e.config
    batch, length, count = g.dim(prefix, 0), g.dim(prefix, 1), g.dim(embeddings, 0)
    candidates = g.op("Expand", embeddings, g.shape(batch, count, c.width))
    hidden = g.op("Concat", prefix, candidates, axis=1)
    steps = g.steps(length)
    column = g.op("Unsqueeze", lengths, g.const([1]))
    positions = g.op(
        "Concat",
        g.op("Expand", steps, g.shape(batch, length)),
        g.op("Expand", column, g.shape(batch, count)),
        axis=1,
    )
    turn = e.rotation(positions)
    causal = e.causal(steps)
    # (B, 1, 1, 1, L): a candidate sees its own request's prefix, not the padding.
    past_end = g.op("GreaterOrEqual", steps, column)
    visible = g.op("Unsqueeze", e.additive(past_end), g.const([1, 2, 3]))
    for layer in range(c.layers):
        last = layer == c.layers - 1
        normed = e.norm(hidden, layer, "input_layernorm")
        key, value = e.keys_values(normed, layer, turn)
        key_p, key_c = e.split(key, 2, length, count)
        value_p, value_c = e.split(value, 2, length, count)
        if last:
            _, hidden = e.split(hidden, 1, length, count)
            _, normed = e.split(normed, 1, length, count)
            turn_c = tuple(e.split(t, 1, length, count)[1] for t in turn)
            query_c = e.queries(normed, layer, turn_c)
            mixed = e.attend_own(query_c, key_p, value_p, visible, key_c, value_c)
        else:
            query_p, query_c = e.split(e.queries(normed, layer, turn), 3, length, count)
            first = e.attend(query_p, key_p, value_p, causal)
            second = e.attend_own(query_c, key_p, value_p, visible, key_c, value_c)
            mixed = g.op("Concat", first, second, axis=3)
        hidden = e.close_layer(hidden, mixed, layer)
    return str(hidden)


def _capability_first(e: _Emitter, prefix: str, lengths: str, embeddings: str) -> str:
    g, c = e.g, e.config
    batch, length, count = g.dim(prefix, 0), g.dim(prefix, 1), g.dim(embeddings, 0)
    first = g.op("Unsqueeze", embeddings, g.const([0, 2]))
    first = g.op("Expand", first, g.shape(batch, count, 1, c.width))
    rest = g.op("Unsqueeze", prefix, g.const([1]))
    rest = g.op("Expand", rest, g.shape(batch, count, length, c.width))
    pairs = g.op("Concat", first, rest, axis=2)
    hidden = g.reshape(pairs, -1, g.dim(pairs, 2), c.width)
    steps = g.steps(g.dim(hidden, 1))
    turn = e.rotation(g.op("Unsqueeze", steps, g.const([0])))
    causal = e.causal(steps)
    # One row per pair answers: the last token of its request, at position lengths[b].
    column = g.op("Unsqueeze", lengths, g.const([1]))
    ends = g.reshape(g.op("Expand", column, g.shape(batch, count)), -1, 1)
    visible = g.op("Unsqueeze", e.additive(g.op("Greater", steps, ends)), g.const([1, 2, 3]))
    for layer in range(c.layers):
        last = layer == c.layers - 1
        normed = e.norm(hidden, layer, "input_layernorm")
        key, value = e.keys_values(normed, layer, turn)
        if last:
            hidden, normed = e.row_at(hidden, ends), e.row_at(normed, ends)
            query = e.queries(normed, layer, e.rotation(ends))
            mixed = e.attend(query, key, value, visible)
        else:
            mixed = e.attend(e.queries(normed, layer, turn), key, value, causal)
        hidden = e.close_layer(hidden, mixed, layer)
    return g.reshape(hidden, batch, count, c.width)


class _Emitter:
    """The parts of a layer. Heads are (B, K, G, rows, H) for queries, (B, K, rows, H) else."""

    def __init__(self, graph: Graph, config: LlamaConfig, arrays: Arrays) -> None:
        self.g = graph
        self.config = config
        self.arrays = arrays
        self.groups = config.heads // config.kv_heads

    def norm(self, x: str, layer: int, name: str) -> str:
        """RMSNorm (Zhang & Sennrich, 2019)."""
        g = self.g
        gain = f"model.layers.{layer}.{name}.weight"
        square = g.op("ReduceMean", g.op("Mul", x, x), axes=[-1], keepdims=1)
        size = g.op("Sqrt", g.op("Add", square, g.const(self.config.eps, np.float32)))
        known = g.weight(f"{gain}", self.arrays[gain])
        return str(g.op("Mul", g.op("Div", x, size), known))

    def linear(self, x: str, layer: int, name: str) -> str:
        """x W^T."""
        full = f"model.layers.{layer}.{name}.weight"
        return str(self.g.op("MatMul", x, self.g.weight(full, self.arrays[full].T)))

    def rotation(self, positions: str) -> tuple[str, str]:
        """(B, rows) positions -> cosines and sines (B, rows, 1, H)."""
        g, half = self.g, self.config.head_width // 2
        frequency = self.config.theta ** (-np.arange(half, dtype=np.float64) / half)
        angle = g.op(
            "Mul",
            g.op("Unsqueeze", g.op("Cast", positions, to=FLOAT), g.const([2])),
            g.const(frequency, np.float32),
        )
        both = g.op("Unsqueeze", g.op("Concat", angle, angle, axis=-1), g.const([2]))
        return g.op("Cos", both), g.op("Sin", both)

    def rotate(self, x: str, turn: tuple[str, ...]) -> str:
        """Rotary position embedding (Su et al., 2021) on x (B, rows, heads, H)."""
        g = self.g
        first, second = g.op("Split", x, outputs=2, axis=-1)
        turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
        return str(g.op("Add", g.op("Mul", x, turn[0]), g.op("Mul", turned, turn[1])))

    def queries(self, normed: str, layer: int, turn: tuple[str, ...]) -> str:
        """(B, rows, D) -> (B, K, G, rows, H)."""
        g, c = self.g, self.config
        x = self.linear(normed, layer, "self_attn.q_proj")
        x = self.rotate(g.reshape(x, 0, 0, c.heads, c.head_width), turn)
        x = g.reshape(x, 0, 0, c.kv_heads, self.groups, c.head_width)
        return str(g.op("Transpose", x, perm=[0, 2, 3, 1, 4]))

    def keys_values(self, normed: str, layer: int, turn: tuple[str, ...]) -> tuple[str, str]:
        """(B, rows, D) -> two of (B, K, rows, H)."""
        g, c = self.g, self.config
        key = g.reshape(self.linear(normed, layer, "self_attn.k_proj"), 0, 0, c.kv_heads, -1)
        value = g.reshape(self.linear(normed, layer, "self_attn.v_proj"), 0, 0, c.kv_heads, -1)
        key = self.rotate(key, turn)
        order = [0, 2, 1, 3]
        return g.op("Transpose", key, perm=order), g.op("Transpose", value, perm=order)

    def split(self, x: str, axis: int, length: str, count: str) -> tuple[str, str]:
        """(prefix rows, candidate rows) of `x` along `axis`."""
        sizes = self.g.op("Concat", length, count, axis=0)
        first, second = self.g.op("Split", x, sizes, outputs=2, axis=axis)
        return first, second

    def additive(self, hidden: str) -> str:
        """True where nothing may be seen -> a mask to add to scores."""
        g = self.g
        return str(g.op("Where", hidden, g.const(MASKED, np.float32), g.const(0, np.float32)))

    def causal(self, steps: str) -> str:
        """(rows, rows): a row sees itself and what stands before it."""
        g = self.g
        return self.additive(g.op("Greater", steps, g.op("Unsqueeze", steps, g.const([1]))))

    def scores(self, query: str, key: str) -> str:
        """(B, K, G, Q, H) x (B, K, rows, H) -> (B, K, G, Q, rows), scaled; one product per K."""
        g, c = self.g, self.config
        flat = g.reshape(query, 0, 0, -1, c.head_width)
        product = g.op("MatMul", flat, g.op("Transpose", key, perm=[0, 1, 3, 2]))
        scaled = g.op("Mul", product, g.const(c.head_width**-0.5, np.float32))
        return g.reshape(scaled, 0, 0, self.groups, g.dim(query, 3), g.dim(key, 2))

    def mix(self, share: str, value: str, queries: str) -> str:
        """(B, K, G, Q, rows) x (B, K, rows, H) -> (B, K, G, Q, H)."""
        g = self.g
        flat = g.reshape(share, 0, 0, -1, g.dim(value, 2))
        mixed = g.op("MatMul", flat, value)
        return g.reshape(mixed, 0, 0, self.groups, queries, self.config.head_width)

    def attend(self, query: str, key: str, value: str, mask: str) -> str:
        """Plain attention with an additive mask that broadcasts to (B, K, G, Q, rows)."""
        g = self.g
        share = g.op("Softmax", g.op("Add", self.scores(query, key), mask), axis=-1)
        return self.mix(share, value, g.dim(query, 3))

    def attend_own(
        self, query: str, key: str, value: str, mask: str, own_key: str, own_value: str
    ) -> str:
        """Each row sees the masked prefix and its own key and value (B, K, R, H)."""
        g, c = self.g, self.config
        group = g.const([2])
        product = g.op("Mul", query, g.op("Unsqueeze", own_key, group))
        own = g.op("ReduceSum", product, g.const([-1]), keepdims=1)
        own = g.op("Mul", own, g.const(c.head_width**-0.5, np.float32))
        prefix = g.op("Add", self.scores(query, key), mask)
        share = g.op("Softmax", g.op("Concat", prefix, own, axis=-1), axis=-1)
        sizes = g.op("Concat", g.dim(key, 2), g.const([1]), axis=0)
        share_p, share_own = g.op("Split", share, sizes, outputs=2, axis=-1)
        mixed = self.mix(share_p, value, g.dim(query, 3))
        return str(g.op("Add", mixed, g.op("Mul", share_own, g.op("Unsqueeze", own_value, group))))

    def row_at(self, x: str, index: str) -> str:
        """(P, rows, D) at index (P, 1) -> (P, 1, D)."""
        g = self.g
        at = g.op("Unsqueeze", index, g.const([2]))
        at = g.op("Expand", at, g.shape(g.dim(x, 0), 1, self.config.width))
        return str(g.op("GatherElements", x, at, axis=1))

    def close_layer(self, hidden: str, mixed: str, layer: int) -> str:
        """Attention output and MLP, each added to the stream."""
        g, c = self.g, self.config
        rows = g.op("Transpose", mixed, perm=[0, 3, 1, 2, 4])
        rows = g.reshape(rows, 0, 0, c.heads * c.head_width)
        hidden = g.op("Add", hidden, self.linear(rows, layer, "self_attn.o_proj"))
        normed = self.norm(hidden, layer, "post_attention_layernorm")
        gate = self.linear(normed, layer, "mlp.gate_proj")
        gate = g.op("Mul", gate, g.op("Sigmoid", gate))
        inner = g.op("Mul", gate, self.linear(normed, layer, "mlp.up_proj"))
        return str(g.op("Add", hidden, self.linear(inner, layer, "mlp.down_proj")))
