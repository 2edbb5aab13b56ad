"""Call the CUDA runtime through ctypes: the functions that one stream on one GPU needs.

A failing call raises UnavailableError with CUDA's error message. Pointers, streams, events and
graphs are CUDA's own handles, as integers. Device 0 is used; CUDA_VISIBLE_DEVICES selects it.

cuda-python is not used, because its runtime is linked in statically: tests on machines without a
GPU could not replace it with a fake (tests/support/fake_cuda.cc).
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
    "cudaMemcpy2DAsync": (_P, _Z, _P, _Z, _Z, _Z, _I, _P),
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
    """The functions of a libcudart."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Declare the functions. Raises BundleError if one is missing."""
        try:
            for name, arguments in _CALLS.items():
                getattr(library, name).argtypes = arguments
            library.cudaGetErrorString.argtypes = [_I]
            library.cudaGetErrorString.restype = ctypes.c_char_p
        except AttributeError as error:
            raise BundleError(f"This libcudart is too old ({error}); install CUDA 12 or 13.") from (
                error
            )
        self._library = library

    def devices(self) -> int:
        """Count the GPUs. Raises UnavailableError if there is no driver."""
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    def capability(self) -> str:
        """Return the compute capability of device 0, as in the names of plans: "89"."""
        digits = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            digits.append(str(value.value))
        return "".join(digits)

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes on the device."""
        return self._create("cudaMalloc", size)

    def free(self, pointer: int) -> None:
        """Free memory from allocate()."""
        self._call("cudaFree", pointer)

    def allocate_pinned(self, size: int) -> int:
        """Allocate `size` bytes of pinned host memory, which the device can copy asynchronously."""
        return self._create("cudaMallocHost", size)

    def free_pinned(self, pointer: int) -> None:
        """Free memory from allocate_pinned()."""
        self._call("cudaFreeHost", pointer)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes in either direction. Host memory must be pinned."""
        self._call("cudaMemcpyAsync", to, source, size, _MEMCPY_DEFAULT, stream)

    def copy_rows(
        self, to: int, source: int, size: int, *, stride: int, count: int, stream: int
    ) -> None:
        """Queue a copy of `count` rows of `size` bytes, which begin every `stride` bytes in the
        source and are adjacent in the target. Host memory must be pinned."""
        self._call(
            "cudaMemcpy2DAsync", to, size, source, stride, size, count, _MEMCPY_DEFAULT, stream
        )

    def fill(self, pointer: int, byte: int, size: int, stream: int) -> None:
        """Queue filling `size` bytes of device memory."""
        self._call("cudaMemsetAsync", pointer, byte, size, stream)

    def create_stream(self) -> int:
        """Create a stream that does not wait for the default stream."""
        return self._create("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait for all work queued on the stream. Raises the errors of that work."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream from create_stream()."""
        self._call("cudaStreamDestroy", stream)

    def create_event(self) -> int:
        """Create an event, which counts as done until it is recorded."""
        return self._create("cudaEventCreateWithFlags", _EVENT_DISABLE_TIMING)

    def record(self, event: int, stream: int) -> None:
        """Let the event be done once all work that is on the stream now is done."""
        self._call("cudaEventRecord", event, stream)

    def wait_event(self, stream: int, event: int) -> None:
        """Let later work on the stream wait for the event. The host does not wait."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def destroy_event(self, event: int) -> None:
        """Destroy an event from create_event()."""
        self._call("cudaEventDestroy", event)

    def begin_capture(self, stream: int) -> None:
        """Begin to record, rather than run, the work that this thread queues on the stream."""
        self._call("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """Return the recorded work as a graph that launch() takes."""
        graph = self._create_from("cudaStreamEndCapture", stream)
        try:
            return self._create("cudaGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a failed capture and clear its errors."""
        graph = ctypes.c_void_p()
        if self._library.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0 and graph.value:
            self._library.cudaGraphDestroy(graph)
        self._library.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        """Queue a graph from end_capture()."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph from end_capture()."""
        self._call("cudaGraphExecDestroy", graph)

    def _create(self, name: str, *arguments: int) -> int:
        handle = ctypes.c_void_p()
        self._call(name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def _create_from(self, name: str, *arguments: int) -> int:
        handle = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(handle))
        return handle.value or 0

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            message = self._library.cudaGetErrorString(code).decode()
            raise UnavailableError(f"{name} failed: {message} (CUDA error {code}).")


def find_cuda() -> Cuda:
    """Load the newest libcudart that finds a GPU: the system's, or one that pip installed.

    A runtime newer than the driver finds no GPU, so an older one is tried after it. Raises
    BundleError if there is no runtime, or with the reason of each if none finds a GPU.
    """
    reasons: dict[str, None] = {}  # ordered, without duplicates: several names are one library
    for name in _library_names():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        try:
            cuda = Cuda(library)
            if cuda.devices():
                return cuda
            reasons["The CUDA runtime finds no GPU on this machine."] = None
        except (BundleError, UnavailableError) as error:
            reasons[str(error)] = None
    if reasons:
        raise BundleError(f"No GPU responds: {' '.join(reasons)}")
    raise BundleError(
        f"Found no libcudart.so of CUDA {' or '.join(map(str, VERSIONS))}; install the CUDA"
        " runtime or add its folder to LD_LIBRARY_PATH."
    )


def _library_names() -> Iterator[str]:
    yield from (f"libcudart.so.{version}" for version in VERSIONS)
    if name := ctypes.util.find_library("cudart"):
        yield name
    for folder in map(Path, sys.path):  # the wheels nvidia-cuda-runtime and -cu12
        for subfolder in ("nvidia/cu13/lib", "nvidia/cuda_runtime/lib"):
            yield from (str(folder / subfolder / f"libcudart.so.{version}") for version in VERSIONS)
    yield "/usr/local/cuda/lib64/libcudart.so"
