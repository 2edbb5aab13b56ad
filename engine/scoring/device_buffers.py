"""The memory of a TensorRT backend: allocated once at start, never grown."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.scoring.backend import Ints
from engine.scoring.cuda_runtime import Cuda
from engine.scoring.shapes import Shape
from engine.scoring.tensorrt_plan import Addresses, Plan


class Memory:
    """What is allocated on the device and pinned on the host, to be freed together."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: list[int] = []
        self._pinned: list[int] = []

    def device(self, size: int) -> int:
        """`size` bytes; the address."""
        self._device.append(self._cuda.allocate(max(size, 1)))
        return self._device[-1]

    def pinned(self, count: int, kind: DTypeLike) -> NDArray[Any]:
        """(count,) of the host, for copies; not to be used after close()."""
        size = count * np.dtype(kind).itemsize
        self._pinned.append(self._cuda.allocate_pinned(size))
        raw = (ctypes.c_byte * size).from_address(self._pinned[-1])
        return np.ctypeslib.as_array(raw).view(kind)

    def close(self) -> None:
        """Free everything."""
        while self._device:
            self._cuda.free(self._device.pop())
        while self._pinned:
            self._cuda.free_pinned(self._pinned.pop())


class Buffers:
    """For the largest shapes of a plan: what goes up and comes down, pinned on the host; the same
    on the device, and what stays there. allowed, penalty: of the kernel, which ranks nobody here.
    """

    def __init__(self, memory: Memory, plan: Plan) -> None:
        most = plan.profile
        batch, rows, width = most.batch.most, most.rows.most, plan.width
        self.tokens = memory.pinned(batch * most.length.most, np.int64)
        self.lengths = memory.pinned(batch, np.int64)
        self.rows = memory.pinned(rows, np.int32)
        self.weight = memory.pinned(width, np.float32)
        self.p = memory.pinned(batch * rows, np.float32)
        self.at = Addresses(
            tokens=memory.device(self.tokens.nbytes),
            lengths=memory.device(self.lengths.nbytes),
            embeddings=memory.device(rows * width * 4),
            hidden=memory.device(batch * rows * width * plan.itemsize),
            scratch=memory.device(plan.scratch if plan.captures else 0),
        )
        self.device_rows = memory.device(self.rows.nbytes)
        self.device_weight = memory.device(self.weight.nbytes)
        self.device_p = memory.device(self.p.nbytes)
        self.allowed = memory.device(batch * rows)
        self.penalty = memory.device(self.p.nbytes)

    def fill(self, tokens: Sequence[Ints], rows: Ints, shape: Shape) -> None:
        """Padding: tokens 0, which are masked; requests of them; the first candidate again."""
        ids = self.tokens[: shape.batch * shape.length].reshape(shape.batch, shape.length)
        ids[:] = 0
        self.lengths[: shape.batch] = shape.length
        for i, row in enumerate(tokens):
            ids[i, : len(row)] = row
            self.lengths[i] = len(row)
        numbers = self.rows[: shape.rows].reshape(shape.candidates, shape.variants)
        numbers[:] = rows[0] * shape.variants + np.arange(shape.variants)
        numbers[: len(rows)] = rows[:, None] * shape.variants + np.arange(shape.variants)
