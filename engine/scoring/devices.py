"""Which of a bundle's graphs runs here: the manifest says what suits each device."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime as ort

from engine.contract.bundle import Manifest, check_hash
from engine.contract.errors import BundleError
from engine.scoring.backend import Backend
from engine.scoring.onnx_backend import OnnxBackend

log = logging.getLogger(__name__)


def open_backend(
    bundle: Path, manifest: Manifest, device: str = "auto", threads: int = 0
) -> Backend:
    """The backend for `device`; auto takes a GPU where one answers, else the CPU.

    threads: of the CPU, 0 = one per core. Raises BundleError where the bundle has no graph for the
    device, the graph is damaged, or this machine has no such device.
    """
    if device != "auto":
        return _open(bundle, manifest, device, threads)
    # The list says what the wheel was built with; whether there is a GPU, only a session knows.
    if "cuda" in manifest.graphs and "CUDAExecutionProvider" in ort.get_available_providers():
        try:
            return _open(bundle, manifest, "cuda", threads)
        except BundleError as error:
            log.warning("no GPU for it, so the CPU scores: %s", error)
    return _open(bundle, manifest, "cpu", threads)


def _open(bundle: Path, manifest: Manifest, device: str, threads: int) -> Backend:
    if device not in manifest.graphs:
        raise BundleError(
            f"{bundle} has no graph for --device {device}, only for {sorted(manifest.graphs)};"
            " `make export` says why it left one out."
        )
    check_hash(bundle, manifest, manifest.graphs[device])
    return OnnxBackend(bundle / manifest.graphs[device], threads, cuda=device == "cuda")
