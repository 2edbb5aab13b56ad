"""What a decoder layer is made of, in three dialects of ONNX.

Portable     standard operators of opset 17: TensorRT reads it, export/onnx/fp16.py turns it into
fp16.
OnnxRuntime  the same with ONNX Runtime's fused norm, rotation and activation, for CPU and CUDA.
Int8         OnnxRuntime with 8-bit matrices and a table of 8-bit embeddings.

Letters: N sequences, S rows of each, D width, H head width, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.api.errors import BundleError
from export.onnx.graph import FLOAT, Graph

Arrays = Mapping[str, NDArray[np.float32]]
MICROSOFT = "com.microsoft"


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


class Portable:
    """Standard operators. Queries come scaled by H^-1/2, which is folded into their matrix."""

    def __init__(self, graph: Graph, config: LlamaConfig, arrays: Arrays, positions: int) -> None:
        """positions: rows are fewer than this many, and at smaller positions."""
        self.g = graph
        self.config = config
        self.positions = positions
        self._arrays = arrays

    def embed(self, tokens: str) -> str:
        """(N, S) -> (N, S, D)."""
        return str(self.g.op("Gather", self._weight("model.embed_tokens"), tokens))

    def add_norm(self, x: str, delta: str, layer: int, name: str) -> tuple[str, str]:
        """x + delta, and its RMSNorm (Zhang & Sennrich, 2019). No delta before the first layer."""
        g = self.g
        x = g.op("Add", x, delta) if delta else x
        square = g.op("ReduceMean", g.op("Mul", x, x), axes=[-1], keepdims=1)
        size = g.op("Sqrt", g.op("Add", square, g.const(self.config.eps, np.float32)))
        return x, g.op("Mul", g.op("Div", x, size), self._weight(f"model.layers.{layer}.{name}"))

    def linear(self, x: str, layer: int, *names: str) -> str:
        """x times the matrices of `names` side by side."""
        return str(self.g.op("MatMul", x, self.g.weight(*self._matrix(layer, names))))

    def rotation(self, positions: str) -> Sequence[str]:
        """What rotate() needs of positions (N, S): here cosines and sines (N, S, 1, H)."""
        g = self.g
        places = g.op("Unsqueeze", g.op("Cast", positions, to=FLOAT), g.const([2]))
        angle = g.op("Mul", places, g.const(self._frequencies(), np.float32))
        both = g.op("Unsqueeze", g.op("Concat", angle, angle, axis=-1), g.const([2]))
        return g.op("Cos", both), g.op("Sin", both)

    def rotate(self, x: str, turn: Sequence[str]) -> str:
        """Rotary position embedding (Su et al., 2021) of x (N, S, heads * H)."""
        g = self.g
        heads = g.reshape(x, 0, 0, -1, self.config.head_width)
        first, second = g.op("Split", heads, outputs=2, axis=-1)
        turned = g.op("Concat", g.op("Neg", second), first, axis=-1)
        heads = g.op("Add", g.op("Mul", heads, turn[0]), g.op("Mul", turned, turn[1]))
        return g.reshape(heads, 0, 0, g.dim(x, 2))

    def gated(self, gate: str, up: str) -> str:
        """SiLU(gate) * up."""
        g = self.g
        return str(g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up))

    def _frequencies(self) -> NDArray[np.float64]:
        half = self.config.head_width // 2
        return np.asarray(self.config.theta ** (-np.arange(half, dtype=np.float64) / half))

    def _weight(self, name: str) -> str:
        return self.g.weight(f"{name}.weight", self._arrays[f"{name}.weight"])

    def _matrix(self, layer: int, names: Sequence[str]) -> tuple[str, NDArray[np.float32]]:
        """A name, and the (in, out) matrix of `names` side by side."""
        parts = [self._arrays[f"model.layers.{layer}.{name}.weight"] for name in names]
        scale = np.float32(self.config.head_width**-0.5)
        scaled = [p * scale if "q_proj" in n else p for p, n in zip(parts, names, strict=True)]
        return f"model.layers.{layer}.{'+'.join(names)}", np.concatenate(scaled).T


class OnnxRuntime(Portable):
    """ONNX Runtime's own operators where they fuse several standard ones."""

    def add_norm(self, x: str, delta: str, layer: int, name: str) -> tuple[str, str]:
        """See Portable."""
        g, eps = self.g, self.config.eps
        gain = self._weight(f"model.layers.{layer}.{name}")
        if not delta:
            return x, g.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=eps)
        kind = "SkipSimplifiedLayerNormalization"
        outputs = g.op(kind, x, delta, gain, outputs=4, epsilon=eps, domain=MICROSOFT)
        return outputs[3], outputs[0]

    def rotation(self, positions: str) -> Sequence[str]:
        """Positions (N, S), and tables of cosines and sines (positions, H / 2)."""
        angle = np.arange(self.positions)[:, None] * self._frequencies()
        tables = (self.g.const(f(angle), np.float32) for f in (np.cos, np.sin))
        return positions, *tables

    def rotate(self, x: str, turn: Sequence[str]) -> str:
        """See Portable. The operator wants no sequence longer than its tables."""
        return str(self.g.op("RotaryEmbedding", x, *turn, domain=MICROSOFT))

    def gated(self, gate: str, up: str) -> str:
        """See Portable; with alpha 1, QuickGelu is SiLU."""
        g = self.g
        return str(g.op("Mul", g.op("QuickGelu", gate, alpha=1.0, domain=MICROSOFT), up))


