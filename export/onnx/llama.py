"""Emit the backbone (Llama family) as an ONNX graph that ends at the candidate positions.

Inputs   tokens (B, L) int64, right-padded; lengths (B,) int64; embeddings (M, D) float32
Output   hidden (B, M, D): the residual stream at the candidate positions, before the final norm

Each request is one sequence: its tokens, then the M candidates, each at the position after the last
token. The first P tokens are the inquiry prompt, which is the same for every request, so their keys
and values can be constants of the graph (`cached`).

Every position attends to the tokens before it and to itself. No candidate therefore sees another
candidate, and attention scores are (S, T) rather than (S, S). In the last layer only the candidate
positions have queries, attention outputs and an MLP.

Shapes: B requests, L tokens, M candidates, D width; S positions of a sequence that are computed
(tokens after the cached prompt, then candidates); T token positions that can be attended to, P of
them constant; K key/value heads, G query heads for each, H head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.bundle.types import Float32Array
from export.onnx.graph import FLOAT, INT64, MASKED, Graph
from export.onnx.ops import LlamaConfig, Portable, Weights

CachedPrompt = Sequence[tuple[Float32Array, Float32Array]]  # keys, values (K, P, H) of every layer
QUERY, KEY, VALUE = (f"self_attn.{part}_proj" for part in "qkv")


def emit_backbone(
    config: LlamaConfig,
    weights: Weights,
    path: Path,
    *,
    ops: type[Portable] = Portable,
    graph: type[Graph] = Graph,
    cached: CachedPrompt = (),
    positions: int = 4096,
) -> None:
    """Write the backbone's graph to `path`.

    Args:
        config: sizes of the backbone.
        weights: the backbone's weights under their Hugging Face names.
        path: the ONNX file to write.
        ops: the operator dialect, see export/onnx/ops.py.
        graph: the graph builder; HalfGraph computes matrix products in fp16.
        cached: keys and values of the inquiry prompt, from export.reference.keys_values; empty to
            compute them in the graph.
        positions: rows of the rotary tables; at least the longest prompt plus one, and at least
            the number of positions in a sequence.
    """
    builder = graph("backbone")
    tokens = builder.input("tokens", INT64, ["B", "L"])
    lengths = builder.input("lengths", INT64, ["B"])
    embeddings = builder.input("embeddings", FLOAT, ["M", config.width])
    dialect = ops(builder, config, weights, positions)
    sequence = _build_sequence(dialect, tokens, lengths, embeddings, cached)
    builder.output("hidden", _decode(dialect, sequence), ["B", "M", config.width])
    builder.save(path)


@dataclass(frozen=True)
class _Sequence:
    """Names of the tensors that describe the input sequences.

    hidden: (B, S, D). positions: (B, S). last_positions: (B, M), the candidates' positions.
    context_positions: (T,), those that can be attended to. The four sizes have shape (1,) and are
    computed once, not in every layer. split_sizes: (2,), tokens and candidates among the S.
    """

    hidden: str
    positions: str
    last_positions: str
    context_positions: str
    batch: str
    context_size: str
    size: str
    candidates: str
    split_sizes: str
    cached: CachedPrompt


def _build_sequence(
    ops: Portable, tokens: str, lengths: str, embeddings: str, cached: CachedPrompt
) -> _Sequence:
    graph = ops.graph
    cached_size = cached[0][0].shape[1] if cached else 0
    context_positions = graph.arange(graph.dim(tokens, 1))
    token_positions = context_positions
    if cached_size:
        tokens = graph.slice_from(tokens, cached_size, axis=1)
        token_positions = graph.slice_from(context_positions, cached_size, axis=0)
    batch, length, count = graph.dim(tokens, 0), graph.dim(tokens, 1), graph.dim(embeddings, 0)
    candidates = graph.op("Expand", embeddings, graph.shape(batch, count, ops.config.width))
    column = graph.op("Unsqueeze", lengths, graph.const([1]))
    last_positions = graph.op("Expand", column, graph.shape(batch, count))
    split_sizes = graph.op("Concat", length, count, axis=0)
    context_size, size = graph.dim(context_positions, 0), graph.op("Add", length, count)
    hidden = graph.op("Concat", ops.embed(tokens), candidates, axis=1)
    token_positions = graph.op("Expand", token_positions, graph.shape(batch, length))
    return _Sequence(
        hidden=hidden,
        positions=graph.op("Concat", token_positions, last_positions, axis=1),
        last_positions=last_positions,
        context_positions=context_positions,
        batch=batch,
        context_size=context_size,
        size=size,
        candidates=count,
        split_sizes=split_sizes,
        cached=cached,
    )


def _decode(ops: Portable, sequence: _Sequence) -> str:
    """Emit all layers: the residual stream at the candidates' positions, (B, M, D)."""
    graph, config = ops.graph, ops.config

    def prefix_rows(x: str) -> str:
        return str(graph.op("Split", x, sequence.split_sizes, outputs=2, axis=1)[0])

    def candidate_rows(x: str) -> str:
        return str(graph.op("Split", x, sequence.split_sizes, outputs=2, axis=1)[1])

    hidden, delta, queries = sequence.hidden, "", sequence.size
    rope = ops.rotation(sequence.positions)
    mask = _mask(graph, sequence.context_positions, sequence.positions)
    for layer in range(config.layers):
        hidden, normed = ops.add_norm(hidden, delta, layer, "input_layernorm")
        if layer < config.layers - 1:
            query, key, value = _project(ops, normed, layer, rope)
            self_key, self_value = key, value
        else:
            kv = ops.linear(normed, layer, KEY, VALUE)
            key, value = _split_heads(ops, kv, config.kv_heads, config.kv_heads)
            key = ops.rotate(key, rope)
            hidden, normed, self_key, self_value = map(candidate_rows, (hidden, normed, key, value))
            query = ops.linear(normed, layer, QUERY)
            query = ops.rotate(query, ops.rotation(sequence.last_positions))
            mask = _mask(graph, sequence.context_positions, sequence.last_positions)
            queries = sequence.candidates
        context_kv = [_heads(ops, prefix_rows(x)) for x in (key, value)]
        if sequence.cached:
            pairs = zip(sequence.cached[layer], context_kv, strict=True)
            context_kv = [_prepend(graph, cached, sequence.batch, x) for cached, x in pairs]
        mixed = _attend(
            ops,
            query,
            context_kv,
            (_heads(ops, self_key), _heads(ops, self_value)),
            mask,
            (queries, sequence.context_size),
        )
        delta = ops.linear(mixed, layer, "self_attn.o_proj")
        hidden, normed = ops.add_norm(hidden, delta, layer, "post_attention_layernorm")
        gate, up = (ops.linear(normed, layer, f"mlp.{part}_proj") for part in ("gate", "up"))
        delta = ops.linear(ops.gated(gate, up), layer, "mlp.down_proj")
    return str(graph.op("Add", hidden, delta))


