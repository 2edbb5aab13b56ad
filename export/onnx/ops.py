"""Build the parts of a decoder layer, in three ONNX operator dialects.

Portable     Standard operators of opset 17. TensorRT reads them; export/onnx/fp16.py casts them.
OnnxRuntime  The same with ONNX Runtime's fused norm, rotary and activation operators, for CPU and
             CUDA.
Int8         OnnxRuntime with 8-bit matrices and an 8-bit token embedding table.

Shapes: B sequences, S positions of each, D width, H head width, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.api.errors import BundleError
from engine.bundle.types import Float32Array, Float64Array
from export.onnx.graph import FLOAT, Graph

Weights = Mapping[str, Float32Array]  # Hugging Face names
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes that the graph needs, from a Hugging Face config."""

    layers: int
    heads: int
    kv_heads: int
    head_width: int
    width: int
    eps: float
    theta: float

    @staticmethod
    def of(config: Mapping[str, Any]) -> LlamaConfig:
        """Read a Hugging Face config.

        Raises:
            BundleError: the config needs something that the exporter does not support.
        """
        unsupported = [k for k in ("attention_bias", "mlp_bias", "rope_scaling") if config.get(k)]
        if config["model_type"] != "llama" or config["hidden_act"] != "silu" or unsupported:
            raise BundleError(
                f"Unsupported backbone {config['model_type']}/{config['hidden_act']} with"
                f" {unsupported}; the exporter writes plain Llama-family graphs only."
            )
        rope = config.get("rope_parameters") or {}  # their place in transformers 5
        if rope.get("rope_type", "default") != "default":
            raise BundleError(f"Unsupported rope_type {rope['rope_type']!r}, expected 'default'.")
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


class Portable:
    """Standard operators. The query matrix is scaled by H^-1/2, so that attention need not be."""

    def __init__(self, graph: Graph, config: LlamaConfig, weights: Weights, positions: int) -> None:
        """positions: rows of the rotary tables; every position is smaller, and no sequence is
        longer."""
        self.graph = graph
        self.config = config
        self.positions = positions
        self._weights = weights

    def embed(self, tokens: str) -> str:
        """Look up token embeddings: (B, S) -> (B, S, D)."""
        return str(self.graph.op("Gather", self._weight("model.embed_tokens"), tokens))

    def add_norm(self, x: str, delta: str, layer: int, name: str) -> tuple[str, str]:
        """Return x + delta and its RMSNorm (Zhang & Sennrich, 2019). delta is empty in the first
        layer."""
        graph = self.graph
        x = graph.op("Add", x, delta) if delta else x
        square = graph.op("ReduceMean", graph.op("Mul", x, x), axes=[-1], keepdims=1)
        size = graph.op("Sqrt", graph.op("Add", square, graph.const(self.config.eps, np.float32)))
        return x, graph.op(
            "Mul", graph.op("Div", x, size), self._weight(f"model.layers.{layer}.{name}")
        )

    def linear(self, x: str, layer: int, *names: str) -> str:
        """Multiply x by the matrices of `names`, concatenated along the output axis."""
        return str(self.graph.op("MatMul", x, self.graph.weight(*self._matrix(layer, names))))

    def rotation(self, positions: str) -> Sequence[str]:
        """Prepare rotate() for positions (B, S): here cosines and sines, (B, S, 1, H) each."""
        graph = self.graph
        column = graph.op("Unsqueeze", graph.op("Cast", positions, to=FLOAT), graph.const([2]))
        angle = graph.op("Mul", column, graph.const(self._frequencies(), np.float32))
        both = graph.op("Unsqueeze", graph.op("Concat", angle, angle, axis=-1), graph.const([2]))
        return graph.op("Cos", both), graph.op("Sin", both)

    def rotate(self, x: str, rope: Sequence[str]) -> str:
        """Apply rotary position embedding (Su et al., 2021) to x (B, S, heads * H)."""
        graph = self.graph
        heads = graph.reshape(x, 0, 0, -1, self.config.head_width)
        first, second = graph.op("Split", heads, outputs=2, axis=-1)
        rotated = graph.op("Concat", graph.op("Neg", second), first, axis=-1)
        heads = graph.op("Add", graph.op("Mul", heads, rope[0]), graph.op("Mul", rotated, rope[1]))
        return graph.reshape(heads, 0, 0, graph.dim(x, 2))

    def gated(self, gate: str, up: str) -> str:
        """Compute SiLU(gate) * up."""
        graph = self.graph
        return str(graph.op("Mul", graph.op("Mul", gate, graph.op("Sigmoid", gate)), up))

    def _frequencies(self) -> Float64Array:
        half = self.config.head_width // 2
        return np.asarray(self.config.theta ** (-np.arange(half, dtype=np.float64) / half))

    def _weight(self, name: str) -> str:
        return self.graph.weight(f"{name}.weight", self._weights[f"{name}.weight"])

    def _matrix(self, layer: int, names: Sequence[str]) -> tuple[str, Float32Array]:
        """The (in, out) matrices of `names`, concatenated along the output axis, and a name for
        them."""
        parts = [self._weights[f"model.layers.{layer}.{name}.weight"] for name in names]
        scale = np.float32(self.config.head_width**-0.5)
        scaled = [p * scale if "q_proj" in n else p for p, n in zip(parts, names, strict=True)]
        return f"model.layers.{layer}.{'+'.join(names)}", np.concatenate(scaled).T


