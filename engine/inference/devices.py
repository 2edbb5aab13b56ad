"""Which of a bundle's graphs runs here: the manifest says what suits each device."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from engine.api.errors import BundleError, UnavailableError
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import Manifest, check_hash
from engine.inference.backend import Backend, Readout
from engine.inference.onnx import OnnxBackend
from engine.inference.tensorrt.backend import Libraries, TensorRTBackend, find_libraries

log = logging.getLogger(__name__)

GPU = ("tensorrt", "cuda")  # the faster first
PLAN = re.compile(r"backbone\.sm(\d+)\.plan")


def open_backend(
    bundle: Path, manifest: Manifest, device: str = "auto", threads: int = 0
) -> Backend:
    """The backend for `device`; auto takes what works of TensorRT, ONNX Runtime's CUDA and the CPU,
    and logs why it took no earlier one.

    threads: of the CPU, 0 = one per core. Raises BundleError where the bundle has no graph for the
    device, the graph is damaged, or this machine has no such device.
    """
    if device != "auto":
        return _open(bundle, manifest, device, threads)
    for name in GPU:
        try:
            return _open(bundle, manifest, name, threads)
        except BundleError as error:
            log.info("not on %s: %s", name, error)
    return _open(bundle, manifest, "cpu", threads)


def _open(bundle: Path, manifest: Manifest, device: str, threads: int) -> Backend:
    if device not in manifest.graphs:
        raise BundleError(
            f"{bundle} has no graph for --device {device}, only for {sorted(manifest.graphs)};"
            " `make export` says why it left one out."
        )
    if device == "tensorrt":
        return open_tensorrt(bundle, manifest, find_libraries())
    # The list says what the wheel was built with; whether there is a GPU, only a session knows.
    if device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BundleError("this onnxruntime is built without CUDA: `pip install '.[gpu]'`.")
    check_hash(bundle, manifest, manifest.graphs[device])
    return OnnxBackend(bundle / manifest.graphs[device], threads, cuda=device == "cuda")


def open_tensorrt(bundle: Path, manifest: Manifest, libraries: Libraries) -> TensorRTBackend:
    """The plan for the GPU that is here, tried out; raises BundleError where there is none, or it
    does not give probabilities."""
    name = choose_plan(manifest.files, libraries.cuda.capability())
    check_hash(bundle, manifest, name)
    backend = TensorRTBackend(bundle / name, libraries)
    readout = Readout(load_arrays(bundle).readout, manifest.norm_eps, manifest.calibration)
    try:
        _try_out(backend, manifest.width, readout)
    except (BundleError, UnavailableError) as error:
        backend.close()
        raise BundleError(f"{name} does not score on this GPU: {error}") from error
    return backend


def choose_plan(files: Iterable[str], capability: str) -> str:
    """The plan among `files` for a compute capability ("89"); a plan runs on its own only.

    Raises BundleError where none is."""
    plans = {match[1]: name for name in files if (match := PLAN.fullmatch(name))}
    if capability not in plans:
        raise BundleError(
            f"the GPU here is sm{capability}, the bundle's plans are for"
            f" {', '.join(f'sm{c}' for c in sorted(plans)) or 'none'};"
            f" `python -m export --cuda-arch {capability}` builds one."
        )
    return plans[capability]


def _try_out(backend: TensorRTBackend, width: int, readout: Readout) -> None:
    """Three forwards: queued, queued again and captured, and from the graph, must agree."""
    random = np.random.default_rng(0)
    table = (0.1 * random.standard_normal((4, width))).astype(np.float32)
    tokens = [np.arange(backend.profile.length.most // 2, dtype=np.int64) % 8]
    found = [
        backend.probabilities(tokens, table, np.arange(len(table)), readout).p for _ in range(3)
    ]
    gap = max(float(np.abs(p - found[0]).max()) for p in found)
    if not gap <= 1e-3:  # NaN too
        raise BundleError(
            f"three runs of one forward differ by {gap:.2g} in p; give --device cuda or cpu."
        )
