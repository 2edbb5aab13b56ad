"""Run the backbone as a TensorRT plan, and the CUDA scoring kernel, on one stream of one GPU.

Only token ids and row numbers are copied to the device, and probabilities from it; the table and
the hidden rows stay there. All buffers are allocated once, for the largest shapes that the engine
accepts. Contexts and CUDA graphs are made by capture(), at start, and never in a request.
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
from engine.inference.backend import BatchScores, ScoringHead, round_embeddings
from engine.inference.tensorrt.cuda import Cuda, find_cuda
from engine.inference.tensorrt.memory import NULL_ROW, Buffers, DeviceTables, Memory
from engine.inference.tensorrt.plan import find_library, load_plan
from engine.inference.tensorrt.shapes import (
    ForwardShape,
    ShapeProfile,
    check_lengths,
    chunk_slices,
    pad_shape,
)

log = logging.getLogger(__name__)

CAPTURE_S = 10.0  # at most, at start


@dataclass(frozen=True)
class Libraries:
    """What a plan needs: the CUDA runtime, the CUDA kernel (cpp_ext/cuda.py), TensorRT's module."""

    cuda: Cuda
    kernel: ctypes.CDLL
    tensorrt: Any


def find_libraries() -> Libraries:
    """Load all libraries. Raises BundleError that names the missing one."""
    cuda = find_cuda()
    try:
        library = kernel.load()
    except (OSError, AttributeError) as error:
        raise BundleError(
            f"The CUDA kernel does not load ({error}); build it with nvcc installed:"
            " `cpp_ext/build_cuda.sh`."
        ) from error
    return Libraries(cuda, library, find_library())


@dataclass(frozen=True)
class _CapturedGraph:
    """handle: from Cuda.end_capture. context: must live as long as the graph."""

    handle: int
    context: Any


