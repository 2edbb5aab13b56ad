"""The backbone through ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engine.api.errors import BundleError, UnavailableError
from engine.bundle.manifest import REBUILD_HINT
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.backend import Hidden, Readout, Scores, score_rows


class OnnxBackend:
    """Runs one backbone graph; see export/onnx/llama.py for its inputs and output.

    threads: of the CPU, 0 = one per core. cuda: on the first GPU.
    """

    def __init__(self, graph: Path, threads: int = 0, *, cuda: bool = False) -> None:
        options = ort.SessionOptions()
        self._threads = threads or len(os.sched_getaffinity(0))
        options.intra_op_num_threads = self._threads
        # Idle workers must not spin: the gateway beside us wants the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Shapes change with every request: a plan of memory for each would be kept for nothing.
        options.enable_mem_pattern = False
        provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
        try:
            self._session = ort.InferenceSession(graph, options, providers=[provider])
        except Exception as error:  # ONNX Runtime raises its own kinds for every cause
            raise BundleError(
                f"{graph} does not load in ONNX Runtime ({type(error).__name__}: {error});"
                f" {REBUILD_HINT}."
            ) from error
        if provider not in self._session.get_providers():
            raise BundleError(f"ONNX Runtime finds no GPU for {graph}; give --device cpu.")
        self._provider = provider.removesuffix("ExecutionProvider")
        self._graph = graph

    def probabilities(
        self,
        tokens: Sequence[Int64Array],
        embeddings: Float32Array,
        rows: Int64Array,
        readout: Readout,
    ) -> Scores:
        """See Backend."""
        return score_rows(self.hidden, tokens, embeddings, rows, readout)

    def prepare(self, embeddings: Float32Array) -> None:
        """See Backend; nothing to do."""

    def hidden(
        self, tokens: Sequence[NDArray[np.int64]], embeddings: NDArray[np.float32]
    ) -> Hidden:
        """B prompts of tokens (L_b,) and embeddings (R, D) -> rows before the final norm (B, R, D).

        Raises UnavailableError where the forward fails.
        """
        lengths = np.array([len(t) for t in tokens], dtype=np.int64)
        padded = np.zeros((len(tokens), int(lengths.max())), dtype=np.int64)
        for i, row in enumerate(tokens):
            padded[i, : len(row)] = row
        feeds = {"tokens": padded, "lengths": lengths, "embeddings": embeddings}
        try:
            (rows,) = self._session.run(None, feeds)
        except Exception as error:  # as above; the batch fails, the server does not
            raise UnavailableError(
                f"the forward pass failed for {padded.shape} tokens and {len(embeddings)}"
                f" candidate rows ({type(error).__name__}); try again, and look at the log."
            ) from error
        return np.asarray(rows)

    def describe(self) -> str:
        """See Backend."""
        where = f"{self._provider}, {self._threads} threads"
        return f"onnxruntime {ort.__version__} {where}, {self._graph.name}"
