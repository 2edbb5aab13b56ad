"""Estimate the replicas that a request rate needs, from measured times and a simulated queue.

    python -m bench.capacity [--rates 1000 1000000] [--lengths 32:0.3 128:0.7] [--p99-ms 100]

A replica has the cores of this machine. Its forward pass takes a + b * rows + c * rows * length
milliseconds (rows = requests x (tokens read + candidates), padding included), fitted to measured
batches. Poisson arrivals are spread over replicas at random, so each one sees Poisson arrivals. A
replica batches queued requests as the server does (engine/inference/batcher.py). Its maximum
sustainable rate is the highest at which the p99 of queueing and forward pass is within --p99-ms. A
balancer that looks at queues does better than a random one; caches, TLS and networks are left out.
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bench.baselines import prompt, rows
from bench.report import RESULTS, environment
from engine.bundle.manifest import read_manifest
from engine.inference.batcher import BatchLimits
from engine.inference.onnx import OnnxBackend
from engine.inference.request_queue import MAX_PADDING_SHARE
from tools.processes import BUNDLE

GRID = (
    (1, 32),
    (1, 64),
    (1, 128),
    (1, 200),
    (1, 270),
    (2, 32),
    (4, 32),
    (8, 32),
    (2, 128),
    (3, 128),
)
REPEATS = 12
EVENTS = 20_000  # simulated requests at one rate


@dataclass(frozen=True)
class Service:
    """Milliseconds of a forward pass: start + rows * (row + pair * length).

    worst: largest relative error of the fit.
    """

    start: float
    row: float
    pair: float
    worst: float

    def of(self, batch: int, length: int, candidates: int) -> float:
        """Return the milliseconds for `batch` prompts padded to `length`."""
        return self.start + batch * (length + candidates) * (self.row + self.pair * length)


def fit(rows_of: Sequence[float], lengths: Sequence[float], ms: Sequence[float]) -> Service:
    """Fit a Service by least squares of the relative error."""
    x, y = np.array(rows_of, dtype=float), np.array(ms, dtype=float)
    terms = np.stack([np.ones(len(y)), x, x * np.array(lengths, dtype=float)], axis=1)
    solution, *_ = np.linalg.lstsq(terms / y[:, None], np.ones(len(y)), rcond=None)
    return Service(*map(float, solution), worst=float(np.abs(terms @ solution / y - 1).max()))


def measured(backend: OnnxBackend, candidates: int, width: int) -> Service:
    """Measure the batches of GRID in turn, and fit a Service."""
    some = rows(candidates, width)
    times: dict[tuple[int, int], list[float]] = {shape: [] for shape in GRID}
    for _ in tqdm(range(REPEATS), desc="measure", unit="round"):
        for count, length in GRID:
            tokens = [prompt(length)] * count
            started = time.perf_counter()
            backend.hidden(tokens, some)
            times[count, length].append(1000 * (time.perf_counter() - started))
    sizes = [count * (length + candidates) for count, length in GRID]
    return fit(sizes, [n for _, n in GRID], [float(np.median(t)) for t in times.values()])


def latencies(
    service: Service,
    candidates: int,
    lengths: NDArray[np.int64],
    shares: NDArray[np.float64],
    rate: float,
    give_up_ms: float = math.inf,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Simulate EVENTS requests at `rate` per second on one replica; return their milliseconds.

    They are infinite from the first request on that takes longer than give_up_ms, because then the
    queue grows without bound.
    """
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.exponential(1000 / rate, EVENTS))
    drawn = random.choice(lengths, EVENTS, p=shares)
    waiting: deque[int] = deque()
    took, now, following = np.zeros(EVENTS), 0.0, 0
    while following < EVENTS or waiting:
        if not waiting:
            now = max(now, float(arrivals[following]))
        while following < EVENTS and arrivals[following] <= now:
            waiting.append(following)
            following += 1
        batch = join(waiting, drawn, candidates)
        longest = int(max(drawn[i] for i in batch))
        now += service.of(len(batch), longest, candidates)
        for i in batch:
            took[i] = now - arrivals[i]
        if took[batch[0]] > give_up_ms:
            took[batch[0] :] = math.inf
            break
    return took


def join(waiting: deque[int], drawn: NDArray[np.int64], candidates: int) -> list[int]:
    """Take the oldest request, and in order those that fit, as the batcher does."""
    batch: list[int] = []
    left: list[int] = []
    longest = total = 0
    for i in waiting:
        length = max(longest, int(drawn[i]))
        size, needed = (len(batch) + 1) * (length + candidates), total + int(drawn[i])
        fits = (
            size <= BatchLimits.max_rows
            and (len(batch) + 1) * length - needed <= MAX_PADDING_SHARE * size
        )
        if batch and not fits:
            left.append(i)
            continue
        batch.append(i)
        longest, total = length, needed
    waiting.clear()
    waiting.extend(left)
    return batch


def max_sustainable_rate(
    service: Service,
    candidates: int,
    lengths: NDArray[np.int64],
    shares: NDArray[np.float64],
    p99_ms: float,
) -> float:
    """Return the highest rate per second within the bound, to 1 %.

    It is 0 if an idle replica misses the bound.
    """
    low, high = 0.0, 1000 / service.of(1, 1, candidates) * 8
    if service.of(1, int(lengths.max()), candidates) > p99_ms:
        return 0.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        took = latencies(service, candidates, lengths, shares, middle, 5 * p99_ms)
        fine = np.percentile(took, 99, method="higher") <= p99_ms
        low, high = (middle, high) if fine else (low, middle)
    return low


def main() -> None:
    """Measure, simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    rates = [100, 10_000, 1_000_000]
    text = "requests per second to find replicas for"
    parser.add_argument("--rates", type=float, nargs="+", default=rates, help=text)
    text = "numbers of candidates"
    parser.add_argument("--candidates", type=int, nargs="+", default=[5, 20, 100], help=text)
    prompt_mix = ["32:0.3", "128:0.5", "270:0.2"]
    text = "mix of prompt lengths, TOKENS:SHARE each"
    parser.add_argument("--lengths", nargs="+", default=prompt_mix, help=text)
    parser.add_argument("--p99-ms", type=float, default=100.0, help="bound of the p99")
    parser.add_argument("--threads", type=int, default=2, help="inference threads")
    options = parser.parse_args()
    pairs = [part.split(":") for part in options.lengths]
    lengths = np.array([int(length) for length, _ in pairs])
    shares = np.array([float(share) for _, share in pairs])
    shares /= shares.sum()
    manifest = read_manifest(BUNDLE, "bundle")
    backend = OnnxBackend(BUNDLE / manifest.graphs["cpu"], options.threads)
    results = []
    for candidates in options.candidates:
        service = measured(backend, candidates, manifest.width)
        rate = max_sustainable_rate(service, candidates, lengths, shares, options.p99_ms)
        needed = {f"{r:g}": math.ceil(r / rate) if rate else None for r in options.rates}
        results.append(
            {"candidates": candidates, **vars(service), "rate": rate, "replicas": needed}
        )
        print(
            f"{candidates} candidates: {service.start:.2f} ms + {1000 * service.row:.1f} us a row"
            f" (fit within {service.worst:.0%}); {rate:.0f} a second each; replicas {needed}"
        )
    whole = {
        "environment": environment(
            lengths=options.lengths, p99_ms=options.p99_ms, threads=options.threads
        ),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "capacity.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(whole))


if __name__ == "__main__":
    main()
