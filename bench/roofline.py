"""Count and run the matrix products that a request needs: a lower bound of its time.

Shapes: S rows of a full layer (tokens read and candidates), M candidates, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from export.onnx.graph import FLOAT, Graph


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama backbone. keys: width of all key/value heads. inner: width of the MLP."""

    layers: int
    width: int
    keys: int
    inner: int
    head: int

    def operations(self, rows: int, candidates: int, seen: int) -> int:
        """Return the multiplications and additions of the needed products.

        The last layer computes queries, attention output and MLP of candidate rows alone, the
        others of all `rows`. seen: number of keys that a row attends to.
        """
        d, k, f = self.width, self.keys, self.inner
        attention = 2 * 2 * d * seen
        each = 2 * (2 * d * d + 2 * d * k + 3 * d * f) + attention
        last = rows * 2 * 2 * d * k + candidates * (2 * (2 * d * d + 3 * d * f) + attention)
        return (self.layers - 1) * rows * each + last

    def linear(self, rows: int, candidates: int) -> list[tuple[int, int, int]]:
        """Return (rows, inputs, outputs) of each product with a matrix, attention not included.

        Matrices with the same input are one, as the fused forward pass has them.
        """
        d, k, f = self.width, self.keys, self.inner
        found = []
        for layer in range(self.layers):
            last = layer == self.layers - 1
            m = candidates if last else rows
            found += [(rows, d, 2 * k), (m, d, d)] if last else [(rows, d, d + 2 * k)]
            found += [(m, d, d), (m, d, 2 * f), (m, f, d)]
        return found

    def bytes(self, width: float) -> float:
        """Return the bytes of all matrices, at `width` bytes a weight."""
        d, k, f = self.width, self.keys, self.inner
        return self.layers * (2 * d * d + 2 * d * k + 3 * d * f) * width


def products(shape: Shape, rows: int, candidates: int, seen: int, path: Path) -> None:
    """Write a graph of those products alone, each with its own weights.

    Inputs: x (rows, D), and keys (K, H, seen) and values (K, seen, H) of a layer's attention.
    """
    g, random = Graph("products"), np.random.default_rng(0)
    d, k, f, h = shape.width, shape.keys, shape.inner, shape.head

    def product(x: str, into: int, out: int) -> str:
        matrix = (random.standard_normal((into, out)) * into**-0.5).astype(np.float32)
        return str(g.op("MatMul", x, g.weight(f"w{len(g._weights)}", matrix)))

    x = g.input("x", FLOAT, [rows, d])
    keys, values = (
        g.input("keys", FLOAT, [k // h, h, seen]),
        g.input("values", FLOAT, [k // h, seen, h]),
    )
    unused = []
    for layer in range(shape.layers):
        unused.append(product(x, d, 2 * k))
        if layer == shape.layers - 1:
            x = g.slice_from(x, rows - candidates, axis=0)
        # Query heads that share keys are stacked as in the served graph: (K, G * rows, H).
        query = g.reshape(product(x, d, d), k // h, -1, h)
        mixed = g.op("MatMul", g.op("MatMul", query, keys), values)
        mixed = product(g.reshape(mixed, -1, d), d, d)
        gate, up = product(mixed, d, f), product(mixed, d, f)
        unused.append(up)
        x = product(gate, f, d)
    for number, value in enumerate(unused):
        g.output(f"unused_{number}", value, [None, None])  # type: ignore[list-item]
    g.output("y", x, [candidates, d])
    g.save(path)


def session(path: Path, threads: int) -> ort.InferenceSession:
    """Open the graph with the options of the server."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
