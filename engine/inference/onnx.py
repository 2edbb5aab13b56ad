"""Run the backbone with ONNX Runtime."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnxruntime as ort

from cpp_ext import score
from engine.api.errors import BundleError, UnavailableError
from engine.bundle.manifest import REBUILD_HINT
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.backend import (
    BatchScores,
    Forward,
    Hidden,
    ScoringHead,
    round_embeddings,
)

Provider = Literal["CPU", "CUDA", "Tensorrt"]


class OnnxBackend:
    """See Backend. Runs one backbone graph, whose tensors export/onnx/llama.py describes.

    graph: the ONNX file. threads: CPU threads; 0 means one per core. provider: what runs the graph;
    "CUDA" and "Tensorrt" use the first GPU. provider_options: ONNX Runtime's, for the provider.
    Raises BundleError if the graph does not load or there is no GPU.
    """

    def __init__(
        self,
        graph: Path,
        threads: int = 0,
        *,
        provider: Provider = "CPU",
        provider_options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        options = ort.SessionOptions()
        self.provider, self._threads = provider, threads or len(os.sched_getaffinity(0))
        options.intra_op_num_threads = self._threads
        # Idle threads must not spin, because a gateway on the same machine needs the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Shapes change with every request, so memory patterns per shape would only take memory.
        options.enable_mem_pattern = False
        name = f"{provider}ExecutionProvider"
        if provider != "CPU":
            # The loader does not search the nvidia-* wheels, which the extra `cuda` installs.
            ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(
                graph, options, providers=[(name, dict(provider_options))]
            )
        except Exception as error:  # ONNX Runtime has many exception types and no base class
            raise BundleError(
                f"{graph} does not load in ONNX Runtime ({type(error).__name__}: {error});"
                f" {REBUILD_HINT}."
            ) from error
        if name not in self._session.get_providers():
            raise BundleError(f"ONNX Runtime finds no GPU for {graph}; use --device cpu.")
        self._graph = graph

    def probabilities(
        self,
        tokens: Sequence[Int64Array],
        embeddings: Float32Array,
        rows: Int64Array,
        head: ScoringHead,
    ) -> BatchScores:
        """See Backend."""
        return score_rows(self.hidden, tokens, embeddings, rows, head)

    def prefetch_table(self, embeddings: Float32Array) -> None:
        """See Backend. Does nothing."""

    def hidden(self, tokens: Sequence[Int64Array], embeddings: Float32Array) -> Hidden:
        """Run the forward pass.

        Args:
            tokens: B arrays of prompt tokens, (L,) each.
            embeddings: (K, D) of the candidates.

        Returns:
            (B, K, D) rows before the final norm.

        Raises:
            UnavailableError: the forward pass failed.
        """
        lengths = np.array([len(t) for t in tokens], dtype=np.int64)
        padded = np.zeros((len(tokens), int(lengths.max())), dtype=np.int64)
        for i, row in enumerate(tokens):
            padded[i, : len(row)] = row
        feeds = {"tokens": padded, "lengths": lengths, "embeddings": embeddings}
        try:
            (rows,) = self._session.run(None, feeds)
        except Exception as error:  # as above; only this batch fails
            raise UnavailableError(
                f"The forward pass failed for {padded.shape} tokens and {len(embeddings)}"
                f" candidates ({type(error).__name__}); try again and check the server's log."
            ) from error
        return np.asarray(rows)

    def describe(self) -> str:
        """See Backend."""
        where = f"{self.provider}, {self._threads} threads"
        return f"onnxruntime {ort.__version__} {where}, {self._graph.name}"


def score_rows(
    forward: Forward,
    tokens: Sequence[Int64Array],
    embeddings: Float32Array,
    rows: Int64Array,
    head: ScoringHead,
) -> BatchScores:
    """Implement Backend.probabilities with a forward pass that returns hidden rows.

    forward: tokens and embeddings (K, D) -> rows before the final norm (B, K, D), float32 or
    float16.
    """
    started = time.monotonic()
    with_null = np.zeros((len(rows) + 1, embeddings.shape[1]), dtype=np.float32)
    with_null[1:] = embeddings[rows]
    hidden = forward(tokens, with_null)
    forwarded = time.monotonic()
    p = score(  # of the null candidate too, because a copy without it would take longer
        hidden,
        head.weight,
        eps=head.eps,
        scale=head.calibration.scale,
        offset=head.calibration.offset,
    )
    embeddings = round_embeddings(hidden[:, 0])
    return BatchScores(p[:, 1:], embeddings, forwarded - started, time.monotonic() - forwarded)
