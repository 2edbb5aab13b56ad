"""Load a TensorRT plan (a serialized engine) and create the contexts that run it.

`tensorrt` or `tensorrt_rtx` is imported here alone, and only if TensorRT is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.api.errors import BundleError, UnavailableError
from engine.inference.tensorrt.shapes import ForwardShape, ShapeProfile, SizeRange

log = logging.getLogger(__name__)

LIBRARIES = ("tensorrt", "tensorrt_rtx")
INPUTS = ("tokens", "lengths", "embeddings")
_DTYPES = {"FLOAT": (0, 4), "HALF": (1, 2), "BF16": (2, 2)}  # score.h's code, bytes


def find_library() -> Any:
    """Import TensorRT. Raises BundleError if it is not installed or does not load."""
    for name in LIBRARIES:
        if importlib.util.find_spec(name):
            try:
                return importlib.import_module(name)
            except (ImportError, OSError) as error:
                raise BundleError(f"{name} is installed but does not load: {error}") from error
    raise BundleError(
        f"TensorRT is not installed (tried {', '.join(LIBRARIES)}); `pip install '.[trt]'`."
    )


@dataclass(frozen=True)
class DeviceAddresses:
    """Device addresses: tokens (B, L) int64, lengths (B,) int64, embeddings (K, D) float32, hidden
    (B, K, D) of the engine's dtype, and TensorRT's scratch memory."""

    tokens: int
    lengths: int
    embeddings: int
    hidden: int
    scratch: int


@dataclass(frozen=True)
class BackboneEngine:
    """A loaded plan.

    library: name and version. profile: the sizes it accepts. width: D. dtype, itemsize: of the
    hidden rows, the code of score.h and bytes. scratch: bytes that a context needs.
    capture_graphs: True if the caller should capture CUDA graphs. tensorrt_rtx captures its own,
    because it replaces kernels once it has compiled better ones for a shape.
    """

    library: str
    profile: ShapeProfile
    width: int
    dtype: int
    itemsize: int
    scratch: int
    capture_graphs: bool
    _module: Any
    _engine: Any
    _logger: Any  # the library holds no reference to it

    def create_context(self, addresses: DeviceAddresses) -> Any:
        """Create a context, which has shapes of its own and uses the shared buffers.

        A captured graph keeps using its context's state, so each graph needs its own context.
        Raises UnavailableError.
        """
        context = self._create()
        if context is None:
            raise UnavailableError("TensorRT could not create an execution context; see its log.")
        if self.capture_graphs:
            context.set_device_memory(addresses.scratch, self.scratch)
        for name in (*INPUTS, "hidden"):
            if not context.set_tensor_address(name, getattr(addresses, name)):
                raise UnavailableError(f"TensorRT rejected the address of {name}; see its log.")
        return context

    def _create(self) -> Any:
        trt = self._module
        if self.capture_graphs:
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        lazy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
        config.dynamic_shapes_kernel_specialization_strategy = lazy
        return self._engine.create_execution_context(config)

    def set_shape(self, context: Any, shape: ForwardShape) -> None:
        """Set the shape of the next forward pass. Raises UnavailableError."""
        sizes = {
            "tokens": (shape.batch, shape.length),
            "lengths": (shape.batch,),
            "embeddings": (shape.candidates, self.width),
        }
        for name, size in sizes.items():
            if not context.set_input_shape(name, size):
                raise UnavailableError(
                    f"TensorRT rejected the shape {size} of {name}; see its log."
                )

    def queue(self, context: Any, stream: int) -> None:
        """Queue one forward pass on a stream. Raises UnavailableError."""
        if not context.execute_async_v3(stream):
            raise UnavailableError("TensorRT could not queue the forward pass; see its log.")


def load_plan(path: Path, trt: Any) -> BackboneEngine:
    """Load a plan with the TensorRT module `trt`.

    Raises BundleError if this version or GPU cannot run it, or if it is not a backbone.
    """
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(
            f"{path.name} does not load in {trt.__name__} {trt.__version__} (see its log): a plan"
            " runs only with the library version and GPU it was built for; `make export` builds it"
            " again."
        )
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    if names != {*INPUTS, "hidden"}:
        raise BundleError(f"{path.name} is not a backbone: it has the tensors {sorted(names)}.")
    dtypes = {name: engine.get_tensor_dtype(name).name for name in (*INPUTS, "hidden")}
    inputs = tuple(dtypes[name] for name in INPUTS)
    if inputs != ("INT64", "INT64", "FLOAT") or dtypes["hidden"] not in _DTYPES:
        raise BundleError(
            f"{path.name} has the types {dtypes}, expected INT64 tokens and lengths and FLOAT"
            " embeddings; `make export` builds it again."
        )
    batch, length = _ranges(engine, "tokens")
    candidates, width = _ranges(engine, "embeddings")
    dtype, itemsize = _DTYPES[dtypes["hidden"]]
    return BackboneEngine(
        library=f"{trt.__name__} {trt.__version__}",
        profile=ShapeProfile(batch, length, candidates),
        width=width.max,
        dtype=dtype,
        itemsize=itemsize,
        scratch=engine.device_memory_size_v2,
        capture_graphs=not hasattr(trt, "CudaGraphStrategy"),
        _module=trt,
        _engine=engine,
        _logger=logger,
    )


def _ranges(engine: Any, name: str) -> list[SizeRange]:
    """Return the sizes of each axis that the only profile accepts."""
    smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
    return [SizeRange(*pair) for pair in zip(tuple(smallest), tuple(largest), strict=True)]


def _logger(trt: Any) -> Any:
    """Forward TensorRT's log to logging. It names layers and tensors, never their contents."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = logging.WARNING if severity.name == "WARNING" else logging.ERROR
            if severity.name in ("WARNING", "ERROR", "INTERNAL_ERROR"):
                log.log(level, "%s", message)

    return Logger()
