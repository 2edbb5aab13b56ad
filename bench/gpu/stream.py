"""Keep arrays and time on one stream of the GPU, without torch: memory checkers start faster."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.api.errors import UnavailableError
from engine.inference.tensorrt.cuda import Cuda
from engine.inference.tensorrt.memory import Memory

POISON = 0x7F  # a byte that makes floats and integers no right answer could be
STAGING = 160 << 20  # bytes of pinned memory that arrays pass through


class TimedStream:
    """One stream, memory on its GPU, and CUDA events that keep time. staging: bytes."""

    def __init__(self, cuda: Cuda, staging: int = STAGING) -> None:
        self.cuda = cuda
        self.memory, self._kept = Memory(cuda), Memory(cuda)
        self.handle = cuda.create_stream()
        self._staging = self._kept.pinned(staging, np.uint8)
        self._library = cuda._library
        self._events = [self._timing_event(), self._timing_event()]

    def put(self, array: NDArray[Any]) -> int:
        """Copy `array` to new memory of the GPU and return the address."""
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        address = self.memory.device(raw.size)
        self._staging[: raw.size] = raw
        self.cuda.copy(address, self._staging.ctypes.data, raw.size, self.handle)
        self.wait()
        return address

    def poisoned(self, size: int) -> int:
        """Return the address of `size` bytes, none of them a right answer."""
        address = self.memory.device(size)
        self.cuda.fill(address, POISON, size, self.handle)
        return address

    def get(self, address: int, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
        """Return what stands at `address` once the stream is done."""
        array = np.empty(shape, kind)
        self.cuda.copy(self._staging.ctypes.data, address, array.nbytes, self.handle)
        self.wait()
        array.reshape(-1).view(np.uint8)[:] = self._staging[: array.nbytes]
        return array

    def wait(self) -> None:
        """Wait for all work on the stream."""
        self.cuda.synchronize(self.handle)

    def start(self) -> None:
        """Begin to keep time on the stream."""
        self.cuda.record(self._events[0], self.handle)

    def elapsed_ms(self) -> float:
        """Wait, and return the milliseconds of the stream since start()."""
        self.cuda.record(self._events[1], self.handle)
        self.wait()
        found = ctypes.c_float()
        elapsed = self._library.cudaEventElapsedTime
        elapsed.argtypes = [ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_void_p]
        if code := elapsed(ctypes.byref(found), *self._events):
            raise UnavailableError(f"cudaEventElapsedTime failed (CUDA error {code}).")
        return found.value

    def clear(self) -> None:
        """Free what put(), poisoned() and the caller took from `memory`."""
        self.wait()
        self.memory.close()

    def close(self) -> None:
        """Free everything."""
        self.clear()
        for event in self._events:
            self.cuda.destroy_event(event)
        self.cuda.destroy_stream(self.handle)
        self._kept.close()

    def _timing_event(self) -> int:
        """Create an event that keeps time, as those of Cuda.create_event() do not."""
        made = ctypes.c_void_p()
        if code := self._library.cudaEventCreateWithFlags(ctypes.byref(made), 0):
            raise UnavailableError(f"cudaEventCreateWithFlags failed (CUDA error {code}).")
        return made.value or 0
