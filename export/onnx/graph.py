"""Build ONNX graphs node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
MASKED = np.float32(-1e9)


class Graph:
    """An ONNX graph under construction. Methods that add a node return the name of its result."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._domains = {""}
        self._weights: list[onnx.TensorProto] = []
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: int, shape: list[str | int]) -> str:
        """Add a graph input. Strings in `shape` name dynamic axes."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, value: str, shape: list[str | int]) -> None:
        """Make `value` the graph output `name`, float32."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, FLOAT, shape))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node and return its result, or a tuple of results if `outputs` > 1."""
        stem = f"{kind}_{len(self._nodes)}"
        names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=stem, **attributes))
        self._domains.add(attributes.get("domain", ""))
        return names[0] if outputs == 1 else tuple(names)

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a named initializer."""
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """Add a small constant. Equal constants are stored once."""
        array = np.asarray(value, dtype=dtype)
        key = (array.tobytes(), array.dtype.str, array.shape)
        if key not in self._constants:
            self._constants[key] = self.weight(f"const_{len(self._constants)}", array)
        return self._constants[key]

    def dim(self, value: str, axis: int) -> str:
        """Return the size of one axis, shape (1,)."""
        return str(self.op("Shape", value, start=axis, end=axis + 1))

    def shape(self, *parts: str | int) -> str:
        """Concatenate integers and results of dim() into a shape vector."""
        vectors = [p if isinstance(p, str) else self.const([p]) for p in parts]
        return str(self.op("Concat", *vectors, axis=0))

    def reshape(self, value: str, *parts: str | int) -> str:
        """Reshape to integers and results of dim(). 0 keeps an axis, -1 is inferred."""
        if all(isinstance(p, int) for p in parts):
            return str(self.op("Reshape", value, self.const(list(parts))))
        return str(self.op("Reshape", value, self.shape(*parts)))

    def slice_from(self, value: str, start: int, axis: int) -> str:
        """Slice from `start` to the end of `axis`."""
        parts = (self.const([p]) for p in (start, np.iinfo(np.int64).max, axis))
        return str(self.op("Slice", value, *parts))

    def arange(self, count: str) -> str:
        """Return 0, 1, ..., count - 1, for a `count` of shape (1,)."""
        scalar = self.op("Squeeze", count, self.const([0]))
        return str(self.op("Range", self.const(0), scalar, self.const(1)))

    def save(self, path: Path) -> None:
        """Check the graph and write it. Raises ValueError above 2 GB, the limit of protobuf."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._weights
        )
        versions = [helper.make_opsetid(d, 1 if d else OPSET) for d in sorted(self._domains)]
        model = helper.make_model(graph, opset_imports=versions, producer_name="modelsat")
        model.ir_version = 10
        if self._domains == {""}:  # the checker knows standard operators only
            onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