class Int8(OnnxRuntime):
    """Matrices in signed 8 bits with a scale per output, rows in unsigned 8 bits with a scale each.

    A scale per row and not per tensor: an answer must not depend on what shares its batch
    (docs/adr/0007). Weights stay within LEVELS, so that the sums of pairs which AVX2 and AVX-512
    without VNNI keep in 16 bits do not saturate: 2 * 255 * 64 < 2^15.
    """

    LEVELS = 64
    ZERO = 128  # of a row's unsigned bytes
    SPAN = 127

    def __init__(self, graph: Graph, config: LlamaConfig, arrays: Arrays, positions: int) -> None:
        super().__init__(graph, config, arrays, positions)
        self._bytes: dict[str, tuple[str, str]] = {}

    def embed(self, tokens: str) -> str:
        """See Portable; a quarter of the file's size, one scale per token."""
        g = self.g
        table = self._arrays["model.embed_tokens.weight"]
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-9) / 127
        stored = g.weight("embed_tokens.int8", np.round(table / scale).astype(np.int8))
        scales = g.weight("embed_tokens.scale", scale.astype(np.float32))
        rows = g.op("Cast", g.op("Gather", stored, tokens), to=FLOAT)
        return str(g.op("Mul", rows, g.op("Gather", scales, tokens)))

    def linear(self, x: str, layer: int, *names: str) -> str:
        """See Portable."""
        g = self.g
        name, matrix = self._matrix(layer, names)
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-9) / self.LEVELS
        stored = g.weight(f"{name}.int8", np.round(matrix / scale).astype(np.int8))
        scales = g.weight(f"{name}.scale", scale.astype(np.float32))
        rows, largest = self._quantised(x)
        step, zero = g.const(1 / self.SPAN, np.float32), g.const(self.ZERO, np.uint8)
        product = g.op("MatMulIntegerToFloat", rows, stored, step, scales, zero, domain=MICROSOFT)
        return str(g.op("Mul", product, largest))

    def _quantised(self, x: str) -> tuple[str, str]:
        """Rows of x over their largest magnitude in bytes, and that magnitude (N, S, 1)."""
        if x not in self._bytes:
            g = self.g
            largest = g.op("ReduceMax", g.op("Abs", x), axes=[-1], keepdims=1)
            largest = g.op("Max", largest, g.const(1e-9, np.float32))  # a row of zeros
            step, zero = g.const(1 / self.SPAN, np.float32), g.const(self.ZERO, np.uint8)
            rows = g.op("QuantizeLinear", g.op("Div", x, largest), step, zero)
            self._bytes[x] = rows, largest
        return self._bytes[x]
