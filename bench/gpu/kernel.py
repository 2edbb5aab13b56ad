"""Check the CUDA scoring kernel on a GPU, and compare its time with that of the CPU kernel.

    python -m bench.gpu.kernel OUT.json [--quick]

--quick: a few small cases and no times, for compute-sanitizer. Shapes: B requests, M candidates, D
width.
"""

from __future__ import annotations

import argparse
import ctypes
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cpp_ext
from bench.gpu.parts import LIBRARIES, Parts, cuda_and_kernel, timed_ms
from bench.gpu.stream import TimedStream
from cpp_ext import cuda
from engine.inference.tensorrt.memory import DeviceTables

HEAD: dict[str, Any] = {"eps": 1e-5, "scale": 1.7, "offset": -0.4}
DTYPES = ("fp32", "fp16", "bf16")
WIDTH = 576
TOLERANCE = 2e-6  # of p, as in tests/kernel
BATCHES, CANDIDATES = (1, 4, 16, 64), (20, 1000)
WIDTHS = (1, 3, 31, 32, 33, 64, 65, 127, 255, 575, 576, 577, 960, 2048)
COUNTS = (1, 2, 7, 8, 9, 20, 33, 100, 255, 257, 1000, 4096)
GUARD = 16  # elements after each output, which must not change
LAUNCHES = 20  # in one graph, so that the host's time to launch does not show


