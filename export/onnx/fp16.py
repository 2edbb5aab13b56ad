"""Build graphs with fp16 matrix products, for TensorRT and CUDA.

Matrices and the token embedding table are stored in fp16, and both operands of every matrix product
are cast to it. Everything else stays fp32: norms, softmax, activations, and the residual stream,
whose largest values would lose precision. The graph is strongly typed: runtimes compute in the
types that it names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from engine.api.errors import BundleError
from export.onnx.graph import FLOAT, Graph


class HalfGraph(Graph):
    """A Graph whose MatMul, and whose Gather from a stored table, are fp16."""

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """See Graph."""
        stored = {w.name for w in self._weights}
        table = kind == "Gather" and inputs[0] in stored
        if kind != "MatMul" and not table:
            return super().op(kind, *inputs, outputs=outputs, **attributes)
        operands = inputs[:1] if table else inputs
        halves = [self._half(x, x in stored) for x in operands]
        result = super().op(kind, *halves, *inputs[len(halves) :], **attributes)
        return super().op("Cast", result, to=FLOAT)

    def _half(self, value: str, stored: bool) -> str:
        if not stored:
            return str(super().op("Cast", value, to=TensorProto.FLOAT16))
        index = next(i for i, w in enumerate(self._weights) if w.name == value)
        array = numpy_helper.to_array(self._weights[index])
        self._weights[index] = _to_half(array, value)
        return value


def _to_half(array: np.ndarray[Any, Any], name: str) -> onnx.TensorProto:
    largest = np.abs(array).max()
    if largest > np.finfo(np.float16).max:
        raise BundleError(
            f"{name} holds {largest:.3g}, which overflows fp16; leave fp16 out of --formats."
        )
    return numpy_helper.from_array(array.astype(np.float16), name)
