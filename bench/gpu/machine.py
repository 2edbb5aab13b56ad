"""Describe the machine of a GPU measurement, and say which of its parts are missing."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime as ort

from bench.report import environment
from cpp_ext import cuda as kernel
from engine.api.errors import ModelsatError
from engine.bundle.manifest import read_manifest
from engine.inference.devices import choose_plan
from engine.inference.tensorrt.cuda import find_cuda
from engine.inference.tensorrt.plan import find_library

FIELDS = (
    *("name", "driver_version", "compute_cap", "memory.total", "memory.used", "clocks.sm"),
    *("clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu", "pcie.link.gen.current"),
)
PACKAGES = (
    *("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "onnx", "tokenizers"),
    *("nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cuda-runtime"),
)


def output_of(*command: str) -> str:
    """Return what a program prints, or why it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return (done.stdout or done.stderr).strip()


def gpu_state() -> dict[str, str]:
    """Return nvidia-smi's values by field."""
    query = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader")
    return dict(zip(FIELDS, output_of(*query).split(", "), strict=False))


def describe() -> dict[str, Any]:
    """Return GPU, processor and versions."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    nvcc = output_of("nvcc", "--version").splitlines()
    return environment(gpu=gpu_state(), packages=packages, nvcc=nvcc[-2:-1] or "none")


def why_not(needs: str, bundle: Path, *, stand_in: bool) -> str:
    """Return why this machine or bundle lacks what a step needs; empty if it has it.

    needs: "" for nothing, "gpu", "kernel", an execution provider such as "CUDA", or "plan".
    stand_in: fakes take the place of GPU, kernel and TensorRT, with compute capability 8.9.
    """
    offered = ort.get_available_providers()
    if needs in ("CUDA", "Tensorrt") and f"{needs}ExecutionProvider" not in offered:
        return f"this onnxruntime has no {needs} provider, only {', '.join(offered)}"
    try:
        capability = "89"
        if needs and not stand_in:
            capability = find_cuda().capability()
            if needs in ("kernel", "plan"):
                kernel.load()
            if needs == "plan":
                find_library()
        if needs == "plan":
            choose_plan(read_manifest(bundle, "bundle").files, capability)
    except (ModelsatError, OSError, AttributeError) as error:
        return str(error)
    return ""
