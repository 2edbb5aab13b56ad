"""The memory of a TensorRT backend: allocated once at start, never grown."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.api.candidate import MAX_CANDIDATES
from engine.api.errors import UnavailableError
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.tensorrt.cuda import Cuda
from engine.inference.tensorrt.plan import Addresses, Plan
from engine.inference.tensorrt.shapes import Shape


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

    def fill(self, tokens: Sequence[Int64Array], rows: Int64Array, shape: Shape) -> None:
        """Padding: tokens 0, which are masked; requests of them; the first candidate again."""
        ids = self.tokens[: shape.batch * shape.length].reshape(shape.batch, shape.length)
        ids[:] = 0
        self.lengths[: shape.batch] = shape.length
        for i, row in enumerate(tokens):
            ids[i, : len(row)] = row
            self.lengths[i] = len(row)
        numbers = self.rows[: shape.candidates]
        numbers[:] = rows[0]
        numbers[: len(rows)] = rows


log = logging.getLogger(__name__)

MAX_ROWS = 4 * MAX_CANDIDATES  # of a table


@dataclass(eq=False)
class _Slot:
    """device: address of (MAX_ROWS, D). staging: pinned, the same size. uploaded: an event."""

    device: int
    staging: Float32Array
    uploaded: int
    table: Float32Array | None = field(default=None, repr=False)


class DeviceTables:
    """acquire() and release() from one thread at a time, prepare() from any."""

    def __init__(self, cuda: Cuda, memory: Memory, width: int) -> None:
        self._cuda = cuda
        self._stream = cuda.stream()
        size = MAX_ROWS * width
        # The one used last stands last.
        self._slots = [
            _Slot(memory.device(4 * size), memory.pinned(size, np.float32), cuda.event())
            for _ in range(2)
        ]
        self._read: _Slot | None = None
        self._lock = Lock()

    def prepare(self, table: Float32Array) -> None:
        """Begin to upload `table` (M, D) where a buffer is free now; see Backend.prepare."""
        if self._find(table) or table.size > len(self._slots[0].staging):
            return
        if not self._lock.acquire(blocking=False):
            return  # another thread uploads; who reads the table will see to it
        try:
            if not self._find(table):
                self._upload(self._spare(), table)
        except UnavailableError as error:
            log.warning("a table was not uploaded ahead, its first request will: %s", error)
        finally:
            self._lock.release()

    def acquire(self, table: Float32Array, stream: int) -> int:
        """The device address of `table` for what is queued on `stream` from here on; it stays
        until release().

        Raises UnavailableError where the table is too large or CUDA fails.
        """
        if table.size > len(self._slots[0].staging):
            raise UnavailableError(
                f"a table has {len(table)} rows, a GPU is given at most"
                f" {MAX_ROWS}; remove candidates."
            )
        with self._lock:
            slot = self._find(table)
            if slot is None:
                slot = self._spare()
                self._upload(slot, table)
            self._read = slot
            self._use(slot)
            self._cuda.after(stream, slot.uploaded)
            return slot.device

    def release(self) -> None:
        """What was queued since acquire() is done, or given up."""
        self._read = None

    def close(self) -> None:
        """Once nothing is queued any more; the buffers are the caller's memory."""
        self._cuda.wait(self._stream)
        for slot in self._slots:
            slot.table = None
            self._cuda.destroy_event(slot.uploaded)
        self._cuda.destroy_stream(self._stream)

    def _find(self, table: Float32Array) -> _Slot | None:
        return next((slot for slot in self._slots if slot.table is table), None)

    def _spare(self) -> _Slot:
        return next(slot for slot in self._slots if slot is not self._read)

    def _use(self, slot: _Slot) -> None:
        self._slots = [other for other in self._slots if other is not slot] + [slot]

    def _upload(self, slot: _Slot, table: Float32Array) -> None:
        # An earlier upload of this buffer may still read its staging: no harm, because this one
        # comes after it on the same stream, and nobody reads the buffer before this one is done.
        slot.table = None  # until all of it is queued
        slot.staging[: table.size] = table.reshape(-1)
        self._cuda.copy(slot.device, slot.staging.ctypes.data, table.nbytes, self._stream)
        self._cuda.record(slot.uploaded, self._stream)
        slot.table = table
        self._use(slot)
