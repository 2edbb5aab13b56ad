"""What bench.compare measures in turn: forward passes, their products, the kernel, other engines.

128 tokens and 20 candidates unless a name says otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from bench import llama_cpp
from bench.paper_pipeline import reference_pipeline
from bench.roofline import Shape, products, session
from cpp_ext import score, score_reference
from cpp_ext.forward import Forward, paths
from engine.bundle.manifest import Manifest, read_manifest
from engine.bundle.prompt import INQUIRY, render
from engine.inference.fused import FAST_PATHS, FusedBackend
from engine.inference.onnx import OnnxBackend
from export.formats import POSITIONS, cached_prompt
from export.onnx.llama import emit_backbone
from export.onnx.ops import LlamaConfig
from tools.processes import BUNDLE
from training.weights.base import BACKBONE, CACHE, fetch, load_base

LENGTH, CANDIDATES, FULL_DEPTH = 128, 20, 30
REPEATS = 20  # of the kernel in one turn: its rows are in the cache, as after a forward pass
KERNEL, NUMPY = f"kernel, {REPEATS} x 1,024 rows", f"kernel in NumPy, {REPEATS} x 1,024 rows"
LLAMA_CPP, REFERENCE = "llama.cpp, Q4_1, equal depth", "reference pipeline, {} layers"
STEPS = ("fp32, standard operators, prompt read", "fp32, standard operators")
FUSED, PRODUCTS, ONE_THREAD = "fused, {}", "products alone, {}", "{}, one thread"
Call = Callable[[], object]


def medians(baselines: Mapping[str, Call], rounds: Mapping[str, int]) -> dict[str, float]:
    """Call each baseline once a round, up to its number of rounds; return median milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in baselines}
    for name in baselines:
        baselines[name]()
    for number in tqdm(range(max(rounds.values())), desc="compare", unit="round"):
        for name, call in baselines.items():
            if number < rounds[name]:
                started = time.perf_counter()
                call()
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: float(np.median(t)) for name, t in times.items()}


def prompt(length: int) -> NDArray[np.int64]:
    """Return a real prompt of `length` tokens."""
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return render("one two three four five " * 40, tokenizer).tokens[:length]


def rows(count: int, width: int) -> NDArray[np.float32]:
    """Return random embeddings (count, D) with the magnitude of real ones."""
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal((count, width))).astype(np.float32)


def forwards(quick: bool, threads: int, scratch: Path, skipped: dict[str, str]) -> dict[str, float]:
    """Return the median milliseconds of every baseline.

    skipped: filled in with baseline -> reason for those that cannot run here.
    """
    manifest = read_manifest(BUNDLE, "bundle")
    tokens, some = prompt(LENGTH), rows(CANDIDATES, manifest.width)
    fp32, int8 = (OnnxBackend(BUNDLE / manifest.graphs[d], threads) for d in ("cpu-fp32", "cpu"))
    many = {n: rows(n, manifest.width) for n in (1, 100, 1000)}
    hidden = rows(1024, manifest.width)[None]
    weight, fixed = rows(1, manifest.width)[0], {"eps": 1e-5, "scale": 1.0, "offset": 0.0}
    baselines: dict[str, Call] = {
        "products alone, fp32": products_alone(manifest, threads, scratch),
        "fp32": lambda: fp32.hidden([tokens], some),
        "int8": lambda: int8.hidden([tokens], some),
        "int8, 1 candidate": lambda: int8.hidden([tokens], many[1]),
        "int8, 100 candidates": lambda: int8.hidden([tokens], many[100]),
        "int8, 1,000 candidates": lambda: int8.hidden([tokens], many[1000]),
        KERNEL: lambda: [score(hidden, weight, **fixed) for _ in range(REPEATS)],
        NUMPY: lambda: [score_reference(hidden, weight, **fixed) for _ in range(REPEATS)],
    }
    baselines |= fused(manifest, threads, tokens, some)
    if not quick:
        baselines |= steps(manifest, threads, scratch, tokens, some)
    rounds = dict.fromkeys(baselines, 10 if quick else 40)
    with ExitStack() as processes:
        try:
            cut = scratch / "cut.gguf"
            llama_cpp.cut(fetch(BACKBONE, CACHE), manifest.depth, cut)
            engine = llama_cpp.running(cut, threads, LENGTH)
            baselines[LLAMA_CPP] = processes.enter_context(engine)
            rounds[LLAMA_CPP] = 5 if quick else 20
        except llama_cpp.MissingError as error:
            skipped[LLAMA_CPP] = str(error)
        try:
            for depth, most in (
                (manifest.depth, 2 if quick else 5),
                (FULL_DEPTH, 1 if quick else 3),
            ):
                name = REFERENCE.format(depth)
                baselines[name] = reference_pipeline(depth, tokens, some, threads)
                rounds[name] = most
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            skipped[REFERENCE.format(FULL_DEPTH)] = "torch is not installed"
        return medians(baselines, rounds)


def fused(
    manifest: Manifest, threads: int, tokens: NDArray[np.int64], some: NDArray[np.float32]
) -> dict[str, Call]:
    """Return the fused forward pass on each fast path that this processor and bundle have."""
    calls: dict[str, Call] = {}
    for path in FAST_PATHS:
        graph = manifest.graphs.get("cpu-bf16" if path.endswith("bf16") else "cpu-fused")
        if graph is None or path not in paths():
            continue
        name, forward = FUSED.format(path), Forward(BUNDLE / graph, path, threads)
        read = LENGTH - _inquiry_tokens()
        calls[PRODUCTS.format(name)] = lambda f=forward, n=read: f.products(n, CANDIDATES + 1)  # type: ignore[misc]
        for used, label in ((threads, name), (1, ONE_THREAD.format(name))):
            backend = FusedBackend(BUNDLE / graph, used, [path])
            calls[label] = lambda b=backend: b.hidden([tokens], some)  # type: ignore[misc]
    return calls


def steps(
    manifest: Manifest,
    threads: int,
    scratch: Path,
    tokens: NDArray[np.int64],
    some: NDArray[np.float32],
) -> dict[str, Call]:
    """Return earlier forms of the graph: without constant keys of the prompt, without fusion."""
    base = load_base("artifacts/checkpoint/backbone")
    config = LlamaConfig.of(base.config)
    calls: dict[str, Call] = {}
    for name, cached in ((STEPS[0], ()), (STEPS[1], cached_prompt(base, config))):
        path = scratch / f"{name}.onnx"
        emit_backbone(config, base.arrays, path, cached=cached, positions=POSITIONS)
        backend = OnnxBackend(path, threads)
        calls[name] = lambda backend=backend: backend.hidden([tokens], some)  # type: ignore[misc]
    return calls


def products_alone(manifest: Manifest, threads: int, scratch: Path) -> Call:
    """Return a function that computes the needed products of a request alone, in fp32."""
    config = load_base(BACKBONE, CACHE).config
    head = manifest.width // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head
    shape = Shape(manifest.depth, manifest.width, keys, config["intermediate_size"], head)
    read = LENGTH - _inquiry_tokens() + CANDIDATES
    products(shape, read, CANDIDATES, LENGTH, scratch / "products.onnx")
    runs, random = session(scratch / "products.onnx", threads), np.random.default_rng(0)
    feeds = {
        each.name: (0.1 * random.standard_normal(each.shape)).astype(np.float32)
        for each in runs.get_inputs()
    }
    return lambda: runs.run(None, feeds)


def _inquiry_tokens() -> int:
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return len(tokenizer.encode(INQUIRY, add_special_tokens=False).ids)