def _project(ops: Portable, x: str, layer: int, rope: Sequence[str]) -> tuple[str, str, str]:
    """Emit queries (B, S, K * G * H), keys and values (B, S, K * H). Queries and keys are rotated
    in one operator."""
    heads, kv_heads = ops.config.heads, ops.config.kv_heads
    qkv = ops.linear(x, layer, QUERY, KEY, VALUE)
    query_key, value = _split_heads(ops, qkv, heads + kv_heads, kv_heads)
    query, key = _split_heads(ops, ops.rotate(query_key, rope), heads, kv_heads)
    return query, key, value


def _split_heads(ops: Portable, x: str, first: int, second: int) -> tuple[str, str]:
    """Split x (B, S, (first + second) * H) after the first `first` heads."""
    width = ops.config.head_width
    sizes = ops.graph.const([first * width, second * width])
    parts: tuple[str, str] = ops.graph.op("Split", x, sizes, outputs=2, axis=2)
    return parts


def _heads(ops: Portable, x: str) -> str:
    """(B, S, K * H) -> (B, K, S, H)."""
    heads = ops.graph.reshape(x, 0, 0, ops.config.kv_heads, ops.config.head_width)
    return str(ops.graph.op("Transpose", heads, perm=[0, 2, 1, 3]))


def _prepend(graph: Graph, cached: Float32Array, batch: str, x: str) -> str:
    """Put the constants (K, P, H) before x: (B, K, S, H) -> (B, K, P + S, H)."""
    constant = graph.const(cached[None], np.float32)
    expanded = graph.op("Expand", constant, graph.shape(batch, 1, 1, 1))
    return str(graph.op("Concat", expanded, x, axis=2))


def _mask(graph: Graph, context_positions: str, positions: str) -> str:
    """Emit the additive mask (B, 1, 1, S, T): a position sees only the positions before its own."""
    column = graph.op("Unsqueeze", positions, graph.const([2]))
    visible = graph.op("Less", context_positions, column)
    mask = graph.op("Where", visible, graph.const(0, np.float32), graph.const(MASKED, np.float32))
    return str(graph.op("Unsqueeze", mask, graph.const([1, 2])))


def _attend(
    ops: Portable,
    query: str,
    context_kv: Sequence[str],
    self_kv: tuple[str, str],
    mask: str,
    sizes: tuple[str, str],
) -> str:
    """Emit attention over the masked context and each position's own key: (B, S, D).

    context_kv: keys and values (B, K, T, H). self_kv: each position's own, (B, K, S, H).
    sizes: S and T, each of shape (1,).
    """
    graph, config = ops.graph, ops.config
    (key, value), (self_key, self_value) = context_kv, self_kv
    queries, keys = sizes
    group = config.heads // config.kv_heads
    query = graph.reshape(query, 0, 0, config.kv_heads, group, config.head_width)
    query = graph.op("Transpose", query, perm=[0, 2, 3, 1, 4])  # (B, K, G, S, H)
    group_axis = graph.const([2])
    flat = graph.reshape(query, 0, 0, -1, config.head_width)  # one product per key/value head
    scores = graph.op("MatMul", flat, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = graph.op("Add", graph.reshape(scores, 0, 0, group, queries, keys), mask)
    self_score = graph.op("Mul", query, graph.op("Unsqueeze", self_key, group_axis))
    self_score = graph.op("ReduceSum", self_score, graph.const([-1]), keepdims=1)
    both = graph.op("Concat", scores, self_score, axis=-1)
    attention = graph.op("Softmax", both, axis=-1)
    split = graph.op("Concat", keys, graph.const([1]), axis=0)
    attention, self_attention = graph.op("Split", attention, split, outputs=2, axis=-1)
    mixed = graph.op("MatMul", graph.reshape(attention, 0, 0, -1, keys), value)
    mixed = graph.reshape(mixed, 0, 0, group, queries, config.head_width)
    self_mixed = graph.op("Mul", self_attention, graph.op("Unsqueeze", self_value, group_axis))
    mixed = graph.op("Add", mixed, self_mixed)
    merged = graph.op("Transpose", mixed, perm=[0, 3, 1, 2, 4])
    return graph.reshape(merged, 0, 0, config.heads * config.head_width)
