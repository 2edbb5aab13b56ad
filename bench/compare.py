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
from pathlib import Path
from typing import Any

import numpy as np

from bench.agreement import differences
from bench.baselines import LENGTH, forwards, fused_files, prompt, rows, with_busy_neighbor
from bench.latency import texts
from bench.load_generator import closed_loop
from bench.report import busy_seconds, environment, markdown, others_share, write
from bench.targets import Measured, targets_of
from engine.bundle.manifest import read_manifest
from engine.inference.backend import ScoringHead
from engine.inference.devices import open_backend
from export.formats import POSITIONS, cached_prompt
from export.onnx.llama import emit_backbone
from export.onnx.ops import Int8, LlamaConfig
from tools.processes import BUNDLE, Server, await_ready, launch, serving
from training.weights.base import BACKBONE, CACHE, load_base

NO_CACHE = ("--score-cache-mb", "0")


def served(quick: bool, scratch: Path) -> dict[str, Any]:
    """Return the start time and memory of a server and its latencies over gRPC, and those of one on
    ONNX Runtime's int8 graph at 8 connections."""
    started = time.monotonic()
    server = await_ready(launch(scratch / "candidates.sqlite", *NO_CACHE))
    ready = time.monotonic() - started
    try:
        one = load(server, 30 if quick else 200, 1)
        eight = load(server, 80 if quick else 320, 8)
        resident_mb = server.resident_mb()
    finally:
        server.terminate()
    with serving(scratch / "by-onnxruntime.sqlite", *NO_CACHE, "--device", "cpu-onnx") as other:
        before = load(other, 80 if quick else 320, 8)
    return {"ready_s": ready, "resident_mb": resident_mb, "one": one, "eight": eight,
            "eight_by_onnxruntime": before}  # fmt: skip


def load(server: Server, calls: int, connections: int) -> dict[str, Any]:
    """Return the summary of so many calls, after a few that are not counted."""
    asyncio.run(closed_loop(server.address, texts(2 * connections, 4), connections))
    return asyncio.run(closed_loop(server.address, texts(calls, 4), connections)).summary()


def resident_mb() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_per_candidate() -> float:
    """Return the KB of memory per candidate: what forward passes with 1,000 candidates add to what
    serves on this machine. These are activations, which it keeps for the next forward pass."""
    manifest = read_manifest(BUNDLE, "bundle")
    backend, tokens = open_backend(BUNDLE, manifest, "cpu"), prompt(LENGTH)
    weight = rows(1, manifest.width)[0]
    head = ScoringHead(weight, manifest.norm_eps, manifest.calibration)
    few, many = rows(1, manifest.width), rows(1000, manifest.width)
    for _ in range(3):
        backend.probabilities([tokens], few, np.arange(1), head)
    before = resident_mb()
    for _ in range(3):
        backend.probabilities([tokens], many, np.arange(1000), head)
    return (resident_mb() - before) * 1024 / 999


def size_at_depth(depth: int, scratch: Path) -> float:
    """Return the MB of the int8 backbone with `depth` layers."""
    base = load_base(BACKBONE, CACHE, depth)
    config, path = LlamaConfig.of(base.config), scratch / "deep.onnx"
    cached = cached_prompt(base, config)
    emit_backbone(config, base.arrays, path, ops=Int8, cached=cached, positions=POSITIONS)
    return path.stat().st_size / 1e6


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within 60 seconds")
    parser.add_argument("--threads", type=int, default=2, help="inference threads")
    options = parser.parse_args()
    started, busy_before = time.monotonic(), busy_seconds()
    quick, threads = options.quick, options.threads
    described = environment(threads=threads, quick=quick, arrivals="closed loop")
    manifest = read_manifest(BUNDLE, "bundle")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        memory = memory_per_candidate()
        size = None if quick else size_at_depth(12, scratch)
        live = served(quick, scratch)
        agreement = differences(fused_files(manifest), threads)
        skipped: dict[str, str] = {}
        ms = forwards(quick, threads, scratch, skipped)
        busy = with_busy_neighbor(manifest, threads)
    wall = time.monotonic() - started
    described["others_cpu_share"] = others_share(busy_before, wall)
    found = Measured(
        ms, busy, live, agreement, memory, manifest.depth, size, skipped, wall if quick else None
    )
    targets = targets_of(found)
    result = {
        "environment": described,
        "milliseconds": ms,
        "with_a_busy_neighbor": busy,
        "agreement": agreement,
        "server": live,
        "skipped": skipped,
        "wall_s": wall,
    }
    write("compare", result, targets, ms)
    print(processor_line(described))
    for name, value in ms.items():
        print(f"{name:44}{value:10.2f} ms")
    for name, reason in skipped.items():
        print(f"{name:44}   left out: {reason}")
    print(f"{markdown(targets)}\nwall time {wall:.0f} s, other processes took"
          f" {described['others_cpu_share']:.0%} of the cores")  # fmt: skip
    print(json.dumps(result | {"targets": [t.row() for t in targets]}))


def processor_line(described: dict[str, Any]) -> str:
    """Return the processor, cores and instruction sets of every figure in one line."""
    sets, cores = " ".join(described["instruction_sets"]), described["cores"]
    return f"{described['processor']}, {cores} cores ({sets}), {described['threads']} threads"


if __name__ == "__main__":
    main()
