"""The backbone as a TensorRT plan and the CUDA scoring kernel, on one stream of one GPU.

Token ids and row numbers go up, probabilities come down; the candidates' rows and the table stay on
the device. All buffers are allocated once, for the largest shapes of the plan's profile. A shape
that comes again gets a CUDA graph. Not yet run on a GPU (docs/how-to/gpu.md).
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpp_ext import cuda as kernel
from engine.api.errors import BundleError, ModelsatError, UnavailableError
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.backend import Readout, Scores
from engine.inference.tensorrt.cuda import Cuda, find_cuda
from engine.inference.tensorrt.memory import Buffers, DeviceTables, Memory
from engine.inference.tensorrt.plan import find_library, load_plan
from engine.inference.tensorrt.shapes import (
    GraphCache,
    Profile,
    Shape,
    check_lengths,
    padded,
    pieces,
)

log = logging.getLogger(__name__)

GRAPHS = 32  # kept at a time


@dataclass(frozen=True)
class Libraries:
    """What runs a plan: the CUDA runtime, the built kernel (cpp_ext/cuda.py), TensorRT's module."""

    cuda: Cuda
    kernel: ctypes.CDLL
    tensorrt: Any


def find_libraries() -> Libraries:
    """Raises BundleError that says which is missing; the cheap ones are looked for first."""
    cuda = find_cuda()
    try:
        built = kernel.load()
    except (OSError, AttributeError) as error:
        raise BundleError(
            f"the CUDA kernel does not load ({error}); build it where nvcc is:"
            " `cpp_ext/build_cuda.sh`."
        ) from error
    return Libraries(cuda, built, find_library())


@dataclass(frozen=True)
class _Graph:
    """run: what Cuda.end_capture gave. context: kept as long as the graph."""

    run: int
    context: Any


