"""A fake TensorRT for tests without a GPU.

A "plan" is an ONNX graph. ONNX Runtime runs it on the context's addresses when the fake stream
(fake_cuda.cc) reaches it. The fake enforces TensorRT's rules: shapes within the profile, all
addresses set, memory for a context that has none, and no change to a context that was captured.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from export.tensorrt import backbone_profile

INPUTS = {"tokens": np.int64, "lengths": np.int64, "embeddings": np.float32}
CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class Queue:
    """Queues Python functions on the fake's streams."""

    def __init__(self, cuda: ctypes.CDLL) -> None:
        cuda.fake_queue.argtypes = [ctypes.c_void_p, CALLBACK, ctypes.c_int64]
        self.cuda = cuda
        self.errors: list[Exception] = []
        self._jobs: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()
        self._callback = CALLBACK(self._run)

    def put(self, stream: int, job: Callable[[], None]) -> bool:
        number = next(self._numbers)
        self._jobs[number] = job
        return self.cuda.fake_queue(stream, self._callback, number) == 0

    def _run(self, number: int) -> None:
        try:
            self._jobs[number]()
        except Exception as error:  # ctypes would swallow it
            self.errors.append(error)


def view(pointer: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    raw = (ctypes.c_byte * size).from_address(pointer)
    return np.ctypeslib.as_array(raw).view(kind).reshape(shape)


class Context:
    def __init__(self, engine: Engine, own_memory: bool) -> None:
        self._engine, self._memory = engine, own_memory
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._frozen = False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 16 == 0
        assert size >= self._engine.device_memory_size_v2
        self._memory = True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self._frozen
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self._frozen, "a captured graph uses this context's state"
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        if any(not a <= n <= b for n, a, b in zip(shape, least, most, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._memory
        assert stream_handle, "not on the default stream"
        assert set(self._addresses) == {*INPUTS, "hidden"}
        self._engine.module.before_queue()
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def job() -> None:
            feeds = {n: view(addresses[n], shapes[n], kind).copy() for n, kind in INPUTS.items()}
            (hidden,) = self._engine.session.run(None, feeds)
            view(addresses["hidden"], hidden.shape, np.float32)[:] = hidden

        if self._engine.module.capturing():
            self._frozen = True
        return self._engine.module.queue.put(stream_handle, job)


class Engine:
    num_io_tensors = 4
    device_memory_size_v2 = 4096

    def __init__(self, module: Module, plan: bytes) -> None:
        self.module = module
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
        (width,) = (i.shape[1] for i in self.session.get_inputs() if i.name == "embeddings")
        self._profile = {n: list(s) for n, s in backbone_profile(width).items()} | module.profile

    def get_tensor_name(self, index: int) -> str:
        return [*INPUTS, "hidden"][index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="INT64" if name in ("tokens", "lengths") else "FLOAT")

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return self._profile[name]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace()

    def create_execution_context(self, how: Any) -> Context:
        if how == "user managed":
            return Context(self, own_memory=False)
        assert how.cuda_graph_strategy == "whole graph"
        assert how.dynamic_shapes_kernel_specialization_strategy == "lazy"
        return Context(self, own_memory=True)


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if not plan.startswith(b"\x08"):  # an ONNX file begins so
            self._logger.log(SimpleNamespace(name="ERROR"), "not a plan")
            return None
        return Engine(self._logger.module, plan)


class Module(SimpleNamespace):
    """The module `tensorrt`, or with captures_itself `tensorrt_rtx`."""

    def __init__(self, cuda: ctypes.CDLL, *, captures_itself: bool = False, **profile: Any) -> None:
        module, queue = self, Queue(cuda)

        class ILogger:
            def __init__(self) -> None:
                self.module = module

        super().__init__(
            __name__="fake_tensorrt",
            __version__="0",
            queue=queue,
            before_queue=lambda: None,
            profile=profile,
            capturing=lambda: bool(cuda.fake_capturing()),
            ILogger=ILogger,
            Runtime=Runtime,
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        )
        if captures_itself:
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy")