class TensorRTBackend:
    """See Backend. close() frees the GPU's memory; nothing may run during it or later."""

    def __init__(self, path: Path, libraries: Libraries) -> None:
        """Load the plan at `path`. Raises BundleError if it cannot run here."""
        self._cuda, self._kernel, self._path = libraries.cuda, libraries.kernel, path
        self._engine = load_plan(path, libraries.tensorrt)
        self._memory = Memory(self._cuda)
        self._head: ScoringHead | None = None
        self._graphs: dict[ForwardShape, _CapturedGraph] = {}
        try:
            self._buffers = Buffers(self._memory, self._engine)
            self._tables = DeviceTables(self._cuda, self._memory, self._engine.width)
            self._stream = self._cuda.create_stream()
            self._cuda.fill(self._buffers.allowed, 1, self._buffers.p.size, self._stream)
            self._cuda.fill(self._buffers.penalty, 0, self._buffers.p.nbytes, self._stream)
            self._context = self._engine.create_context(self._buffers.addresses)
        except UnavailableError as error:
            self._memory.close()
            raise BundleError(f"{path.name} does not run on this GPU: {error}") from error

    @property
    def profile(self) -> ShapeProfile:
        """The sizes that one forward pass accepts; larger ones are split."""
        return self._engine.profile

    def probabilities(
        self,
        tokens: Sequence[Int64Array],
        embeddings: Float32Array,
        rows: Int64Array,
        head: ScoringHead,
    ) -> BatchScores:
        """See Backend."""
        started = time.monotonic()
        self._set_head(head)
        with_null = np.concatenate([[NULL_ROW], rows])
        p = np.empty((len(tokens), len(with_null)), dtype=np.float32)
        instructions = np.empty((len(tokens), self._engine.width), dtype=np.float32)
        table = self._tables.acquire(embeddings, self._stream)
        profile = self.profile
        try:
            for batch in chunk_slices(len(tokens), profile.batch.max):
                for chunk in chunk_slices(len(with_null), profile.candidates.max):
                    p[batch, chunk] = self._forward(tokens[batch], table, with_null[chunk])
                    if chunk.start == 0:
                        instructions[batch] = self._first_rows(len(tokens[batch]))
        except RuntimeError as error:  # from the kernel's launch
            raise UnavailableError(f"The scoring kernel failed to launch: {error}.") from error
        finally:
            self._tables.release()
        seconds = time.monotonic() - started
        return BatchScores(p[:, 1:], round_embeddings(instructions), seconds, 0.0)

    def prefetch_table(self, embeddings: Float32Array) -> None:
        """See Backend."""
        self._tables.prefetch(embeddings)

    def describe(self) -> str:
        """See Backend."""
        return f"{self._engine.library}, {self._path.name}, {len(self._graphs)} CUDA graphs"

    def close(self) -> None:
        """Free all memory and handles."""
        self._cuda.synchronize(self._stream)
        self._drop_graphs()
        self._context = None
        self._tables.close()
        self._cuda.destroy_stream(self._stream)
        self._memory.close()

    def capture(
        self, head: ScoringHead, shapes: Sequence[ForwardShape], seconds: float = CAPTURE_S
    ) -> None:
        """Run a forward pass of each shape and capture it as a CUDA graph for later ones.

        tensorrt_rtx captures its own graph in that pass. Shapes that are left after `seconds` or
        after a failed capture are queued kernel by kernel when they come. Raises UnavailableError
        if a forward pass fails.
        """
        self._set_head(head)
        end = time.monotonic() + seconds
        for number, shape in enumerate(shapes):
            if time.monotonic() > end:
                log.warning(
                    "%d of %d shapes have a CUDA graph after %g s, the others are queued kernel by"
                    " kernel",
                    *(number, len(shapes), seconds),
                )
                return
            if not self._prepare(shape):
                return

    def _prepare(self, shape: ForwardShape) -> bool:
        """Capture a graph of one shape; return False if that failed."""
        own_graph, context = self._engine.capture_graphs, self._context
        if own_graph:
            try:
                context = self._engine.create_context(self._buffers.addresses)
            except UnavailableError as error:  # such as for want of memory, after many of them
                log.warning("no further CUDA graphs, other shapes are queued: %s", error)
                return False
        self._buffers.fill([], np.zeros(1, dtype=np.int64), shape)
        # A capture needs a forward pass before it, which prepares the context for the shape.
        self._engine.set_shape(context, shape)
        try:
            self._queue(context, shape)
        except RuntimeError as error:
            raise UnavailableError(f"The scoring kernel failed to launch: {error}.") from error
        self._cuda.synchronize(self._stream)
        if not own_graph:
            return True
        try:
            self._cuda.begin_capture(self._stream)
            self._queue(context, shape)
            handle = self._cuda.end_capture(self._stream)
        except (ModelsatError, RuntimeError) as error:
            self._cuda.abandon_capture(self._stream)
            log.warning("CUDA graphs disabled, forward passes are queued one by one: %s", error)
            return False
        self._graphs[shape] = _CapturedGraph(handle, context)
        return True

    def _drop_graphs(self) -> None:
        while self._graphs:
            self._cuda.destroy_graph(self._graphs.popitem()[1].handle)

    def _set_head(self, head: ScoringHead) -> None:
        known = self._head
        if head is known:
            return
        if head.weight.shape != (self._engine.width,):
            raise UnavailableError(
                f"The scoring head is {head.weight.shape}, the plan's rows are {self._engine.width}"
                " wide; `make export` builds the bundle again."
            )
        self._head = head
        if (
            known is not None
            and np.array_equal(known.weight, head.weight)
            and (known.eps, known.calibration) == (head.eps, head.calibration)
        ):
            return
        host = self._buffers
        self._drop_graphs()  # they contain the head's parameters
        host.weight[:] = head.weight
        self._cuda.copy(
            host.device_weight, host.weight.ctypes.data, host.weight.nbytes, self._stream
        )

    def _forward(self, tokens: Sequence[Int64Array], table: int, rows: Int64Array) -> Float32Array:
        """Run one forward pass: (B, K) probabilities."""
        lengths = [len(row) for row in tokens]
        check_lengths(self.profile, lengths)
        shape = pad_shape(self.profile, len(tokens), max(lengths), len(rows))
        host, addresses = self._buffers, self._buffers.addresses
        host.fill(tokens, rows, shape)
        self._cuda.copy(host.device_rows, host.rows.ctypes.data, 4 * shape.candidates, self._stream)
        kernel.gather(
            self._kernel,
            table,
            self._engine.width,
            host.device_rows,
            shape.candidates,
            addresses.embeddings,
            stream=self._stream,
        )
        self._run(shape)
        p = host.p[: shape.batch * shape.candidates].reshape(shape.batch, shape.candidates)
        return p[: len(tokens), : len(rows)].copy()

    def _first_rows(self, count: int) -> Float32Array:
        """Return the hidden rows (count, D) of the first candidate in the last forward pass."""
        rows = self._buffers.embeddings.reshape(-1, self._engine.width)[:count]
        if rows.dtype == np.uint16:  # bfloat16 is the upper half of a float32
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)

    def _run(self, shape: ForwardShape) -> None:
        """Run everything after the gather and wait for it.

        The gather is not part of the CUDA graph, because it reads another table after each change
        of the candidates.
        """
        graph = self._graphs.get(shape)
        if graph is not None:
            self._cuda.launch(graph.handle, self._stream)
        else:
            self._engine.set_shape(self._context, shape)
            self._queue(self._context, shape)
        self._cuda.synchronize(self._stream)

    def _queue(self, context: Any, shape: ForwardShape) -> None:
        assert self._head is not None
        host, addresses, stream = self._buffers, self._buffers.addresses, self._stream
        count = shape.batch * shape.candidates
        tokens = 8 * shape.batch * shape.length
        self._cuda.copy(addresses.tokens, host.tokens.ctypes.data, tokens, stream)
        self._cuda.copy(addresses.lengths, host.lengths.ctypes.data, 8 * shape.batch, stream)
        self._engine.queue(context, stream)
        kernel.rank(
            self._kernel,
            kernel.RankPointers(
                addresses.hidden, host.device_weight, host.allowed, host.penalty, host.device_p, 0
            ),
            kernel.RankSizes(
                self._engine.dtype,
                shape.batch,
                shape.candidates,
                self._engine.width,
                ranked=0,
            ),
            eps=self._head.eps,
            scale=self._head.calibration.scale,
            offset=self._head.calibration.offset,
            stream=stream,
        )
        self._cuda.copy(host.p.ctypes.data, host.device_p, 4 * count, stream)
        row = self._engine.width * self._engine.itemsize
        self._cuda.copy_rows(
            host.embeddings.ctypes.data,
            addresses.hidden,
            row,
            stride=shape.candidates * row,
            count=shape.batch,
            stream=stream,
        )
