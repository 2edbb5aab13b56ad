"""What bench.compare measures in turn: forward passes, their products, the kernel, other engines.

128 tokens and 20 candidates unless a name says otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from bench.peers import llama_cpp, openvino
from bench.peers.paper_pipeline import reference_pipeline
from bench.peers.process import MissingError
from bench.roofline import Shape, products, session
from cpp_ext import score, score_reference
from cpp_ext.forward import Forward, paths
from engine.bundle.manifest import Manifest, read_manifest
from engine.bundle.prompt import INQUIRY, render
from engine.inference.fused import FAST_PATHS, FusedBackend
from engine.inference.onnx import OnnxBackend
from engine.registry.onnx_encoder import load_embedder
from export.formats import POSITIONS, cached_prompt
from export.onnx.llama import emit_backbone
from export.onnx.ops import LlamaConfig
from tools.processes import BUNDLE
from training.weights.base import BACKBONE, CACHE, fetch, load_base

LENGTH, CANDIDATES, FULL_DEPTH = 128, 20, 30
REPEATS = 20  # of the kernel in one turn: its rows are in the cache, as after a forward pass
KERNEL, NUMPY = f"kernel, {REPEATS} x 1,024 rows", f"kernel in NumPy, {REPEATS} x 1,024 rows"
LLAMA_CPP, REFERENCE = "llama.cpp, Q4_1, equal depth", "reference pipeline, {} layers"
OPENVINO, EMBEDDING = "OpenVINO, {}", "MiniLM embedding of 128 tokens, fp32"
TORCH = ("torch eager, fp32", "torch eager, bf16", "torch compiled, bf16")
STEPS = ("fp32, standard operators, prompt read", "fp32, standard operators")
FUSED, PRODUCTS, ONE_THREAD = "fused, {}", "products alone, {}", "{}, one thread"
ONEDNN = "products alone by oneDNN, {}"
ONE_BY_ONE, TOGETHER = "{}, 8 mixed lengths, one by one", "{}, 8 mixed lengths, one batch"
COUNTED = "{}, {} candidates"
MIXED = (24, 40, 64, 90, 128, 160, 200, 256)  # tokens
CHECKPOINT = "artifacts/checkpoint/backbone"
# Threads of OpenBLAS, OpenMP and ONNX Runtime's default spin on, on the cores of the next call.
SPINNING, PAUSE_S = ("NumPy", "MiniLM", "reference", "oneDNN", "torch"), 0.05
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
                time.sleep(PAUSE_S if any(word in name for word in SPINNING) else 0)
    return {name: float(np.median(t)) for name, t in times.items()}


def prompt(length: int) -> NDArray[np.int64]:
    """Return a real prompt of `length` tokens."""
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return render("one two three four five " * 60, tokenizer).tokens[:length]


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
        EMBEDDING: embedding(),
    }
    baselines |= fused(manifest, threads, tokens, some)
    if not quick:
        baselines |= steps(manifest, threads, scratch, tokens, some)
    rounds = dict.fromkeys(baselines, 10 if quick else 40)
    with ExitStack() as processes:
        for name, peer in other_engines(manifest, threads, scratch, (tokens, some)).items():
            try:
                baselines[name] = processes.enter_context(peer())
                rounds[name] = 5 if quick else 20
            except MissingError as error:
                skipped[name] = str(error)
        for name, most, make in in_torch(manifest, threads, (tokens, some), quick=quick):
            try:
                baselines[name] = make()
                rounds[name] = most
            except ModuleNotFoundError as error:
                if error.name != "torch":
                    raise
                skipped[name] = "torch is not installed; `make test` installs it"
        return medians(baselines, rounds)


Request = tuple[NDArray[np.int64], NDArray[np.float32]]


def other_engines(
    manifest: Manifest, threads: int, scratch: Path, request: Request
) -> dict[str, Callable[[], AbstractContextManager[Call]]]:
    """Return the engines that run in processes of their own; entering one starts it."""
    base = load_base(CHECKPOINT)
    config, graph = LlamaConfig.of(base.config), scratch / "standard.onnx"
    tokens, some = request
    feeds = {"tokens": tokens[None], "lengths": np.array([len(tokens)]), "embeddings": some}

    def start_openvino(number: str) -> AbstractContextManager[Call]:
        if openvino.PYTHON.is_file() and not graph.is_file():
            cached = cached_prompt(base, config)
            emit_backbone(config, base.arrays, graph, cached=cached, positions=POSITIONS)
            np.savez(scratch / "feeds.npz", **feeds)  # type: ignore[arg-type]
        return openvino.running(graph, scratch / "feeds.npz", number, threads)

    def start_llama_cpp() -> AbstractContextManager[Call]:
        cut = scratch / "cut.gguf"
        llama_cpp.cut(fetch(BACKBONE, CACHE), manifest.depth, cut)
        return llama_cpp.running(cut, threads, LENGTH)

    engines = {OPENVINO.format(n): partial(start_openvino, n) for n in openvino.NUMBERS}
    return {**engines, LLAMA_CPP: start_llama_cpp}


def in_torch(
    manifest: Manifest, threads: int, request: Request, *, quick: bool
) -> Iterator[tuple[str, int, Callable[[], Call]]]:
    """Return name, rounds and maker of what needs torch. A maker may raise ModuleNotFoundError."""
    tokens, some = request

    def pipeline(depth: int) -> Call:
        return reference_pipeline(depth, tokens, some, threads)

    def products_by_onednn(number: str) -> Call:
        from bench.peers import pytorch

        shape = shape_of(manifest)
        read = LENGTH - _inquiry_tokens() + CANDIDATES
        return pytorch.products(shape, read, CANDIDATES, LENGTH, number)

    def forward(name: str) -> Call:
        from bench.peers import pytorch

        half, compiled = name.endswith("bf16"), "compiled" in name
        return pytorch.forward(CHECKPOINT, tokens, some, half=half, compiled=compiled)

    few = 2 if quick else 5
    yield REFERENCE.format(manifest.depth), few, partial(pipeline, manifest.depth)
    if not quick:  # nor torch.compile, which takes half a minute
        yield REFERENCE.format(FULL_DEPTH), 3, partial(pipeline, FULL_DEPTH)
    for number in ("fp32", "bf16", "int8"):
        yield ONEDNN.format(number), 10 if quick else 40, partial(products_by_onednn, number)
    for name in TORCH[:2] if quick else TORCH:
        yield name, 5 if quick else 20, partial(forward, name)


def fused_files(manifest: Manifest) -> dict[str, str]:
    """Return the bundle's file of each fast path that this processor has, best path first."""
    graphs = {p: "cpu-bf16" if p.endswith("bf16") else "cpu-fused" for p in FAST_PATHS}
    named = {path: manifest.graphs.get(device) for path, device in graphs.items()}
    return {path: file for path, file in named.items() if file and path in paths()}


