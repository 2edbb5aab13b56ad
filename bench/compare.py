"""Every latency target in one run: contenders take turns, medians and ratios count.

    python -m bench.compare [--quick]

128 tokens and 20 candidates unless a row says otherwise. --quick ends within 50 seconds. Writes
bench/results/compare.json, .png and .html; the last line on stdout is JSON with `targets`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.floor import Shape, products, session
from bench.latency import texts
from bench.load import closed_loop
from bench.process import BUNDLE, await_ready, launch
from bench.reference import reference_pipeline
from bench.report import Target, conditions, markdown, write
from cpp_ext import score, score_reference
from engine.contract.bundle import read_manifest
from engine.contract.prompt import INQUIRY, render
from engine.scoring.onnx_backend import OnnxBackend
from export.formats import POSITIONS, cached_prompt
from export.llama import emit_backbone
from export.ops import Int8, LlamaConfig
from training.base import BACKBONE, CACHE, load_base

LENGTH, CANDIDATES, FULL_DEPTH = 128, 20, 30
REPEATS = 20  # of the kernel in one turn: its rows are in the cache, as after a forward
KERNEL, NUMPY = f"kernel, {REPEATS} x 1,024 rows", f"kernel in NumPy, {REPEATS} x 1,024 rows"
Call = Callable[[], object]


def medians(contenders: Mapping[str, Call], rounds: Mapping[str, int]) -> dict[str, float]:
    """Milliseconds of each; one call of each contender a round, as long as it has rounds left."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for name in contenders:
        contenders[name]()
    for number in tqdm(range(max(rounds.values())), desc="compare", unit="round"):
        for name, call in contenders.items():
            if number < rounds[name]:
                begun = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - begun))
    return {name: float(np.median(t)) for name, t in times.items()}


def prompt(length: int) -> NDArray[np.int64]:
    """A real prompt of `length` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return render("one two three four five " * 40, tokenizer).tokens[:length]


def rows(count: int, width: int) -> NDArray[np.float32]:
    """(count, D) embeddings of the size of the real ones."""
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal((count, width))).astype(np.float32)


def forwards(quick: bool, threads: int, scratch: Path) -> dict[str, float]:
    """Milliseconds of every forward pass, and of the products alone."""
    manifest = read_manifest(BUNDLE, "bundle")
    config = load_base(BACKBONE, CACHE).config
    keys = config["num_key_value_heads"] * (manifest.width // config["num_attention_heads"])
    shape = Shape(manifest.depth, manifest.width, keys, config["intermediate_size"])
    tokens, some = prompt(LENGTH), rows(CANDIDATES, manifest.width)
    read = LENGTH - _inquiry_tokens() + CANDIDATES
    products(shape, read, CANDIDATES, scratch / "products.onnx")
    floor, x = session(scratch / "products.onnx", threads), rows(read, manifest.width)
    fp32, int8 = (OnnxBackend(BUNDLE / manifest.graphs[d], threads) for d in ("cpu-fp32", "cpu"))
    many = {n: rows(n, manifest.width) for n in (1, 100, 1000)}
    hidden = rows(1024, manifest.width)[None]
    weight, fixed = rows(1, manifest.width)[0], {"eps": 1e-5, "scale": 1.0, "offset": 0.0}
    contenders: dict[str, Call] = {
        "products alone, fp32": lambda: floor.run(None, {"x": x}),
        "fp32": lambda: fp32.hidden([tokens], some),
        "int8": lambda: int8.hidden([tokens], some),
        "int8, 1 candidate": lambda: int8.hidden([tokens], many[1]),
        "int8, 100 candidates": lambda: int8.hidden([tokens], many[100]),
        "int8, 1,000 candidates": lambda: int8.hidden([tokens], many[1000]),
        KERNEL: lambda: [score(hidden, weight, **fixed) for _ in range(REPEATS)],
        NUMPY: lambda: [score_reference(hidden, weight, **fixed) for _ in range(REPEATS)],
    }
    rounds = dict.fromkeys(contenders, 10 if quick else 40)
    try:
        for depth, most in ((manifest.depth, 2 if quick else 5), (FULL_DEPTH, 1 if quick else 3)):
            name = f"reference pipeline, {depth} layers"
            contenders[name] = reference_pipeline(depth, tokens, some, threads)
            rounds[name] = most
    except ImportError:
        tqdm.write("torch is not installed: no reference pipeline")
    return medians(contenders, rounds)


def _inquiry_tokens() -> int:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return len(tokenizer.encode(INQUIRY, add_special_tokens=False).ids)


def served(quick: bool, scratch: Path) -> dict[str, Any]:
    """The server's start, memory, and times over gRPC beside those of its own forward."""
    begun = time.monotonic()
    server = await_ready(launch(scratch / "candidates.sqlite", "--cache-mb", "0"))
    ready = time.monotonic() - begun
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
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory_per_candidate() -> float:
    """KB that a forward with 1,000 candidates adds to one with a single one, per candidate."""
    manifest = read_manifest(BUNDLE, "bundle")
    backend, tokens = OnnxBackend(BUNDLE / manifest.graphs["cpu"]), prompt(LENGTH)
    backend.hidden([tokens], rows(1, manifest.width))
    before = resident_mb()
    backend.hidden([tokens], rows(1000, manifest.width))
    return (resident_mb() - before) * 1024 / 999


