"""Run the backbone with the fused forward pass of cpp_ext/forward."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cpp_ext.forward import MAX_THREADS, WRONG, Forward, ForwardError, implementation, paths
from engine.api.errors import BundleError, UnavailableError
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.backend import BatchScores, Hidden, ScoringHead, round_embeddings

log = logging.getLogger(__name__)
# Paths that are faster than ONNX Runtime where they run, best first. The others serve only if
# PATHS_VARIABLE names them.
FAST_PATHS = ("amx-int8", "amx-bf16", "avx512-vnni")
PATHS_VARIABLE = "MODELSAT_FORWARD_PATHS"  # comma-separated; empty for none


class FusedBackend:
    """See Backend. Requests of a batch are packed without padding, and no probability depends on
    the rest of its batch.

    file: written by export/packed.py. threads: CPU threads; 0 means one per core. allowed: names of
    cpp_ext.forward.paths(), of which the first that can read the file serves; allowed_paths() if it
    is None. Raises BundleError if none can, or if none passes Forward.test().
    """

    def __init__(self, file: Path, threads: int = 0, allowed: Sequence[str] | None = None) -> None:
        threads = min(threads or len(os.sched_getaffinity(0)), MAX_THREADS)
        self._file = file.name
        self._forward = _open(file, threads, allowed_paths() if allowed is None else allowed)

    def probabilities(
        self,
        tokens: Sequence[Int64Array],
        embeddings: Float32Array,
        rows: Int64Array,
        head: ScoringHead,
    ) -> BatchScores:
        """See Backend."""
        started = time.monotonic()
        try:
            result = self._forward.run(
                tokens,
                embeddings,
                rows,
                head.weight,
                eps=head.eps,
                scale=head.calibration.scale,
                offset=head.calibration.offset,
            )
        except ForwardError as error:
            raise UnavailableError(
                f"The forward pass failed for prompts of {[len(t) for t in tokens]} tokens and"
                f" {len(rows)} candidates ({error}); try again and check the server's log."
            ) from error
        seconds = time.monotonic() - started
        return BatchScores(result.p, round_embeddings(result.null_rows), seconds, 0.0)

    def hidden(self, tokens: Sequence[Int64Array], embeddings: Float32Array) -> Hidden:
        """Run the forward pass for all candidates: (B, K, D) rows before the final norm.

        tokens, embeddings: see OnnxBackend.hidden. Raises ForwardError.
        """
        weight = np.zeros(self._forward.width, dtype=np.float32)
        rows = np.arange(len(embeddings))
        result = self._forward.run(
            tokens, embeddings, rows, weight, eps=1.0, scale=1.0, offset=0.0, keep_hidden=True
        )
        return result.hidden  # type: ignore[return-value]  # it was asked for

    def prefetch_table(self, embeddings: Float32Array) -> None:
        """See Backend. Does nothing."""

    def describe(self) -> str:
        """See Backend."""
        forward = self._forward
        return f"fused forward {forward.path}, {forward.threads} threads, {self._file}"


def allowed_paths() -> list[str]:
    """The paths that may serve here, best first: those of PATHS_VARIABLE, or else FAST_PATHS."""
    named = os.environ.get(PATHS_VARIABLE)
    allowed = FAST_PATHS if named is None else [name.strip() for name in named.split(",")]
    return [path for path in paths() if path in allowed]


def _open(file: Path, threads: int, names: Sequence[str]) -> Forward:
    """Open `file` with the first of `names` that its number format allows and that computes what
    plain loops compute: a path may never have run on this kind of CPU."""
    reason = f"no path for this CPU among {', '.join(FAST_PATHS)} ({implementation()})"
    for name in names:
        try:
            forward = Forward(file, name, threads)
            forward.test()
            return forward
        except ForwardError as error:
            reason = str(error)
            if error.code == WRONG:
                log.warning("%s; please report this CPU", reason)
    raise BundleError(f"The fused forward pass cannot serve {file.name}: {reason}.")