class OnnxRuntime(Portable):
    """Portable with ONNX Runtime's fused operators."""

    def add_norm(self, x: str, delta: str, layer: int, name: str) -> tuple[str, str]:
        """See Portable."""
        graph, eps = self.graph, self.config.eps
        gain = self._weight(f"model.layers.{layer}.{name}")
        if not delta:
            return x, graph.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=eps)
        kind = "SkipSimplifiedLayerNormalization"
        outputs = graph.op(kind, x, delta, gain, outputs=4, epsilon=eps, domain=MICROSOFT)
        return outputs[3], outputs[0]

    def rotation(self, positions: str) -> Sequence[str]:
        """Positions (B, S), and tables of cosines and sines (positions, H / 2)."""
        angle = np.arange(self.positions)[:, None] * self._frequencies()
        tables = (self.graph.const(f(angle), np.float32) for f in (np.cos, np.sin))
        return positions, *tables

    def rotate(self, x: str, rope: Sequence[str]) -> str:
        """See Portable. The operator rejects a sequence longer than its tables."""
        return str(self.graph.op("RotaryEmbedding", x, *rope, domain=MICROSOFT))

    def gated(self, gate: str, up: str) -> str:
        """See Portable; QuickGelu with alpha = 1 is SiLU."""
        graph = self.graph
        return str(graph.op("Mul", graph.op("QuickGelu", gate, alpha=1.0, domain=MICROSOFT), up))


class Int8(OnnxRuntime):
    """Signed 8-bit matrices with a scale per output, unsigned 8-bit activations with a scale per
    position.

    Activations are not scaled per tensor, because then a probability would depend on the other
    requests of its batch (docs/adr/0007). Weights stay within LEVELS: AVX2, and AVX-512 without
    VNNI, add pairs of products in 16 bits, and 2 * 255 * 64 < 2^15 cannot saturate.
    """

    LEVELS = 64
    ZERO = 128  # zero point of the unsigned activations
    SPAN = 127

    def __init__(self, graph: Graph, config: LlamaConfig, weights: Weights, positions: int) -> None:
        super().__init__(graph, config, weights, positions)
        self._bytes: dict[str, tuple[str, str]] = {}

    def embed(self, tokens: str) -> str:
        """See Portable; stored in 8 bits with a scale per token, a quarter of the size."""
        graph = self.graph
        table = self._weights["model.embed_tokens.weight"]
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-9) / 127
        stored = graph.weight("embed_tokens.int8", np.round(table / scale).astype(np.int8))
        scales = graph.weight("embed_tokens.scale", scale.astype(np.float32))
        rows = graph.op("Cast", graph.op("Gather", stored, tokens), to=FLOAT)
        return str(graph.op("Mul", rows, graph.op("Gather", scales, tokens)))

    def linear(self, x: str, layer: int, *names: str) -> str:
        """See Portable."""
        graph = self.graph
        name, matrix = self._matrix(layer, names)
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-9) / self.LEVELS
        stored = graph.weight(f"{name}.int8", np.round(matrix / scale).astype(np.int8))
        scales = graph.weight(f"{name}.scale", scale.astype(np.float32))
        rows, largest = self._quantized(x)
        step, zero = graph.const(1 / self.SPAN, np.float32), graph.const(self.ZERO, np.uint8)
        product = graph.op(
            "MatMulIntegerToFloat", rows, stored, step, scales, zero, domain=MICROSOFT
        )
        return str(graph.op("Mul", product, largest))

    def _quantized(self, x: str) -> tuple[str, str]:
        """x divided by the largest magnitude of each position, in 8 bits, and that magnitude
        (B, S, 1)."""
        if x not in self._bytes:
            graph = self.graph
            largest = graph.op("ReduceMax", graph.op("Abs", x), axes=[-1], keepdims=1)
            largest = graph.op("Max", largest, graph.const(1e-9, np.float32))  # a row of zeros
            step, zero = graph.const(1 / self.SPAN, np.float32), graph.const(self.ZERO, np.uint8)
            rows = graph.op("QuantizeLinear", graph.op("Div", x, largest), step, zero)
            self._bytes[x] = rows, largest
        return self._bytes[x]