def size_at_depth(depth: int, scratch: Path) -> float:
    """MB of the int8 backbone with this many layers."""
    base = load_base(BACKBONE, CACHE, depth)
    config, path = LlamaConfig.of(base.config), scratch / "deep.onnx"
    cached = cached_prompt(base, config)
    emit_backbone(
        config, base.arrays, "candidate_last", path, ops=Int8, cached=cached, positions=POSITIONS
    )
    return path.stat().st_size / 1e6


def judge(
    ms: Mapping[str, float], live: Mapping[str, Any], memory: float, size: float
) -> list[Target]:
    """The targets of the project."""
    depth = read_manifest(BUNDLE, "bundle").depth

    def over(one: str, other: str) -> float | None:
        return ms[one] / ms[other] if one in ms and other in ms else None

    full, equal = (f"reference pipeline, {d} layers" for d in (FULL_DEPTH, depth))
    torch = "torch is not installed"
    growth = ms["int8, 100 candidates"] / ms["int8, 1 candidate"]
    one, eight = live["one"], live["eight"]
    forward = one["phases_ms"]["forward"]
    share = one["phases_ms"]["score"] / one["phases_ms"]["total"]
    kernel = over(NUMPY, KERNEL)
    return [
        Target(
            "fp32 beside the reference pipeline at equal depth, times faster",
            over(equal, "fp32"),
            ">= 15",
            torch,
        ),
        Target(
            "int8 beside the reference pipeline at full depth, times faster",
            over(full, "int8"),
            ">= 200",
            torch,
        ),
        Target("fp32 beside its products alone", over("fp32", "products alone, fp32"), "<= 1.1"),
        Target("int8 beside fp32, times faster", over("fp32", "int8"), ">= 1.8"),
        Target(
            "int8 beside llama.cpp, times faster",
            None,
            ">= 2.5",
            "llama-cpp-python is not built here",
        ),
        Target(
            "100 candidates over 1, beside their token counts",
            growth / ((LENGTH + 100) / (LENGTH + 1)),
            "<= 1.05",
        ),
        Target("KB of memory a candidate, at 1,000", memory, "<= 4"),
        Target("gRPC p50 less its forward's, ms", one["p50_ms"] - forward, "<= 1.0"),
        Target(
            "throughput, 8 at a time, beside the forward alone",
            eight["per_second"] * forward / 1000,
            ">= 0.95",
        ),
        Target("kernel beside NumPy at 1,024 rows, times faster", kernel, ">= 20"),
        Target("kernel's share of a decision", share, "<= 0.02"),
        Target("resident memory of the server, MB", live["resident_mb"], "<= 350"),
        Target("start to ready, s", live["ready_s"], "<= 3"),
        Target("int8 backbone at 12 layers, MB", size, "<= 90"),
    ]


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within 50 seconds")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    described = conditions(threads=arguments.threads, quick=arguments.quick, arrivals="closed loop")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        memory, size = memory_per_candidate(), size_at_depth(12, scratch)
        live = served(arguments.quick, scratch)
        ms = forwards(arguments.quick, arguments.threads, scratch)
    targets = judge(ms, live, memory, size)
    result = {"conditions": described, "milliseconds": ms, "server": live}
    write("compare", result, targets, ms)
    for name, value in ms.items():
        print(f"{name:36}{value:10.2f} ms")
    print(markdown(targets))
    print(json.dumps(result | {"targets": [t.row() for t in targets]}))


if __name__ == "__main__":
    main()