def fused(
    manifest: Manifest, threads: int, tokens: NDArray[np.int64], some: NDArray[np.float32]
) -> dict[str, Call]:
    """Return the fused forward pass on each fast path that this processor and bundle have."""
    calls: dict[str, Call] = {}
    for path, graph in fused_files(manifest).items():
        name, forward = FUSED.format(path), Forward(BUNDLE / graph, path, threads)
        read = LENGTH - _inquiry_tokens()
        calls[PRODUCTS.format(name)] = lambda f=forward, n=read: f.products(n, CANDIDATES + 1)  # type: ignore[misc]
        for used, label in ((threads, name), (1, ONE_THREAD.format(name))):
            backend = FusedBackend(BUNDLE / graph, used, [path])
            calls[label] = lambda b=backend: b.hidden([tokens], some)  # type: ignore[misc]
        if len(calls) == 3:  # the best path, which serves
            calls |= in_company(FusedBackend(BUNDLE / graph, threads, [path]), name, tokens, some)
    return calls


def in_company(
    backend: FusedBackend, name: str, tokens: NDArray[np.int64], some: NDArray[np.float32]
) -> dict[str, Call]:
    """Return forward passes of more and fewer candidates, and of 8 prompts of mixed lengths."""
    width, mixed = some.shape[1], [prompt(length) for length in MIXED]
    calls: dict[str, Call] = {}
    for count in (1, 100):
        table = rows(count, width)
        calls[COUNTED.format(name, count)] = partial(backend.hidden, [tokens], table)
    calls[ONE_BY_ONE.format(name)] = lambda: [backend.hidden([one], some) for one in mixed]
    calls[TOGETHER.format(name)] = partial(backend.hidden, mixed, some)
    return calls


def with_busy_neighbor(manifest: Manifest, threads: int) -> dict[str, float]:
    """Return the median milliseconds of the served passes while a neighbor keeps all cores busy."""
    request = [prompt(LENGTH)], rows(CANDIDATES, manifest.width)
    served = {"int8": OnnxBackend(BUNDLE / manifest.graphs["cpu"], threads).hidden}
    for path, graph in fused_files(manifest).items():
        served[FUSED.format(path)] = FusedBackend(BUNDLE / graph, threads, [path]).hidden
    spinning = [sys.executable, "-c", "while True: pass"]
    neighbors = [subprocess.Popen(spinning) for _ in os.sched_getaffinity(0)]
    try:
        calls = {name: partial(run, *request) for name, run in served.items()}
        return medians(calls, dict.fromkeys(calls, 15))
    finally:
        for neighbor in neighbors:
            neighbor.kill()
            neighbor.wait()


def steps(
    manifest: Manifest,
    threads: int,
    scratch: Path,
    tokens: NDArray[np.int64],
    some: NDArray[np.float32],
) -> dict[str, Call]:
    """Return earlier forms of the graph: without constant keys of the prompt, without fusion."""
    base = load_base(CHECKPOINT)
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
    shape = shape_of(manifest)
    read = LENGTH - _inquiry_tokens() + CANDIDATES
    products(shape, read, CANDIDATES, LENGTH, scratch / "products.onnx")
    runs, random = session(scratch / "products.onnx", threads), np.random.default_rng(0)
    feeds = {
        each.name: (0.1 * random.standard_normal(each.shape)).astype(np.float32)
        for each in runs.get_inputs()
    }
    return lambda: runs.run(None, feeds)


def shape_of(manifest: Manifest) -> Shape:
    """Return the sizes of the bundle's backbone."""
    config = load_base(CHECKPOINT).config
    head = manifest.width // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * head
    return Shape(manifest.depth, manifest.width, keys, config["intermediate_size"], head)


def embedding() -> Call:
    """Return a function that embeds a text of LENGTH tokens by MiniLM, which is the bundle's
    encoder of tasks: what a router by embeddings computes for each request."""
    embed = load_embedder(BUNDLE, LENGTH)
    return lambda: embed(["one two three four five " * 40])


def _inquiry_tokens() -> int:
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    return len(tokenizer.encode(INQUIRY, add_special_tokens=False).ids)
