"""A TensorRT plan: what it takes, and contexts that run it. `tensorrt` or `tensorrt_rtx`, imported
only here and only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.api.errors import BundleError, UnavailableError
from engine.inference.tensorrt.shapes import Profile, Range, Shape

log = logging.getLogger(__name__)

LIBRARIES = ("tensorrt", "tensorrt_rtx")
INPUTS = ("tokens", "lengths", "embeddings")
_DTYPES = {"FLOAT": (0, 4), "HALF": (1, 2), "BF16": (2, 2)}  # score.h's code, bytes


def find_library() -> Any:
    """The module that runs plans; raises BundleError where there is none."""
    for name in LIBRARIES:
        if importlib.util.find_spec(name):
            try:
                return importlib.import_module(name)
            except (ImportError, OSError) as error:
                raise BundleError(f"{name} is installed and does not load: {error}") from error
    raise BundleError(f"none of {', '.join(LIBRARIES)} is installed: `pip install '.[trt]'`.")


@dataclass(frozen=True)
class Addresses:
    """On the device: tokens (B, L) int64, lengths (B,) int64, embeddings (R, D) float32, hidden
    (B, R, D) of the plan's dtype; and TensorRT's own scratch memory."""

    tokens: int
    lengths: int
    embeddings: int
    hidden: int
    scratch: int


@dataclass(frozen=True)
class Plan:
    """dtype, itemsize: of the hidden rows, code of score.h and bytes. scratch: bytes that a context
    needs. captures: whether graphs of it are for the caller to capture; tensorrt_rtx captures its
    own, because it swaps in kernels made for a shape when their compilation is done."""

    library: str
    profile: Profile
    width: int
    dtype: int
    itemsize: int
    scratch: int
    captures: bool
    _module: Any
    _engine: Any
    _logger: Any  # the library holds no reference to it

    def context(self, at: Addresses) -> Any:
        """A context with its own shapes on the shared buffers. A graph that was captured holds on
        to its context's state, so each graph takes a context of its own.

        Raises UnavailableError.
        """
        context = self._create()
        if context is None:
            raise UnavailableError("TensorRT gives no execution context; its log says why.")
        if self.captures:
            context.set_device_memory(at.scratch, self.scratch)
        for name in (*INPUTS, "hidden"):
            if not context.set_tensor_address(name, getattr(at, name)):
                raise UnavailableError(f"TensorRT takes no address for {name}; its log says why.")
        return context

    def _create(self) -> Any:
        trt = self._module
        if self.captures:
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        lazy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
        config.dynamic_shapes_kernel_specialization_strategy = lazy
        return self._engine.create_execution_context(config)

    def set_shape(self, context: Any, shape: Shape) -> None:
        """For what is queued next. Raises UnavailableError."""
        sizes = {
            "tokens": (shape.batch, shape.length),
            "lengths": (shape.batch,),
            "embeddings": (shape.candidates, self.width),
        }
        for name, size in sizes.items():
            if not context.set_input_shape(name, size):
                raise UnavailableError(f"TensorRT refuses {name} of {size}; its log says why.")

    def queue(self, context: Any, stream: int) -> None:
        """Queue one forward. Raises UnavailableError."""
        if not context.execute_async_v3(stream):
            raise UnavailableError("TensorRT could not queue the forward; its log says why.")


def load_plan(path: Path, trt: Any) -> Plan:
    """Raises BundleError where this library or GPU cannot run it, or it is not a backbone."""
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(
            f"{path.name} does not load in {trt.__name__} {trt.__version__} (its log says why):"
            " plans are tied to the library's version and the GPU; `make export` builds them anew."
        )
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    if names != {*INPUTS, "hidden"}:
        raise BundleError(f"{path.name} has the tensors {sorted(names)}; it is not a backbone.")
    found = {name: engine.get_tensor_dtype(name).name for name in (*INPUTS, "hidden")}
    inputs = tuple(found[name] for name in INPUTS)
    if inputs != ("INT64", "INT64", "FLOAT") or found["hidden"] not in _DTYPES:
        raise BundleError(
            f"{path.name} has the types {found}, expected INT64 tokens and lengths and FLOAT"
            " embeddings; `make export` builds it anew."
        )
    batch, length = _ranges(engine, "tokens")
    rows, width = _ranges(engine, "embeddings")
    dtype, itemsize = _DTYPES[found["hidden"]]
    return Plan(
        library=f"{trt.__name__} {trt.__version__}",
        profile=Profile(batch, length, rows),
        width=width.most,
        dtype=dtype,
        itemsize=itemsize,
        scratch=engine.device_memory_size_v2,
        captures=not hasattr(trt, "CudaGraphStrategy"),
        _module=trt,
        _engine=engine,
        _logger=logger,
    )


def _ranges(engine: Any, name: str) -> list[Range]:
    """Of each dimension, in the only profile."""
    least, _, most = engine.get_tensor_profile_shape(name, 0)
    return [Range(*pair) for pair in zip(tuple(least), tuple(most), strict=True)]


def _logger(trt: Any) -> Any:
    """TensorRT's log in ours; it names layers and tensors, never what they hold."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = logging.WARNING if severity.name == "WARNING" else logging.ERROR
            if severity.name in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                log.log(level, "%s", message)

    return Logger()
