"""What the steps share: the libraries, a file that is written part by part, and timing."""

from __future__ import annotations

import ctypes
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpp_ext import cuda as kernel
from engine.inference.tensorrt.backend import Libraries
from engine.inference.tensorrt.cuda import Cuda, find_cuda

LIBRARIES = "engine.inference.tensorrt.backend"


def libraries(module: str) -> Libraries:
    """Return what find_libraries() of a module returns: of LIBRARIES, or of a fake in a test."""
    found = importlib.import_module(module).find_libraries()
    assert isinstance(found, Libraries)
    return found


def cuda_and_kernel(module: str) -> tuple[Cuda, ctypes.CDLL]:
    """Return the CUDA runtime and the CUDA kernel alone: not every GPU has a TensorRT."""
    if module == LIBRARIES:
        return find_cuda(), kernel.load()
    fake = libraries(module)
    return fake.cuda, fake.kernel


class Parts:
    """A JSON file of results, written after each part."""

    def __init__(self, out: Path) -> None:
        self.found: dict[str, Any] = {}
        self._out = out

    def add(self, name: str, make: Callable[[], Any]) -> None:
        """Store make(), or how it failed, so that one part costs no other."""
        started = time.monotonic()
        try:
            value = make()
        except Exception as error:  # noqa: BLE001
            value = {"failed": f"{type(error).__name__}: {error}"[:1500]}
        self.found[name] = value
        self.found.setdefault("seconds", {})[name] = round(time.monotonic() - started, 2)
        self._out.write_text(json.dumps(self.found, indent=1, default=float) + "\n", "utf-8")


def timed_ms(run: Callable[[], object], seconds: float, most: int = 300) -> list[float]:
    """Return the milliseconds of each run within `seconds`, after one that is not counted."""
    run()
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 2 or (len(times) < most and time.monotonic() - started < seconds):
        before = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - before))
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the maximum, in milliseconds."""
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    named = {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "max_ms": max(times), "runs": len(times)}
    return {name: float(value) for name, value in named.items()}
