"""Measure every latency target in one run: baselines in turn, compared by ratios of medians.

    python -m bench.compare [--quick]

128 tokens and 20 candidates unless a row says otherwise. --quick ends within 60 seconds. Writes
bench/results/compare.json, .png and .html; the last line of stdout is JSON with `targets`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.baselines import (
    FULL_DEPTH,
    FUSED,
    KERNEL,
    LENGTH,
    LLAMA_CPP,
    NUMPY,
    ONE_THREAD,
    PRODUCTS,
    REFERENCE,
    forwards,
    prompt,
    rows,
)
from bench.latency import texts
from bench.load_generator import closed_loop
from bench.report import Target, environment, markdown, write
from engine.bundle.manifest import read_manifest
from engine.inference.fused import FAST_PATHS
from engine.inference.onnx import OnnxBackend
from export.formats import POSITIONS, cached_prompt
from export.onnx.llama import emit_backbone
from export.onnx.ops import Int8, LlamaConfig
from tools.processes import BUNDLE, await_ready, launch
from training.weights.base import BACKBONE, CACHE, load_base


def served(quick: bool, scratch: Path) -> dict[str, Any]:
    """Return the start time and memory of a server, and its latencies over gRPC."""
    started = time.monotonic()
    server = await_ready(launch(scratch / "candidates.sqlite", "--score-cache-mb", "0"))
    ready = time.monotonic() - started
    try:
        asyncio.run(closed_loop(server.address, texts(8, 4), 1))
        one = asyncio.run(closed_loop(server.address, texts(30 if quick else 200, 4), 1)).summary()
        eight = asyncio.run(
            closed_loop(server.address, texts(40 if quick else 320, 4), 8)
        ).summary()
        memory = Path(f"/proc/{server.process.pid}/status").read_text()
    finally:
        server.terminate()
    resident = next(int(x.split()[1]) for x in memory.splitlines() if x.startswith("VmRSS"))
    return {"ready_s": ready, "resident_mb": resident / 1024, "one": one, "eight": eight}


def resident_mb() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_per_candidate() -> float:
    """Return the KB of memory per candidate: what forward passes with 1,000 candidates add.

    These are activations, which ONNX Runtime keeps for the next forward pass.
    """
    manifest = read_manifest(BUNDLE, "bundle")
    backend, tokens = OnnxBackend(BUNDLE / manifest.graphs["cpu"]), prompt(LENGTH)
    for _ in range(3):
        backend.hidden([tokens], rows(1, manifest.width))
    before = resident_mb()
    for _ in range(3):
        backend.hidden([tokens], rows(1000, manifest.width))
    return (resident_mb() - before) * 1024 / 999


def size_at_depth(depth: int, scratch: Path) -> float:
    """Return the MB of the int8 backbone with `depth` layers."""
    base = load_base(BACKBONE, CACHE, depth)
    config, path = LlamaConfig.of(base.config), scratch / "deep.onnx"
    cached = cached_prompt(base, config)
    emit_backbone(config, base.arrays, path, ops=Int8, cached=cached, positions=POSITIONS)
    return path.stat().st_size / 1e6


def targets_of(
    ms: Mapping[str, float],
    live: Mapping[str, Any],
    memory: float,
    size: float | None,
    skipped: Mapping[str, str],
) -> list[Target]:
    """Compare the measurements with the targets."""
    depth = read_manifest(BUNDLE, "bundle").depth

    def over(one: str, other: str) -> float | None:
        return ms[one] / ms[other] if one in ms and other in ms else None

    full, equal = (REFERENCE.format(d) for d in (FULL_DEPTH, depth))
    torch, llama = skipped.get(full, ""), skipped.get(LLAMA_CPP, "")
    one, eight = live["one"], live["eight"]
    growth = ms["int8, 100 candidates"] / ms["int8, 1 candidate"]
    growth /= (LENGTH + 100) / (LENGTH + 1)
    forward, paper = one["phases_ms"]["inference"], "reference pipeline"
    share = one["phases_ms"]["scoring"] / one["phases_ms"]["total"]
    together = eight["per_second"] * forward / 1000
    amx, bf16, vnni = (FUSED.format(path) for path in FAST_PATHS)
    missing = "this processor or bundle has no such path"
    return [
        Target(f"{amx}: speedup over int8", over("int8", amx), ">= 4.5", missing),
        Target(
            f"{ONE_THREAD.format(amx)}: speedup over int8",
            over("int8", ONE_THREAD.format(amx)),
            ">= 3",
            missing,
        ),
        Target(
            f"{amx}: time / time of its products alone",
            over(amx, PRODUCTS.format(amx)),
            "<= 2.3",
            missing,
        ),
        Target(f"{bf16}: speedup over int8", over("int8", bf16), ">= 3", missing),
        Target(f"{vnni}: speedup over int8", over("int8", vnni), ">= 1.9", missing),
        Target(
            f"fp32: speedup over the {paper} at equal depth", over(equal, "fp32"), ">= 15", torch
        ),
        Target(
            f"int8: speedup over the {paper} at full depth", over(full, "int8"), ">= 200", torch
        ),
        Target(
            "fp32: time / time of its products alone",
            over("fp32", "products alone, fp32"),
            "<= 1.1",
        ),
        Target("int8: speedup over fp32", over("fp32", "int8"), ">= 1.8"),
        Target("int8: speedup over llama.cpp", over(LLAMA_CPP, "int8"), ">= 2.5", llama),
        Target("time of 100 candidates / 1, relative to the token counts", growth, "<= 1.05"),
        Target("KB of memory per candidate, at 1,000", memory, "<= 4"),
        Target("gRPC p50 minus forward pass, ms", one["p50_ms"] - forward, "<= 1.0"),
        Target("throughput of 8 connections / forward pass alone", together, ">= 0.95"),
        Target("kernel: speedup over NumPy at 1,024 rows", over(NUMPY, KERNEL), ">= 20"),
        Target("share of the kernel in a decision", share, "<= 0.02"),
        Target("resident memory of the server, MB", live["resident_mb"], "<= 350"),
        Target("start until ready, s", live["ready_s"], "<= 3"),
        Target("int8 backbone at 12 layers, MB", size, "<= 90", "not measured with --quick"),
    ]


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within 60 seconds")
    parser.add_argument("--threads", type=int, default=2, help="inference threads")
    arguments = parser.parse_args()
    described = environment(
        threads=arguments.threads, quick=arguments.quick, arrivals="closed loop"
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        memory = memory_per_candidate()
        size = None if arguments.quick else size_at_depth(12, scratch)
        live = served(arguments.quick, scratch)
        skipped: dict[str, str] = {}
        ms = forwards(arguments.quick, arguments.threads, scratch, skipped)
    targets = targets_of(ms, live, memory, size, skipped)
    result = {"environment": described, "milliseconds": ms, "server": live, "skipped": skipped}
    write("compare", result, targets, ms)
    for name, value in ms.items():
        print(f"{name:36}{value:10.2f} ms")
    print(markdown(targets))
    print(json.dumps(result | {"targets": [t.row() for t in targets]}))


if __name__ == "__main__":
    main()
