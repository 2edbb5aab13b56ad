"""The backbone (Llama family) as an ONNX graph that ends at the candidate rows.

Inputs   tokens (B, L) int64, right-padded; lengths (B,) int64; embeddings (R, D) float32
Output   hidden (B, R, D): the residual stream at the candidates' rows, before the final norm

    candidate_last    one sequence a request: its tokens, then the R candidates, each at the
                      position after the last token. The first P tokens are the inquiry prompt,
                      the same for every request: their keys and values are constants, their
                      rows are not read.
    capability_first  B * R sequences: a candidate, then the tokens.

Every row sees the keys of the positions before its own, and itself: with that one rule no candidate
sees another, and scores are (S, T), never (L + R)^2. In the last layer only candidate rows have
queries, attention output and MLP.

Letters: B requests, L tokens, R = M candidates x V variants, D width; N sequences of S rows; T keys
that others see, P of them constant; K key/value heads, G query heads for each, H head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.bundle.manifest import Layout
from export.onnx.graph import FLOAT, INT64, MASKED, Graph
from export.onnx.ops import Arrays, LlamaConfig, Portable

Cached = Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]  # (K, P, H) each, of every layer
QUERY, KEY, VALUE = (f"self_attn.{part}_proj" for part in "qkv")


def emit_backbone(
    config: LlamaConfig,
    arrays: Arrays,
    layout: Layout,
    path: Path,
    *,
    ops: type[Portable] = Portable,
    graph: type[Graph] = Graph,
    cached: Cached = (),
    positions: int = 4096,
) -> None:
    """Write the graph of `arrays` (Hugging Face names) for `layout` to `path`.

    cached: keys and values of the inquiry prompt (export/reference.py), only for candidate_last.
    positions: the longest prompt and one more.
    """
    g = graph("backbone")
    tokens = g.input("tokens", INT64, ["B", "L"])
    lengths = g.input("lengths", INT64, ["B"])
    embeddings = g.input("embeddings", FLOAT, ["R", config.width])
    o = ops(g, config, arrays, positions)
    if layout == "candidate_last":
        rows = _candidate_last(o, tokens, lengths, embeddings, cached)
        hidden = _decode(o, rows)
    else:
        rows = _capability_first(o, tokens, lengths, embeddings)
        count = g.dim(embeddings, 0)
        hidden = g.reshape(_decode(o, rows), g.dim(tokens, 0), count, config.width)
    g.output("hidden", hidden, ["B", "R", config.width])
    g.save(path)


@dataclass(frozen=True)
class _Rows:
    """hidden (N, S, D), positions (N, S). shared: (N, S, X) -> the rows that others see. pick: the
    rows that answer, at positions `ends`. steps: (T,) positions of the keys. sizes: N and T, and S
    of all rows and of those that answer, as dim() gives them: once, not in every layer."""

    hidden: str
    positions: str
    ends: str
    steps: str
    sizes: tuple[str, str, str, str]
    shared: Callable[[str], str]
    pick: Callable[[str], str]
    cached: Cached = ()


def _candidate_last(
    o: Portable, tokens: str, lengths: str, embeddings: str, cached: Cached
) -> _Rows:
    g = o.g
    fixed = cached[0][0].shape[1] if cached else 0
    steps = g.steps(g.dim(tokens, 1))
    own = steps
    if fixed:
        tokens, own = g.after(tokens, fixed, axis=1), g.after(steps, fixed, axis=0)
    batch, length, count = g.dim(tokens, 0), g.dim(tokens, 1), g.dim(embeddings, 0)
    candidates = g.op("Expand", embeddings, g.shape(batch, count, o.config.width))
    column = g.op("Unsqueeze", lengths, g.const([1]))
    ends = g.op("Expand", column, g.shape(batch, count))
    sizes = g.op("Concat", length, count, axis=0)
    keys, rows = g.dim(steps, 0), g.op("Add", length, count)
    return _Rows(
        hidden=g.op("Concat", o.embed(tokens), candidates, axis=1),
        positions=g.op("Concat", g.op("Expand", own, g.shape(batch, length)), ends, axis=1),
        ends=ends,
        steps=steps,
        sizes=(batch, keys, rows, count),
        shared=lambda x: str(g.op("Split", x, sizes, outputs=2, axis=1)[0]),
        pick=lambda x: str(g.op("Split", x, sizes, outputs=2, axis=1)[1]),
        cached=cached,
    )


def _capability_first(o: Portable, tokens: str, lengths: str, embeddings: str) -> _Rows:
    g, width = o.g, o.config.width
    batch, length, count = g.dim(tokens, 0), g.dim(tokens, 1), g.dim(embeddings, 0)
    first = g.op("Unsqueeze", embeddings, g.const([0, 2]))
    first = g.op("Expand", first, g.shape(batch, count, 1, width))
    rest = g.op("Unsqueeze", o.embed(tokens), g.const([1]))
    rest = g.op("Expand", rest, g.shape(batch, count, length, width))
    pairs = g.op("Concat", first, rest, axis=2)
    hidden = g.reshape(pairs, -1, g.dim(pairs, 2), width)
    steps = g.steps(g.dim(hidden, 1))
    # One row per pair answers: the last token of its request, at position lengths[b].
    column = g.op("Unsqueeze", lengths, g.const([1]))
    ends = g.reshape(g.op("Expand", column, g.shape(batch, count)), -1, 1)

    def pick(x: str) -> str:
        at = g.op("Unsqueeze", ends, g.const([2]))
        at = g.op("Expand", at, g.op("Concat", g.dim(x, 0), g.const([1]), g.dim(x, 2), axis=0))
        return str(g.op("GatherElements", x, at, axis=1))

    total, rows = g.dim(hidden, 0), g.dim(hidden, 1)
    positions = g.op("Expand", steps, g.shape(total, rows))
    sizes = (total, rows, rows, g.const([1]))
    return _Rows(hidden, positions, ends, steps, sizes, shared=lambda x: x, pick=pick)


def _decode(o: Portable, rows: _Rows) -> str:
    """(N, S, D) -> (N, picked, D)."""
    g, c = o.g, o.config
    hidden, delta = rows.hidden, ""
    turn, mask = o.rotation(rows.positions), _mask(g, rows.steps, rows.positions)
    batch, keys, count, picked = rows.sizes
    for layer in range(c.layers):
        hidden, normed = o.add_norm(hidden, delta, layer, "input_layernorm")
        if layer < c.layers - 1:
            query, key, value = _projections(o, normed, layer, turn)
            own_key, own_value = key, value
        else:
            key, value = _split(o, o.linear(normed, layer, KEY, VALUE), c.kv_heads, c.kv_heads)
            key = o.rotate(key, turn)
            hidden, normed, own_key, own_value = map(rows.pick, (hidden, normed, key, value))
            query = o.rotate(o.linear(normed, layer, QUERY), o.rotation(rows.ends))
            mask, count = _mask(g, rows.steps, rows.ends), picked
        seen = [_heads(o, rows.shared(x)) for x in (key, value)]
        if rows.cached:
            known = zip(rows.cached[layer], seen, strict=True)
            seen = [_after_cached(g, before, batch, x) for before, x in known]
        mixed = _attend(
            o, query, seen, (mask, count, keys), _heads(o, own_key), _heads(o, own_value)
        )
        delta = o.linear(mixed, layer, "self_attn.o_proj")
        hidden, normed = o.add_norm(hidden, delta, layer, "post_attention_layernorm")
        gate, up = (o.linear(normed, layer, f"mlp.{part}_proj") for part in ("gate", "up"))
        delta = o.linear(o.gated(gate, up), layer, "mlp.down_proj")
    return str(g.op("Add", hidden, delta))


def _projections(o: Portable, x: str, layer: int, turn: Sequence[str]) -> tuple[str, str, str]:
    """Queries (N, S, K * G * H), keys and values (N, S, K * H); the first two rotated together."""
    heads, kv_heads = o.config.heads, o.config.kv_heads
    both, value = _split(o, o.linear(x, layer, QUERY, KEY, VALUE), heads + kv_heads, kv_heads)
    query, key = _split(o, o.rotate(both, turn), heads, kv_heads)
    return query, key, value


def _split(o: Portable, x: str, first: int, second: int) -> tuple[str, str]:
    """x (N, S, (first + second) * H) in two, counted in heads."""
    sizes = o.g.const([first * o.config.head_width, second * o.config.head_width])
    parts: tuple[str, str] = o.g.op("Split", x, sizes, outputs=2, axis=2)
    return parts


def _heads(o: Portable, x: str) -> str:
    """(N, S, K * H) -> (N, K, S, H)."""
    split = o.g.reshape(x, 0, 0, o.config.kv_heads, o.config.head_width)
    return str(o.g.op("Transpose", split, perm=[0, 2, 1, 3]))


def _after_cached(g: Graph, constant: NDArray[np.float32], batch: str, x: str) -> str:
    """(N, K, S, H) -> (N, K, P + S, H)."""
    known = g.op("Expand", g.const(constant[None], np.float32), g.shape(batch, 1, 1, 1))
    return str(g.op("Concat", known, x, axis=2))


def _mask(g: Graph, steps: str, positions: str) -> str:
    """(N, 1, 1, S, T), to add to scores: a row sees the positions before its own."""
    before = g.op("Less", steps, g.op("Unsqueeze", positions, g.const([2])))
    mask = g.op("Where", before, g.const(0, np.float32), g.const(MASKED, np.float32))
    return str(g.op("Unsqueeze", mask, g.const([1, 2])))


def _attend(
    o: Portable,
    query: str,
    seen: Sequence[str],
    scores_of: tuple[str, str, str],
    own_key: str,
    own_value: str,
) -> str:
    """Attention over the masked keys and values (N, K, T, H), and each row's own: (N, S, D).
    scores_of: the mask, S and T."""
    g, c = o.g, o.config
    (key, value), (mask, rows, keys) = seen, scores_of
    query = g.reshape(query, 0, 0, c.kv_heads, c.heads // c.kv_heads, c.head_width)
    query = g.op("Transpose", query, perm=[0, 2, 3, 1, 4])  # (N, K, G, S, H)
    groups = g.const([2])
    flat = g.reshape(query, 0, 0, -1, c.head_width)  # one product per key/value head
    scores = g.op("MatMul", flat, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = g.op("Add", g.reshape(scores, 0, 0, c.heads // c.kv_heads, rows, keys), mask)
    own = g.op("Mul", query, g.op("Unsqueeze", own_key, groups))
    own = g.op("ReduceSum", own, g.const([-1]), keepdims=1)
    share = g.op("Softmax", g.op("Concat", scores, own, axis=-1), axis=-1)
    sizes = g.op("Concat", keys, g.const([1]), axis=0)
    share, share_own = g.op("Split", share, sizes, outputs=2, axis=-1)
    mixed = g.op("MatMul", g.reshape(share, 0, 0, -1, keys), value)
    mixed = g.reshape(mixed, 0, 0, c.heads // c.kv_heads, rows, c.head_width)
    mixed = g.op("Add", mixed, g.op("Mul", share_own, g.op("Unsqueeze", own_value, groups)))
    merged = g.op("Transpose", mixed, perm=[0, 3, 1, 2, 4])
    return g.reshape(merged, 0, 0, c.heads * c.head_width)
