"""The capability encoder (BERT family) as an ONNX graph with mean pooling.

Inputs   tokens (N, L) int64, right-padded; mask (N, L) int64, 1 where a token is
Output   embedding (N, E): mean over the real tokens, normalised to length 1
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import BundleError
from export.onnx.graph import FLOAT, INT64, MASKED, Graph


def emit_encoder(
    config: Mapping[str, Any],
    arrays: Mapping[str, NDArray[np.float32]],
    path: Path,
    graph: type[Graph] = Graph,
) -> None:
    """Write the graph of `arrays` (Hugging Face names) to `path`."""
    place = config.get("position_embedding_type", "absolute")
    if (config["model_type"], config["hidden_act"], place) != ("bert", "gelu", "absolute"):
        raise BundleError(
            f"encoder is {config['model_type']}/{config['hidden_act']} with {place} positions; this"
            " exporter writes BERT with gelu and absolute positions only."
        )
    e = _Emitter(graph("encoder"), config, arrays)
    g, width = e.g, config["hidden_size"]
    tokens = g.input("tokens", INT64, ["N", "L"])
    mask = g.input("mask", INT64, ["N", "L"])
    x = e.embed(tokens)
    real = g.op("Cast", mask, to=FLOAT)
    blocked = g.op("Equal", g.op("Unsqueeze", mask, g.const([1, 2])), g.const(0))
    additive = g.op("Where", blocked, g.const(MASKED, np.float32), g.const(0, np.float32))
    for layer in range(config["num_hidden_layers"]):
        x = e.layer(x, additive, f"encoder.layer.{layer}")
    weight = g.op("Unsqueeze", real, g.const([2]))
    total = g.op("ReduceSum", g.op("Mul", x, weight), g.const([1]), keepdims=0)
    mean = g.op("Div", total, g.op("ReduceSum", real, g.const([1]), keepdims=1))
    g.output("embedding", g.op("LpNormalization", mean, axis=1, p=2), ["N", width])
    g.save(path)


class _Emitter:
    def __init__(
        self, graph: Graph, config: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]
    ) -> None:
        self.g = graph
        self.config = config
        self.arrays = arrays
        self.heads = config["num_attention_heads"]
        self.head_width = config["hidden_size"] // self.heads

    def weight(self, name: str) -> str:
        return self.g.weight(name, self.arrays[name])

    def embed(self, tokens: str) -> str:
        """Words, positions 0.., segment 0."""
        g = self.g
        words = g.op("Gather", self.weight("embeddings.word_embeddings.weight"), tokens)
        places = self.weight("embeddings.position_embeddings.weight")
        place = g.op("Slice", places, g.const([0]), g.dim(tokens, 1), g.const([0]))
        segment = self.arrays["embeddings.token_type_embeddings.weight"][0]
        x = g.op("Add", g.op("Add", words, place), g.weight("segment_0", segment))
        return self.norm(x, "embeddings.LayerNorm")

    def norm(self, x: str, name: str) -> str:
        eps = self.config["layer_norm_eps"]
        gain, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return str(self.g.op("LayerNormalization", x, gain, bias, axis=-1, epsilon=eps))

    def linear(self, x: str, name: str) -> str:
        matrix = self.g.weight(f"{name}.weight", self.arrays[f"{name}.weight"].T)
        return str(self.g.op("Add", self.g.op("MatMul", x, matrix), self.weight(f"{name}.bias")))

    def heads_of(self, x: str, name: str, perm: list[int]) -> str:
        x = self.g.reshape(self.linear(x, name), 0, 0, self.heads, self.head_width)
        return str(self.g.op("Transpose", x, perm=perm))

    def layer(self, x: str, mask: str, name: str) -> str:
        g, attention = self.g, f"{name}.attention"
        query = self.heads_of(x, f"{attention}.self.query", [0, 2, 1, 3])
        key = self.heads_of(x, f"{attention}.self.key", [0, 2, 3, 1])
        value = self.heads_of(x, f"{attention}.self.value", [0, 2, 1, 3])
        scale = g.const(self.head_width**-0.5, np.float32)
        scores = g.op("Add", g.op("Mul", g.op("MatMul", query, key), scale), mask)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), value)
        rows = g.reshape(g.op("Transpose", mixed, perm=[0, 2, 1, 3]), 0, 0, -1)
        x = self.norm(
            g.op("Add", x, self.linear(rows, f"{attention}.output.dense")),
            f"{attention}.output.LayerNorm",
        )
        inner = self.gelu(self.linear(x, f"{name}.intermediate.dense"))
        outer = g.op("Add", x, self.linear(inner, f"{name}.output.dense"))
        return self.norm(outer, f"{name}.output.LayerNorm")

    def gelu(self, x: str) -> str:
        """x/2 (1 + erf(x / sqrt 2)), the exact form."""
        g = self.g
        erf = g.op("Erf", g.op("Mul", x, g.const(0.5**0.5, np.float32)))
        half = g.op("Mul", x, g.const(0.5, np.float32))
        return str(g.op("Mul", half, g.op("Add", erf, g.const(1, np.float32))))