def as_dtype(rows: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round to fp16, or to the bits of bfloat16 (to nearest even; NaN stays NaN)."""
    if dtype == "fp32":
        return rows
    if dtype == "fp16":
        with np.errstate(over="ignore"):
            return rows.astype(np.float16)
    bits = rows.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(rows), 0x7FC0, rounded).astype(np.uint16)


def draw(random: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Draw rows with ties, and in some draws NaN, infinity, zeros, subnormals or large sums."""
    rows = random.standard_normal(shape, dtype=np.float32)
    rows[:, -1] = rows[:, 0]
    extremes = (np.nan, np.inf, -np.inf, 0.0, 1e-42, 3e30, 65504.0, 1e-7)
    for value in random.choice(extremes, size=random.integers(0, 4)):
        b, m = random.integers(shape[0]), random.integers(shape[1])
        if random.random() < 0.5:
            rows[b, m] = value
        rows[b, m, random.integers(shape[2])] = value
    return rows


def check(
    stream: TimedStream, library: ctypes.CDLL, random: np.random.Generator, largest: int
) -> dict[str, Any]:
    """Score and rank one random case; return what was right, and the largest difference in p."""
    batch = int(random.integers(1, 9))
    candidates = min(int(random.choice(COUNTS)), largest)
    width, dtype = int(random.choice(WIDTHS)), str(random.choice(DTYPES))
    if candidates * width * batch > 6_000_000:
        batch = 1
    ranked = int(random.integers(0, min(candidates, 30) + 3))
    hidden = as_dtype(draw(random, (batch, candidates, width)), dtype)
    # Logits of size 1, where the sigmoid is steepest.
    weight = (random.standard_normal(width) / np.sqrt(width)).astype(np.float32)
    allowed = (random.random((batch, candidates)) < 0.8).astype(np.uint8)
    penalty = (random.integers(0, 3, (batch, candidates)) / 8).astype(np.float32)
    p_size, order_size = batch * candidates, batch * ranked
    outputs = [stream.poisoned(4 * (size + GUARD)) for size in (p_size, order_size)]
    at = cuda.RankPointers(*map(stream.put, (hidden, weight, allowed, penalty)), *outputs)
    sizes = cuda.RankSizes(DTYPES.index(dtype), batch, candidates, width, ranked)
    cuda.rank(library, at, sizes, **HEAD, stream=stream.handle)
    raw_p = stream.get(at.probability, (p_size + GUARD,), np.float32)
    raw_order = stream.get(at.order, (order_size + GUARD,), np.int32)
    p = raw_p[:p_size].reshape(batch, candidates)
    order = raw_order[:order_size].reshape(batch, ranked)
    expected = cpp_ext.score_reference(hidden, weight, **HEAD, **_bf16(dtype))
    same_nan = bool((np.isnan(p) == np.isnan(expected)).all())
    difference = float(np.nanmax(np.abs(p - expected), initial=0.0))
    guarded = bool(
        (raw_p[p_size:].view(np.int32) == 0x7F7F7F7F).all()
        and (raw_order[order_size:] == 0x7F7F7F7F).all()
    )
    ordered = bool((order == cuda.rank_reference(p, allowed, penalty, ranked)).all())
    right = same_nan and difference <= TOLERANCE and guarded and ordered
    shape = [batch, candidates, width, ranked]
    return {"right": right, "difference": difference, "dtype": dtype, "shape": shape,
            "nan": same_nan, "guards": guarded, "order": ordered}  # fmt: skip


def _bf16(dtype: str) -> dict[str, Any]:
    return {"dtype": "bf16"} if dtype == "bf16" else {}


def correctness(
    stream: TimedStream, library: ctypes.CDLL, cases: int, seconds: float, largest: int = 4096
) -> dict[str, Any]:
    """Check random cases with at most `largest` candidates, as many as `seconds` allow."""
    random, started = np.random.default_rng(), time.monotonic()
    found: list[dict[str, Any]] = []
    while len(found) < cases and time.monotonic() - started < seconds:
        found.append(check(stream, library, random, largest))
        stream.clear()
    wrong = [case for case in found if not case["right"]]
    largest_of = {d: [c["difference"] for c in found if c["dtype"] == d] for d in DTYPES}
    return {
        "cases": len(found),
        "wrong": len(wrong),
        "first_wrong": wrong[:10],
        "largest_difference": {d: max(values, default=0.0) for d, values in largest_of.items()},
    }


def swapping(stream: TimedStream, library: ctypes.CDLL, seconds: float) -> dict[str, Any]:
    """Upload tables from one thread while another reads them; count reads of a mixture."""
    tables = DeviceTables(stream.cuda, stream.memory, WIDTH)
    made = [np.full((1000, WIDTH), k, np.float32) for k in range(8)]
    rows = stream.put(np.arange(1000, dtype=np.int32))
    out = stream.memory.device(4000 * WIDTH)
    latest, stopping, swaps = [made[0]], threading.Event(), [0]

    def swap() -> None:
        random = np.random.default_rng(1)
        while not stopping.wait(0.0005):
            table = made[int(random.integers(len(made)))]
            tables.prefetch(table)
            latest[0] = table
            swaps[0] += 1

    thread = threading.Thread(target=swap)
    thread.start()
    reads, mixed, started = 0, 0, time.monotonic()
    while time.monotonic() - started < seconds:
        table = latest[0]
        address = tables.acquire(table, stream.handle)
        cuda.gather(library, address, WIDTH, rows, 1000, out, stream=stream.handle)
        found = stream.get(out, (1000, WIDTH), np.float32)
        tables.release()
        reads, mixed = reads + 1, mixed + bool((found != table[0, 0]).any())
    stopping.set()
    thread.join()
    tables.close()
    return {"reads": reads, "mixed": mixed, "swaps": swaps[0]}


def speed(
    stream: TimedStream, library: ctypes.CDLL, batch: int, candidates: int, dtype: str
) -> dict[str, Any]:
    """Return median microseconds of the CUDA kernel alone, of it with its answer, of rows copied to
    the CPU and scored there, and of the CPU kernel alone."""
    random = np.random.default_rng(0)
    some = random.standard_normal((1 << 20) + 7, dtype=np.float32)
    hidden = as_dtype(np.resize(some, (batch, candidates, WIDTH)), dtype)
    weight = random.standard_normal(WIDTH).astype(np.float32)
    count = batch * candidates
    inputs = (hidden, weight, np.ones(count, np.uint8), np.zeros(count, np.float32))
    outputs = [stream.poisoned(4 * size) for size in (count, batch)]
    at = cuda.RankPointers(*map(stream.put, inputs), *outputs)
    sizes = cuda.RankSizes(DTYPES.index(dtype), batch, candidates, WIDTH, 0)
    answer = stream.memory.pinned(count, np.float32)
    host = stream.memory.pinned(hidden.size, hidden.dtype)
    launch = partial(cuda.rank, library, at, sizes, **HEAD, stream=stream.handle)

    def on_cpu(rows: NDArray[Any]) -> None:
        cpp_ext.score(rows, weight, **HEAD, **_bf16(dtype))

    def with_answer() -> None:
        launch()
        stream.cuda.copy(answer.ctypes.data, at.probability, answer.nbytes, stream.handle)
        stream.wait()

    def rows_to_cpu() -> None:
        stream.cuda.copy(host.ctypes.data, at.hidden, host.nbytes, stream.handle)
        stream.wait()
        on_cpu(host.reshape(hidden.shape))

    def median_us(run: Any) -> float:
        return 1000 * float(np.median(timed_ms(run, 0.04, 200)))

    return {
        "batch": batch, "candidates": candidates, "dtype": dtype,
        "kernel_us": _alone_us(stream, launch),
        "kernel_and_answer_us": median_us(with_answer),
        "rows_to_cpu_us": median_us(rows_to_cpu),
        "cpu_kernel_us": median_us(partial(on_cpu, hidden)),
    }  # fmt: skip


def _alone_us(stream: TimedStream, launch: Any) -> float:
    """Return microseconds of one launch in a CUDA graph of LAUNCHES."""
    launch()
    stream.wait()
    stream.cuda.begin_capture(stream.handle)
    for _ in range(LAUNCHES):
        launch()
    graph = stream.cuda.end_capture(stream.handle)
    times = []
    for _ in range(9):
        stream.start()
        stream.cuda.launch(graph, stream.handle)
        times.append(1000 * stream.elapsed_ms() / LAUNCHES)
    stream.cuda.destroy_graph(graph)
    return float(np.median(times))


def main() -> None:
    """Write one JSON file, after each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="few cases and no times")
    parser.add_argument("--seconds", type=float, default=5.0, help="of random cases")
    parser.add_argument("--libraries", default=LIBRARIES)
    options = parser.parse_args()
    parts = Parts(options.out)
    runtime, library = cuda_and_kernel(options.libraries)
    stream = TimedStream(runtime)
    parts.add("cpu_kernel", cpp_ext.implementation)
    parts.add("capability", runtime.capability)
    cases = (20, 20.0, 100) if options.quick else (400, options.seconds, 4096)
    parts.add("correctness", lambda: correctness(stream, library, *cases))
    if not options.quick:
        stream.clear()
        parts.add("swap", lambda: swapping(stream, library, options.seconds / 5))
        for dtype in DTYPES:
            for candidates in CANDIDATES:
                for batch in BATCHES:
                    stream.clear()
                    name = f"speed {batch} x {candidates} {dtype}"
                    parts.add(name, partial(speed, stream, library, batch, candidates, dtype))
    stream.close()


if __name__ == "__main__":
    main()
