"""Open the formats of the shipped bundle."""

from __future__ import annotations

import os

import pytest

import cpp_ext.forward
from engine.inference.fused import FusedBackend
from engine.inference.onnx import OnnxBackend
from tools.processes import BUNDLE


def open_format(name: str, threads: int, path: str | None = None) -> OnnxBackend | FusedBackend:
    """Open a file of the bundle with the backend that reads it.

    path: of the fused forward pass; the best one if it is None. Skips the test if this machine has
    no compiled forward pass, and fails it with MODELSAT_REQUIRE_KERNEL=1.
    """
    if not name.endswith(".fused"):
        return OnnxBackend(BUNDLE / name, threads)
    reason = ""
    if not cpp_ext.forward.paths():
        reason = cpp_ext.forward.implementation()
    elif not (BUNDLE / name).is_file():
        reason = f"the bundle has no {name}; `make export` writes it"
    if reason and os.environ.get("MODELSAT_REQUIRE_KERNEL") == "1":
        pytest.fail(f"MODELSAT_REQUIRE_KERNEL=1, but {reason}")
    if reason:
        pytest.skip(reason)
    return FusedBackend(BUNDLE / name, threads, [path] if path else cpp_ext.forward.paths())
