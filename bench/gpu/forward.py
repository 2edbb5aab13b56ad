"""Measure one way to run the forward pass: its answers, latency and throughput, and table swaps.

    python -m bench.gpu.forward NAME BUNDLE OUT.json [--seconds 8] [--shapes 20]

NAME is one of BASELINES. The answers to the same random requests go to OUT.npz, by which the
baselines are compared.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.gpu.parts import LIBRARIES, Parts, libraries, percentiles, timed_ms
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import Manifest, read_manifest
from engine.bundle.prompt import AFTER, INQUIRY
from engine.bundle.types import Float32Array, Int64Array
from engine.inference.backend import Backend, ScoringHead
from engine.inference.devices import open_backend, open_tensorrt
from engine.inference.onnx import OnnxBackend
from export.tensorrt import backbone_profile

LENGTH, LONGEST, CANDIDATES = 128, 275, 20
BATCHES = (1, 2, 4, 8, 16, 32, 64)
HALF = "backbone.fp16.onnx"
# name -> what it needs, see bench.gpu.machine.why_not
BASELINES = {
    "cpu-fp32": "",  # the others' answers are compared with its answers
    "cuda": "CUDA",
    "cuda-fp16": "CUDA",
    "tensorrt": "plan",
    "tensorrt-provider": "Tensorrt",
    "cpu": "",
}


def open_baseline(name: str, bundle: Path, manifest: Manifest, module: str) -> Backend:
    """Open the backend. Raises BundleError."""
    if name == "tensorrt":
        return open_tensorrt(bundle, manifest, libraries(module))
    if name == "tensorrt-provider":
        profile = backbone_profile(manifest.width).items()
        options = {
            f"trt_profile_{which}_shapes": ",".join(
                f"{tensor}:{'x'.join(map(str, shapes[place]))}" for tensor, shapes in profile
            )
            for place, which in enumerate(("min", "opt", "max"))
        }
        return OnnxBackend(bundle / HALF, provider="Tensorrt", provider_options=options)
    return open_backend(bundle, manifest, name)


class Requests:
    """Random requests: the frame of every prompt around random tokens, and random embeddings."""

    def __init__(self, bundle: Path, manifest: Manifest, seed: int) -> None:
        tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._before, self._after = (
            np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
            for text in (INQUIRY, AFTER)
        )
        self._vocabulary, self._width = tokenizer.get_vocab_size(), manifest.width
        self.random = np.random.default_rng(seed)

    def prompts(self, lengths: list[int]) -> list[Int64Array]:
        """Return prompts of so many tokens, or of as few more as the frame needs."""
        frame = len(self._before) + len(self._after)
        return [
            np.concatenate(
                [self._before, self.random.integers(0, self._vocabulary, n), self._after]
            )
            for n in (max(1, length - frame) for length in lengths)
        ]

    def table(self, candidates: int) -> Float32Array:
        """Return embeddings (candidates, D) with the magnitude of real ones."""
        shape = (candidates, self._width)
        return np.asarray(0.1 * self.random.standard_normal(shape), dtype=np.float32)


Score = Callable[[list[Int64Array], Float32Array], NDArray[np.float32]]


def answers(
    score: Score, requests: Requests, shapes: int, seconds: float
) -> dict[str, NDArray[Any]]:
    """Return p of random batches, the corners first, and of each first request alone.

    After `seconds` the rest is left out; what two baselines both have is compared.
    """
    random, found, end = requests.random, {}, time.monotonic() + seconds
    corners = [([1], 1), ([LONGEST], 1), ([1], 1000), ([LONGEST], 1000)]
    drawn = [
        (random.integers(1, LONGEST, int(random.choice([1, 2, 5, 17, 64]))).tolist(), count)
        for count in random.choice([1, 7, 20, 100], max(0, shapes - len(corners))).tolist()
    ]
    for number, (lengths, candidates) in enumerate((corners + drawn)[:shapes]):
        prompts, table = requests.prompts(lengths), requests.table(candidates)
        if time.monotonic() > end:
            break
        found[f"p{number}"] = score(prompts, table)
        if len(prompts) > 1:
            found[f"alone{number}"] = score(prompts[:1], table)
    return found


def latencies(score: Score, requests: Requests, seconds: float) -> Iterator[dict[str, Any]]:
    """Time joined requests of one shape, many candidates and the longest prompt, the quick ones
    first. Slow processors have no time for the last."""
    shapes = [(batch, LENGTH, CANDIDATES) for batch in BATCHES]
    shapes[1:1] = [(1, LENGTH, 1000), (1, LONGEST, CANDIDATES)]
    end = time.monotonic() + 2 * seconds
    for batch, length, candidates in shapes:
        if time.monotonic() > end:
            return
        prompts, table = requests.prompts([length] * batch), requests.table(candidates)
        times = timed_ms(partial(score, prompts, table), seconds / len(shapes))
        found = percentiles(times)
        rate = 1000 * batch / found["p50_ms"]
        yield {"requests": batch, "tokens": length, "candidates": candidates, **found,
               "requests_per_s": rate}  # fmt: skip


def changing_shapes(score: Score, requests: Requests, seconds: float) -> dict[str, Any]:
    """Time single requests of lengths and counts that change, and then the same ones again."""
    random, table = requests.random, requests.table(60)
    drawn = [
        (
            requests.prompts([int(random.integers(24, LONGEST))]),
            table[: int(random.integers(3, 60))],
        )
        for _ in range(400)
    ]
    found: dict[str, Any] = {}
    for name in ("first", "again"):
        times: list[float] = []
        started = time.monotonic()
        for prompts, some in drawn:
            before = time.perf_counter()
            score(prompts, some)
            times.append(1000 * (time.perf_counter() - before))
            if time.monotonic() - started > seconds / 2 and len(times) > 4:
                break
        found[name], drawn = percentiles(times), drawn[: len(times)]
    return found


def swapping_tables(
    backend: Backend, head: ScoringHead, requests: Requests, seconds: float
) -> dict[str, Any]:
    """Score while another thread announces tables; count answers that are of no one table."""
    tables, prompts = [requests.table(CANDIDATES) for _ in range(6)], requests.prompts([LENGTH])
    rows = np.arange(CANDIDATES)
    expected = [backend.probabilities(prompts, table, rows, head).p for table in tables]
    stopping, announced = threading.Event(), [0]

    def announce() -> None:
        random = np.random.default_rng(0)
        while not stopping.wait(0.001):
            backend.prefetch_table(tables[int(random.integers(len(tables)))])
            announced[0] += 1

    thread = threading.Thread(target=announce)
    thread.start()
    times: list[float] = []
    wrong, started = 0, time.monotonic()
    try:
        while time.monotonic() - started < seconds or len(times) < 12:
            which = len(times) // 2 % len(tables)
            before = time.perf_counter()
            p = backend.probabilities(prompts, tables[which], rows, head).p
            times.append(1000 * (time.perf_counter() - before))
            wrong += bool(np.abs(p - expected[which]).max() > 1e-3)
    finally:
        stopping.set()
        thread.join()
    return {"wrong": wrong, "announced": announced[0], **percentiles(times)}


def main() -> None:
    """Write OUT after each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=BASELINES)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0, help="of all times together")
    parser.add_argument("--shapes", type=int, default=20, help="of the requests that are compared")
    parser.add_argument("--libraries", default=LIBRARIES)
    options = parser.parse_args()
    parts, seconds = Parts(options.out), options.seconds
    manifest = read_manifest(options.bundle, "bundle")
    head = ScoringHead(load_arrays(options.bundle).readout, manifest.norm_eps, manifest.calibration)
    started = time.monotonic()
    backend = open_baseline(options.name, options.bundle, manifest, options.libraries)
    opened_s = time.monotonic() - started
    parts.add("opened", lambda: {"seconds": opened_s, "backend": backend.describe()})

    def score(prompts: list[Int64Array], table: Float32Array) -> NDArray[np.float32]:
        return backend.probabilities(prompts, table, np.arange(len(table)), head).p

    def save_answers() -> int:
        drawn = Requests(options.bundle, manifest, 11)
        found = answers(score, drawn, options.shapes, seconds)
        np.savez(options.out.with_suffix(".npz"), **found)  # type: ignore[arg-type]
        return len(found)

    parts.add("answers", save_answers)
    requests = Requests(options.bundle, manifest, 3)
    parts.add("latency", lambda: list(latencies(score, requests, 0.6 * seconds)))
    parts.add("changing_shapes", lambda: changing_shapes(score, requests, 0.25 * seconds))
    parts.add("swaps", lambda: swapping_tables(backend, head, requests, 0.15 * seconds))


if __name__ == "__main__":
    main()