class TensorRTBackend:
    """See Backend. close() frees the GPU; nothing may run then or after."""

    def __init__(self, path: Path, libraries: Libraries, graphs: int = GRAPHS) -> None:
        """Loads the plan at `path`; raises BundleError where it cannot run here."""
        self._cuda, self._kernel, self._path = libraries.cuda, libraries.kernel, path
        self._plan = load_plan(path, libraries.tensorrt)
        self._memory = Memory(self._cuda)
        self._readout: Readout | None = None
        self._graphs: GraphCache[_Graph] = GraphCache(
            graphs if self._plan.captures else 0, lambda graph: self._cuda.destroy_graph(graph.run)
        )
        try:
            self._buffers = Buffers(self._memory, self._plan)
            self._tables = DeviceTables(self._cuda, self._memory, self._plan.width)
            self._stream = self._cuda.stream()
            self._cuda.fill(self._buffers.allowed, 1, self._buffers.p.size, self._stream)
            self._cuda.fill(self._buffers.penalty, 0, self._buffers.p.nbytes, self._stream)
            self._context = self._plan.context(self._buffers.at)
        except UnavailableError as error:
            self._memory.close()
            raise BundleError(f"{path.name} does not run on this GPU: {error}") from error

    @property
    def profile(self) -> Profile:
        """What one forward takes; more is split."""
        return self._plan.profile

    def probabilities(
        self,
        tokens: Sequence[Int64Array],
        embeddings: Float32Array,
        rows: Int64Array,
        readout: Readout,
    ) -> Scores:
        """See Backend."""
        begun = time.monotonic()
        self._bind(readout)
        p = np.empty((len(tokens), len(rows)), dtype=np.float32)
        table = self._tables.acquire(embeddings, self._stream)
        most = self.profile
        try:
            for some in pieces(len(tokens), most.batch.most):
                for those in pieces(len(rows), most.rows.most):
                    p[some, those] = self._forward(tokens[some], table, rows[those])
        except RuntimeError as error:  # of the kernel's launch
            raise UnavailableError(f"the scoring kernel was not launched: {error}.") from error
        finally:
            self._tables.release()
        return Scores(p, time.monotonic() - begun, 0.0)

    def prepare(self, embeddings: Float32Array) -> None:
        """See Backend."""
        self._tables.prepare(embeddings)

    def describe(self) -> str:
        """See Backend."""
        return f"{self._plan.library}, {self._path.name}, {len(self._graphs)} CUDA graphs"

    def close(self) -> None:
        """Free everything."""
        self._cuda.wait(self._stream)
        self._graphs.clear()
        self._context = None
        self._tables.close()
        self._cuda.destroy_stream(self._stream)
        self._memory.close()

    def _bind(self, readout: Readout) -> None:
        if readout is self._readout:
            return
        if readout.weight.shape != (self._plan.width,):
            raise UnavailableError(
                f"the readout is {readout.weight.shape}, the plan's rows are {self._plan.width}"
                " wide; `make export` builds the bundle anew."
            )
        host = self._buffers
        self._graphs.clear()  # its numbers are part of them
        host.weight[:] = readout.weight
        self._cuda.copy(
            host.device_weight, host.weight.ctypes.data, host.weight.nbytes, self._stream
        )
        self._readout = readout

    def _forward(self, tokens: Sequence[Int64Array], table: int, rows: Int64Array) -> Float32Array:
        """(B, K) of what one forward takes."""
        lengths = [len(row) for row in tokens]
        check_lengths(self.profile, lengths)
        shape = padded(self.profile, len(tokens), max(lengths), len(rows))
        host, at = self._buffers, self._buffers.at
        host.fill(tokens, rows, shape)
        self._cuda.copy(host.device_rows, host.rows.ctypes.data, 4 * shape.candidates, self._stream)
        kernel.gather(
            self._kernel,
            table,
            self._plan.width,
            host.device_rows,
            shape.candidates,
            at.embeddings,
            stream=self._stream,
        )
        self._run(shape)
        p = host.p[: shape.batch * shape.candidates].reshape(shape.batch, shape.candidates)
        return p[: len(tokens), : len(rows)].copy()

    def _run(self, shape: Shape) -> None:
        """Everything after the gather, which reads a table that changes; waits for it."""
        graph = self._graphs.get(shape)
        if graph is not None:
            self._cuda.launch(graph.run, self._stream)
            self._cuda.wait(self._stream)
            return
        common = self._graphs.is_common(shape)
        context = self._plan.context(self._buffers.at) if common else self._context
        # Also before a capture: the first forward of a shape prepares the context's own state.
        self._plan.set_shape(context, shape)
        self._queue(context, shape)
        self._cuda.wait(self._stream)
        if common:
            self._capture(context, shape)

    def _capture(self, context: Any, shape: Shape) -> None:
        """A graph for the next time; without one where this fails, and none for any shape."""
        try:
            self._cuda.begin_capture(self._stream)
            self._queue(context, shape)
            self._graphs.put(shape, _Graph(self._cuda.end_capture(self._stream), context))
        except (ModelsatError, RuntimeError) as error:
            self._cuda.abandon_capture(self._stream)
            log.warning("no CUDA graphs, each forward is queued anew: %s", error)
            self._graphs.disable()

    def _queue(self, context: Any, shape: Shape) -> None:
        assert self._readout is not None
        host, at, stream = self._buffers, self._buffers.at, self._stream
        count = shape.batch * shape.candidates
        tokens = 8 * shape.batch * shape.length
        self._cuda.copy(at.tokens, host.tokens.ctypes.data, tokens, stream)
        self._cuda.copy(at.lengths, host.lengths.ctypes.data, 8 * shape.batch, stream)
        self._plan.queue(context, stream)
        kernel.rank(
            self._kernel,
            kernel.RankPointers(
                at.hidden, host.device_weight, host.allowed, host.penalty, host.device_p, 0
            ),
            kernel.RankSizes(
                self._plan.dtype,
                shape.batch,
                shape.candidates,
                self._plan.width,
                ranked=0,
            ),
            eps=self._readout.eps,
            scale=self._readout.calibration.scale,
            offset=self._readout.calibration.offset,
            stream=stream,
        )
        self._cuda.copy(host.p.ctypes.data, host.device_p, 4 * count, stream)
