"""The CUDA runtime through ctypes: what one stream of work on one GPU needs, and no more.

Every call that fails raises UnavailableError with CUDA's own words. Pointers, streams, events and
graphs are the integers that CUDA hands out. Device 0 is used; CUDA_VISIBLE_DEVICES says which.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.api.errors import BundleError, UnavailableError

VERSIONS = (13, 12)
_P, _I, _U, _Z = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
_OUT, _OUT_INT = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
_CALLS = {
    "cudaGetDeviceCount": (_OUT_INT,),
    "cudaDeviceGetAttribute": (_OUT_INT, _I, _I),
    "cudaMalloc": (_OUT, _Z),
    "cudaFree": (_P,),
    "cudaMallocHost": (_OUT, _Z),
    "cudaFreeHost": (_P,),
    "cudaMemcpyAsync": (_P, _P, _Z, _I, _P),
    "cudaMemsetAsync": (_P, _I, _Z, _P),
    "cudaStreamCreateWithFlags": (_OUT, _U),
    "cudaStreamSynchronize": (_P,),
    "cudaStreamWaitEvent": (_P, _P, _U),
    "cudaStreamDestroy": (_P,),
    "cudaEventCreateWithFlags": (_OUT, _U),
    "cudaEventRecord": (_P, _P),
    "cudaEventDestroy": (_P,),
    "cudaStreamBeginCapture": (_P, _I),
    "cudaStreamEndCapture": (_P, _OUT),
    "cudaGraphInstantiateWithFlags": (_OUT, _P, ctypes.c_ulonglong),
    "cudaGraphLaunch": (_P, _P),
    "cudaGraphDestroy": (_P,),
    "cudaGraphExecDestroy": (_P,),
    "cudaGetLastError": (),
}
_MEMCPY_DEFAULT = 4  # the direction follows from the addresses
_STREAM_NON_BLOCKING, _EVENT_DISABLE_TIMING, _CAPTURE_THREAD_LOCAL = 1, 2, 1
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


class Cuda:
    """The functions of one libcudart."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises BundleError where a function is missing."""
        try:
            for name, arguments in _CALLS.items():
                getattr(library, name).argtypes = arguments
            library.cudaGetErrorString.argtypes = [_I]
            library.cudaGetErrorString.restype = ctypes.c_char_p
        except AttributeError as error:
            raise BundleError(f"this libcudart is too old: {error}; install CUDA 12 or 13.") from (
                error
            )
        self._library = library

    def devices(self) -> int:
        """How many GPUs there are; raises UnavailableError where there is no driver."""
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    def capability(self) -> str:
        """Of device 0, as in the names of plans: "89"."""
        found = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            found.append(str(value.value))
        return "".join(found)

    def allocate(self, size: int) -> int:
        """`size` bytes on the device."""
        return self._new("cudaMalloc", size)

    def free(self, pointer: int) -> None:
        """What allocate gave."""
        self._call("cudaFree", pointer)

    def allocate_pinned(self, size: int) -> int:
        """`size` bytes of the host that the device can copy while the host goes on."""
        return self._new("cudaMallocHost", size)

    def free_pinned(self, pointer: int) -> None:
        """What allocate_pinned gave."""
        self._call("cudaFreeHost", pointer)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes in either direction; pinned on the host's side."""
        self._call("cudaMemcpyAsync", to, source, size, _MEMCPY_DEFAULT, stream)

    def fill(self, pointer: int, byte: int, size: int, stream: int) -> None:
        """Queue a fill of `size` bytes of the device."""
        self._call("cudaMemsetAsync", pointer, byte, size, stream)

    def stream(self) -> int:
        """A stream of its own, that does not wait for the default one."""
        return self._new("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING)

    def wait(self, stream: int) -> None:
        """Until all that was queued on it is done; errors of queued work show here."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """What stream() gave."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> int:
        """One that counts as done until it is recorded."""
        return self._new("cudaEventCreateWithFlags", _EVENT_DISABLE_TIMING)

    def record(self, event: int, stream: int) -> None:
        """Done once all that is queued on the stream now is done."""
        self._call("cudaEventRecord", event, stream)

    def after(self, stream: int, event: int) -> None:
        """What is queued on the stream from here on runs after the event; the host goes on."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def destroy_event(self, event: int) -> None:
        """What event() gave."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        """From here on, what this thread queues on the stream is recorded and does not run."""
        self._call("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recorded work, ready to launch."""
        graph = self._new_from("cudaStreamEndCapture", stream)
        try:
            return self._new("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a capture that failed, and forget its errors."""
        graph = ctypes.c_void_p()
        if self._library.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0 and graph.value:
            self._library.cudaGraphDestroy(graph)
        self._library.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        """Queue what end_capture gave."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """What end_capture gave."""
        self._call("cudaGraphExecDestroy", graph)

    def _new(self, name: str, *arguments: int) -> int:
        made = ctypes.c_void_p()
        self._call(name, ctypes.byref(made), *arguments)
        return made.value or 0

    def _new_from(self, name: str, *arguments: int) -> int:
        made = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(made))
        return made.value or 0

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            words = self._library.cudaGetErrorString(code).decode()
            raise UnavailableError(f"{name} failed: {words} (CUDA error {code}).")


def find_cuda() -> Cuda:
    """The newest libcudart at hand: the loader's, or one that pip installed.

    Raises BundleError where there is none, or none that sees a GPU."""
    for name in _names():
        try:
            cuda = Cuda(ctypes.CDLL(name))
        except OSError:
            continue
        try:
            if cuda.devices():
                return cuda
        except UnavailableError as error:
            raise BundleError(f"no GPU answers: {error}") from error
        raise BundleError("the CUDA runtime finds no GPU on this machine.")
    raise BundleError(
        f"no libcudart.so of CUDA {' or '.join(map(str, VERSIONS))} is found; install the CUDA"
        " runtime, or name its folder in LD_LIBRARY_PATH."
    )


def _names() -> Iterator[str]:
    yield from (f"libcudart.so.{version}" for version in VERSIONS)
    if found := ctypes.util.find_library("cudart"):
        yield found
    for folder in map(Path, sys.path):  # the wheels nvidia-cuda-runtime and -cu12
        for inside in ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib"):
            yield from (str(folder / inside / f"libcudart.so.{version}") for version in VERSIONS)
    yield "/usr/local/cuda/lib64/libcudart.so"
