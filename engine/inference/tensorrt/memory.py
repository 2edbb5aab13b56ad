"""Memory of the TensorRT backend: allocated once at start, never grown."""

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
from engine.inference.tensorrt.plan import BackboneEngine, DeviceAddresses
from engine.inference.tensorrt.shapes import ForwardShape

# NumPy's types of hidden rows by score.h's codes; bfloat16 as its bits.
HIDDEN_TYPES = (np.float32, np.float16, np.uint16)


class Memory:
    """Owns device memory and pinned host memory, and frees it together."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: list[int] = []
        self._pinned: list[int] = []

    def device(self, size: int) -> int:
        """Allocate `size` bytes on the device and return the address."""
        self._device.append(self._cuda.allocate(max(size, 1)))
        return self._device[-1]

    def pinned(self, count: int, kind: DTypeLike) -> NDArray[Any]:
        """Allocate a pinned array (count,) on the host, for copies. It is invalid after close()."""
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
    """Buffers for the largest shapes that an engine accepts.

    Inputs and results have a pinned buffer on the host and one on the device. allowed and penalty
    are arguments of the kernel, which ranks no candidates here.
    """

    def __init__(self, memory: Memory, engine: BackboneEngine) -> None:
        profile = engine.profile
        batch, rows, width = profile.batch.max, profile.candidates.max, engine.width
        self.tokens = memory.pinned(batch * profile.length.max, np.int64)
        self.lengths = memory.pinned(batch, np.int64)
        self.rows = memory.pinned(rows, np.int32)
        self.weight = memory.pinned(width, np.float32)
        self.p = memory.pinned(batch * rows, np.float32)
        self.embeddings = memory.pinned(batch * width, HIDDEN_TYPES[engine.dtype])
        self.addresses = DeviceAddresses(
            tokens=memory.device(self.tokens.nbytes),
            lengths=memory.device(self.lengths.nbytes),
            embeddings=memory.device(rows * width * 4),
            hidden=memory.device(batch * rows * width * engine.itemsize),
            scratch=memory.device(engine.scratch if engine.capture_graphs else 0),
        )
        self.device_rows = memory.device(self.rows.nbytes)
        self.device_weight = memory.device(self.weight.nbytes)
        self.device_p = memory.device(self.p.nbytes)
        self.allowed = memory.device(batch * rows)
        self.penalty = memory.device(self.p.nbytes)

    def fill(self, tokens: Sequence[Int64Array], rows: Int64Array, shape: ForwardShape) -> None:
        """Write the inputs of a forward pass to the host buffers, padded to `shape`.

        Prompts are padded with token 0, which is masked; the batch with prompts of token 0;
        the candidates with the first one again.
        """
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

MAX_ROWS = 4 * MAX_CANDIDATES  # of a table; room for a larger limit on candidates
NULL_ROW = MAX_ROWS  # after every table: the null candidate's zeros


@dataclass(eq=False)
class _Slot:
    """A buffer for one table. device: address of (MAX_ROWS + 1, D) float32, of which NULL_ROW is
    zero. staging: pinned (MAX_ROWS, D). uploaded: an event."""

    device: int
    staging: Float32Array
    uploaded: int
    table: Float32Array | None = field(default=None, repr=False)


class DeviceTables:
    """Keep the two most recently used tables on the device.

    acquire() and release() are called from one thread at a time, prefetch() from any thread.
    """

    def __init__(self, cuda: Cuda, memory: Memory, width: int) -> None:
        self._cuda = cuda
        self._stream = cuda.create_stream()
        size = MAX_ROWS * width
        # Ordered by use, the most recent one last.
        self._slots = [
            _Slot(
                memory.device(4 * (size + width)),
                memory.pinned(size, np.float32),
                cuda.create_event(),
            )
            for _ in range(2)
        ]
        for slot in self._slots:  # on the stream of uploads, so before any forward pass reads it
            cuda.fill(slot.device + 4 * size, 0, 4 * width, self._stream)
        self._in_use: _Slot | None = None
        self._lock = Lock()

    def prefetch(self, table: Float32Array) -> None:
        """Begin to upload `table` (M, D) if a buffer is free; see Backend.prefetch_table."""
        if self._find(table) or table.size > len(self._slots[0].staging):
            return
        if not self._lock.acquire(blocking=False):
            return  # another thread uploads; acquire() uploads this table if necessary
        try:
            if not self._find(table):
                self._upload(self._spare(), table)
        except UnavailableError as error:
            log.warning("could not prefetch a table, its first request will upload it: %s", error)
        finally:
            self._lock.release()

    def acquire(self, table: Float32Array, stream: int) -> int:
        """Return the device address of `table` for the work queued on `stream` from now on.

        The table stays on the device until release(). Raises UnavailableError if it is too large or
        CUDA fails.
        """
        if table.size > len(self._slots[0].staging):
            raise UnavailableError(
                f"The table has {len(table)} candidates, the GPU has room for {MAX_ROWS};"
                " remove candidates."
            )
        with self._lock:
            slot = self._find(table)
            if slot is None:
                slot = self._spare()
                self._upload(slot, table)
            self._in_use = slot
            self._mark_used(slot)
            self._cuda.wait_event(stream, slot.uploaded)
            return slot.device

    def release(self) -> None:
        """Declare that the work queued since acquire() has ended."""
        self._in_use = None

    def close(self) -> None:
        """Free events and stream. Nothing may be queued. The buffers belong to Memory."""
        self._cuda.synchronize(self._stream)
        for slot in self._slots:
            slot.table = None
            self._cuda.destroy_event(slot.uploaded)
        self._cuda.destroy_stream(self._stream)

    def _find(self, table: Float32Array) -> _Slot | None:
        return next((slot for slot in self._slots if slot.table is table), None)

    def _spare(self) -> _Slot:
        return next(slot for slot in self._slots if slot is not self._in_use)

    def _mark_used(self, slot: _Slot) -> None:
        self._slots = [other for other in self._slots if other is not slot] + [slot]

    def _upload(self, slot: _Slot, table: Float32Array) -> None:
        # An earlier upload of this buffer may still read the staging memory. That does no harm:
        # this upload follows it on the same stream, and the buffer is read only after this one.
        slot.table = None  # until the whole upload is queued
        slot.staging[: table.size] = table.reshape(-1)
        self._cuda.copy(slot.device, slot.staging.ctypes.data, table.nbytes, self._stream)
        self._cuda.record(slot.uploaded, self._stream)
        slot.table = table
        self._mark_used(slot)
