"""Open the formats of the shipped bundle."""

from __future__ import annotations

import os

import pytest

from cpp_ext.forward import implementation, paths
from engine.inference.fused import FusedBackend
from engine.inference.onnx import OnnxBackend
from tools.processes import BUNDLE


def open_format(name: str, threads: int, path: str | None = None) -> OnnxBackend | FusedBackend:
    """Open a file of the bundle with the backend that reads it.

    path: of the fused forward pass; the best one if it is None. Skips the test if this machine has
    no compiled forward pass, and fails it with MODELSAT_REQUIRE_KERNEL=1. bf16 is skipped in any
    case where the bundle, which has it only on demand, or the CPU lacks it: the scalar reference
    would take minutes.
    """
    if not name.endswith(".fused"):
        return OnnxBackend(BUNDLE / name, threads)
    reason = ""
    if not paths():
        reason = implementation()
    elif not (BUNDLE / name).is_file():
        reason = f"the bundle has no {name}; see `python -m export --formats`"
    if "bf16" in name and not reason and not any(path.endswith("bf16") for path in paths()):
        reason = "this CPU has no path in bf16"
    if "bf16" not in name and reason and os.environ.get("MODELSAT_REQUIRE_KERNEL") == "1":
        pytest.fail(f"MODELSAT_REQUIRE_KERNEL=1, but {reason}")
    if reason:
        pytest.skip(reason)
    return FusedBackend(BUNDLE / name, threads, [path] if path else paths())
