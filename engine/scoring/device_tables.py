"""The embeddings of two tables on the device: one that is read, one that is being filled.

A table is known by the identity of its array, which is kept, so that no other can take its place.
A new one is uploaded on a stream of its own into the buffer that no forward reads; requests in
flight keep the other one. Only the first forward that reads the new table waits for its upload, on
the device.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from engine.contract.candidate import MAX_CANDIDATES
from engine.contract.errors import UnavailableError
from engine.scoring.backend import Floats
from engine.scoring.cuda_runtime import Cuda
from engine.scoring.device_buffers import Memory

log = logging.getLogger(__name__)

MAX_ROWS = 4 * MAX_CANDIDATES  # of a table, variants counted


@dataclass(eq=False)
class _Slot:
    """device: address of (MAX_ROWS, D). staging: pinned, the same size. uploaded: an event."""

    device: int
    staging: Floats
    uploaded: int
    table: Floats | None = field(default=None, repr=False)


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

    def prepare(self, table: Floats) -> None:
        """Begin to upload `table` (M, V, D) where a buffer is free now; see Backend.prepare."""
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

    def acquire(self, table: Floats, stream: int) -> int:
        """The device address of `table` for what is queued on `stream` from here on; it stays
        until release().

        Raises UnavailableError where the table is too large or CUDA fails.
        """
        if table.size > len(self._slots[0].staging):
            raise UnavailableError(
                f"a table has {table.shape[0] * table.shape[1]} rows, a GPU is given at most"
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

    def _find(self, table: Floats) -> _Slot | None:
        return next((slot for slot in self._slots if slot.table is table), None)

    def _spare(self) -> _Slot:
        return next(slot for slot in self._slots if slot is not self._read)

    def _use(self, slot: _Slot) -> None:
        self._slots = [other for other in self._slots if other is not slot] + [slot]

    def _upload(self, slot: _Slot, table: Floats) -> None:
        # An earlier upload of this buffer may still read its staging: no harm, because this one
        # comes after it on the same stream, and nobody reads the buffer before this one is done.
        slot.table = None  # until all of it is queued
        slot.staging[: table.size] = table.reshape(-1)
        self._cuda.copy(slot.device, slot.staging.ctypes.data, table.nbytes, self._stream)
        self._cuda.record(slot.uploaded, self._stream)
        slot.table = table
        self._use(slot)
