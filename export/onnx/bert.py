"""Emit the capability encoder (BERT family) as an ONNX graph with mean pooling.

Inputs   tokens (N, L) int64, right-padded; mask (N, L) int64, 1 for a token and 0 for padding
Output   embedding (N, E): mean over the tokens, scaled to length 1
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.api.errors import BundleError
from export.onnx.graph import FLOAT, INT64, MASKED, Graph
from export.onnx.ops import Weights


def emit_encoder(
    config: Mapping[str, Any],
    weights: Weights,
    path: Path,
    graph: type[Graph] = Graph,
) -> None:
    """Write the graph of `weights` (Hugging Face names) to `path`.

    Raises:
        BundleError: the encoder is not a BERT with gelu and absolute positions.
    """
    position_type = config.get("position_embedding_type", "absolute")
    if (config["model_type"], config["hidden_act"], position_type) != ("bert", "gelu", "absolute"):
        raise BundleError(
            f"Unsupported encoder {config['model_type']}/{config['hidden_act']} with"
            f" {position_type} positions; the exporter writes BERT with gelu and absolute positions"
            " only."
        )
    emitter = _Emitter(graph("encoder"), config, weights)
    builder, width = emitter.graph, config["hidden_size"]
    tokens = builder.input("tokens", INT64, ["N", "L"])
    mask = builder.input("mask", INT64, ["N", "L"])
    x = emitter.embed(tokens)
    present = builder.op("Cast", mask, to=FLOAT)
    padding = builder.op(
        "Equal", builder.op("Unsqueeze", mask, builder.const([1, 2])), builder.const(0)
    )
    additive = builder.op(
        "Where", padding, builder.const(MASKED, np.float32), builder.const(0, np.float32)
    )
    for layer in range(config["num_hidden_layers"]):
        x = emitter.layer(x, additive, f"encoder.layer.{layer}")
    weight = builder.op("Unsqueeze", present, builder.const([2]))
    total = builder.op("ReduceSum", builder.op("Mul", x, weight), builder.const([1]), keepdims=0)
    mean = builder.op(
        "Div", total, builder.op("ReduceSum", present, builder.const([1]), keepdims=1)
    )
    builder.output("embedding", builder.op("LpNormalization", mean, axis=1, p=2), ["N", width])
    builder.save(path)


class _Emitter:
    def __init__(self, graph: Graph, config: Mapping[str, Any], weights: Weights) -> None:
        self.graph = graph
        self.config = config
        self.weights = weights
        self.heads = config["num_attention_heads"]
        self.head_width = config["hidden_size"] // self.heads

    def weight(self, name: str) -> str:
        return self.graph.weight(name, self.weights[name])

    def embed(self, tokens: str) -> str:
        """Add the embeddings of words, of positions from 0, and of segment 0."""
        graph = self.graph
        words = graph.op("Gather", self.weight("embeddings.word_embeddings.weight"), tokens)
        table = self.weight("embeddings.position_embeddings.weight")
        position = graph.op(
            "Slice", table, graph.const([0]), graph.dim(tokens, 1), graph.const([0])
        )
        segment = self.weights["embeddings.token_type_embeddings.weight"][0]
        x = graph.op("Add", graph.op("Add", words, position), graph.weight("segment_0", segment))
        return self.norm(x, "embeddings.LayerNorm")

    def norm(self, x: str, name: str) -> str:
        eps = self.config["layer_norm_eps"]
        gain, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return str(self.graph.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps))

    def linear(self, x: str, name: str) -> str:
        matrix = self.graph.weight(f"{name}.weight", self.weights[f"{name}.weight"].T)
        return str(
            self.graph.op("Add", self.graph.op("MatMul", x, matrix), self.weight(f"{name}.bias"))
        )

    def heads_of(self, x: str, name: str, perm: list[int]) -> str:
        x = self.graph.reshape(self.linear(x, name), 0, 0, self.heads, self.head_width)
        return str(self.graph.op("Transpose", x, perm=perm))

    def layer(self, x: str, mask: str, name: str) -> str:
        graph, attention = self.graph, f"{name}.attention"
        query = self.heads_of(x, f"{attention}.self.query", [0, 2, 1, 3])
        key = self.heads_of(x, f"{attention}.self.key", [0, 2, 3, 1])
        value = self.heads_of(x, f"{attention}.self.value", [0, 2, 1, 3])
        scale = graph.const(self.head_width**-0.5, np.float32)
        scores = graph.op("Add", graph.op("Mul", graph.op("MatMul", query, key), scale), mask)
        mixed = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        rows = graph.reshape(graph.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, -1)
        x = self.norm(
            graph.op("Add", x, self.linear(rows, f"{attention}.output.dense")),
            f"{attention}.output.LayerNorm",
        )
        inner = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
        outer = graph.op("Add", x, self.linear(inner, f"{name}.output.dense"))
        return self.norm(outer, f"{name}.output.LayerNorm")

    def gelu(self, x: str) -> str:
        """Compute x/2 (1 + erf(x / sqrt 2)), the exact form."""
        graph = self.graph
        erf = graph.op("Erf", graph.op("Mul", x, graph.const(0.5**0.5, np.float32)))
        half = graph.op("Mul", x, graph.const(0.5, np.float32))
        return str(graph.op("Mul", half, graph.op("Add", erf, graph.const(1, np.float32))))
