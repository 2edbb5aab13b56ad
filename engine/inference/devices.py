"""Choose and open the backend for a device. The manifest names the graph for each device."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from engine.api.errors import BundleError, UnavailableError
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import Device, Manifest, check_hash
from engine.inference.backend import Backend, ScoringHead
from engine.inference.fused import FusedBackend
from engine.inference.onnx import OnnxBackend
from engine.inference.tensorrt.backend import Libraries, TensorRTBackend, find_libraries
from engine.inference.tensorrt.shapes import usual_shapes

log = logging.getLogger(__name__)

GPU_DEVICES = ("tensorrt", "cuda")  # fastest first
FUSED: Device = "cpu-fused"
LABELS = {"tensorrt": "TensorRT", "cuda": "CUDA"}
FALLBACKS = {"tensorrt": "CUDA", "cuda": "the CPU"}
PLAN_TOLERANCE = 5e-3  # of p; the export allows the fp16 graph as much (export/formats.py)
EMBEDDING_TOLERANCE = 0.05  # of an instruction's embedding, relative to its length
PLAN = re.compile(r"backbone\.sm(\d+)\.plan")


def open_backend(
    bundle: Path, manifest: Manifest, device: str = "auto", threads: int = 0
) -> Backend:
    """Open the backend for `device`.

    Args:
        bundle: folder of the bundle.
        manifest: of the bundle.
        device: "auto" tries TensorRT, ONNX Runtime's CUDA and the CPU, and logs why it skipped one.
            "cpu" tries the fused forward pass before ONNX Runtime, and logs likewise.
        threads: CPU threads; 0 means one per core.

    Raises:
        BundleError: the bundle has no graph for the device, the graph is damaged, or this machine
            has no such device.
    """
    if device != "auto":
        return _open(bundle, manifest, device, threads)
    for name in GPU_DEVICES:
        try:
            return _open(bundle, manifest, name, threads)
        except BundleError as error:
            log.info("%s unavailable (%s), trying %s", LABELS[name], error, FALLBACKS[name])
    return _open(bundle, manifest, "cpu", threads)


def _open(bundle: Path, manifest: Manifest, device: str, threads: int) -> Backend:
    if device == "cpu" and (fused := manifest.graphs.get(FUSED)) is not None:
        check_hash(bundle, manifest, fused)  # a damaged bundle is no reason to serve more slowly
        try:
            return FusedBackend(bundle / fused, threads)
        except BundleError as error:
            log.info("%s ONNX Runtime serves instead.", error)
    graph = manifest.graphs.get("cpu" if device == "cpu-onnx" else device)
    if graph is None:
        raise BundleError(
            f"{bundle} has no graph for --device {device}, only for {sorted(manifest.graphs)};"
            " `make export` prints why it left one out."
        )
    if device == "tensorrt":
        return open_tensorrt(bundle, manifest, find_libraries())
    # This lists what the wheel was built with. Whether there is a GPU shows when a session opens.
    cuda = device in ("cuda", "cuda-fp16")
    if cuda and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BundleError("This onnxruntime is built without CUDA; `pip install '.[gpu]'`.")
    check_hash(bundle, manifest, graph)
    if device in (FUSED, "cpu-bf16"):
        return FusedBackend(bundle / graph, threads)
    return OnnxBackend(bundle / graph, threads, provider="CUDA" if cuda else "CPU")


def open_tensorrt(bundle: Path, manifest: Manifest, libraries: Libraries) -> TensorRTBackend:
    """Open and test the bundle's TensorRT plan for this GPU, and capture the usual shapes.

    Raises BundleError if there is none, or if its probabilities differ from those of the graph that
    it was built from.
    """
    name = choose_plan(manifest.files, libraries.cuda.capability())
    check_hash(bundle, manifest, name)
    backend = TensorRTBackend(bundle / name, libraries)
    head = ScoringHead(load_arrays(bundle).readout, manifest.norm_eps, manifest.calibration)
    try:
        _self_test(backend, _reference(bundle, manifest), manifest.width, head)
    except (BundleError, UnavailableError) as error:
        backend.close()
        raise BundleError(f"{name} does not score correctly on this GPU: {error}") from error
    return backend


def choose_plan(files: Iterable[str], capability: str) -> str:
    """Return the plan in `files` for a compute capability such as "89". Plans run on no other.

    Raises BundleError if there is none.
    """
    plans = {match[1]: name for name in files if (match := PLAN.fullmatch(name))}
    if capability not in plans:
        raise BundleError(
            f"This GPU is sm{capability}, the bundle has plans for"
            f" {', '.join(f'sm{c}' for c in sorted(plans)) or 'none'};"
            f" `python -m export --cuda-arch {capability}` builds one."
        )
    return plans[capability]


def _reference(bundle: Path, manifest: Manifest) -> OnnxBackend:
    """Open the graph that plans are built from, on the CPU."""
    graphs = manifest.graphs  # bundles of version 0.2 have the fp16 graph as "cuda"
    name = graphs.get("cuda-fp16") or graphs.get("cuda") or graphs["cpu"]
    check_hash(bundle, manifest, name)
    return OnnxBackend(bundle / name)


def _self_test(backend: TensorRTBackend, reference: Backend, width: int, head: ScoringHead) -> None:
    """Check two prompts against `reference` when their forward pass is queued, and again after the
    usual shapes were captured, when it is launched as a CUDA graph."""
    random = np.random.default_rng(0)
    table = (0.1 * random.standard_normal((4, width))).astype(np.float32)
    longest = backend.profile.length.max
    tokens = [np.arange(n, dtype=np.int64) % 8 for n in (longest // 2, longest // 3)]
    expected = reference.probabilities(tokens, table, np.arange(len(table)), head)
    runs = [backend.probabilities(tokens, table, np.arange(len(table)), head)]
    backend.capture(head, usual_shapes(backend.profile))
    runs.append(backend.probabilities(tokens, table, np.arange(len(table)), head))
    difference = max(float(np.abs(run.p - expected.p).max()) for run in runs)
    if not difference <= PLAN_TOLERANCE:  # NaN too
        raise BundleError(
            f"p differs by {difference:.2g} from the same graph on the CPU, at most"
            f" {PLAN_TOLERANCE} is allowed; use --device cuda or cpu."
        )
    lengths = np.linalg.norm(expected.embeddings, axis=1)
    errors = [np.linalg.norm(run.embeddings - expected.embeddings, axis=1) for run in runs]
    difference = float((np.array(errors) / lengths).max())
    if not difference <= EMBEDDING_TOLERANCE:
        raise BundleError(
            f"an instruction's embedding differs by {difference:.2g} of its length from the same"
            f" graph on the CPU, at most {EMBEDDING_TOLERANCE} is allowed; use --device cuda or"
            " cpu."
        )


def runs_on_gpu(backend: Backend) -> bool:
    """Return True if forward passes of the backend run on a GPU."""
    return isinstance(backend, TensorRTBackend) or (
        isinstance(backend, OnnxBackend) and backend.provider != "CPU"
    )
