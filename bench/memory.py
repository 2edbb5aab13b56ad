"""Measure what remembered outcomes add to the latency of Route.

    python -m bench.memory [--instructions 10000 100000] [--calls 300]

Fills a store of outcomes for each number of instructions, with comparisons that can be learned
from, and calls a server on it, which remembers them and forgets them in turn. A target that is
missed makes the exit status 1. The last line of stdout is one JSON object, with times in
milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from bench.latency import texts
from bench.report import RESULTS, Target, environment, markdown
from engine.bundle.arrays import load_arrays
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from engine.registry.stores.outcome_types import OutcomeReport, RecordedOutcome
from engine.serving.components import Components, build
from engine.serving.settings import Settings
from engine.serving.telemetry import Telemetry
from modelsat import AdaptationInfo, Client
from tools.processes import BUNDLE, Server, serving

WARM_UP, TIMEOUT_S, LEARNING_S = 5, 30.0, 900.0
ROUNDS = 6
KINDS = 40  # of instructions, each with its own strong and weak candidates
COMPARED = 4  # candidates of each comparison
CHUNK = 1000  # comparisons that are recorded at once
DRAWS = 2000  # of the bootstrap
LIMITS_MS = {10_000: 0.5, 100_000: 1.5}  # that may be added to the median
BOUNDS = {"max_recorded_outcomes": 10_000_000, "memory_instructions": 1_000_000, "memory_mib": 4096}
Times = NDArray[np.float64]


def reports(components: Components, count: int) -> Iterator[OutcomeReport]:
    """Yield `count` comparisons of random instructions; the same ones every time."""
    rng, table = np.random.default_rng(0), components.registry.table()
    width, candidates = table.embeddings.shape[1], len(table.candidates)
    mean = load_arrays(components.settings.bundle).instruction_space.mean
    centers = rng.normal(size=(KINDS, width))
    effects = rng.normal(scale=1.5, size=(KINDS, candidates))
    rows = np.arange(candidates)
    for i in range(count):
        kind, logits = rng.integers(KINDS), rng.normal(size=candidates)
        embedding = mean + centers[kind] + rng.normal(scale=0.7, size=width)
        p = 1 / (1 + np.exp(-logits))
        scored = components.memory.recent.scored(
            table, rows, p.astype(np.float32), embedding.astype(np.float32)
        )
        good = rng.random(candidates) < 1 / (1 + np.exp(-logits - effects[kind]))
        yield OutcomeReport(
            [
                RecordedOutcome(f"{i:032x}", table.candidates[m].id, float(good[m]), compared=True)
                for m in rng.permutation(candidates)[:COMPARED]
            ],
            scored,
        )


async def fill(settings: Settings, count: int) -> float:
    """Record `count` comparisons in the store of `settings`; return seconds."""
    components = build(settings, Telemetry())
    started, store = time.perf_counter(), components.memory.store
    made = reports(components, count)
    for first in range(0, count, CHUNK):
        chunk = [next(made) for _ in range(min(CHUNK, count - first))]
        await asyncio.gather(*(store.record_report(report) for report in chunk))
    await components.memory.close()
    await components.registry.close()
    return time.perf_counter() - started


def learned(server: Server, count: int) -> AdaptationInfo:
    """Wait until the server has fitted `count` instructions; return what it says of the fit."""
    deadline = time.monotonic() + LEARNING_S
    with Client(server.address, TIMEOUT_S) as client:
        while (found := client.adaptation()).instructions != count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{found.instructions} of {count} instructions were learned")
            time.sleep(0.2)
    return found


def call_in_turn(server: Server, count: int, calls: int, sentences: int) -> tuple[Times, Times]:
    """Return the latencies of Route with and without the remembered instructions, in milliseconds,
    `calls` of each.

    Servers that do the same differ by .5 ms, because a forward pass depends on where its memory
    lies. So one server forgets, by a reset, and remembers again, by a rollback, in each of ROUNDS.
    """
    taken: dict[bool, list[float]] = {True: [], False: []}
    each = -(-calls // ROUNDS)
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(server.address))
        client = stack.enter_context(Client(server.address, LEARNING_S))
        route = router_service_pb2_grpc.RouterServiceStub(channel).Route
        fitted = learned(server, count).id
        for number in range(ROUNDS):
            for remembers in (True, False) if number % 2 else (False, True):
                if remembers:
                    client.rollback_adaptation(fitted)
                else:
                    client.reset_adaptation()
                for i, text in enumerate(texts(WARM_UP + each, sentences)):
                    started = time.perf_counter()
                    response = route(pb.RouteRequest(text=text), timeout=TIMEOUT_S)
                    if i >= WARM_UP:
                        taken[remembers].append(1e3 * (time.perf_counter() - started))
                    if bool(response.adaptation_id) is not remembers:
                        raise RuntimeError(f"the answer is by {response.adaptation_id or None}")
    return np.array(taken[True]), np.array(taken[False])


def added(taken: Times, base: Times) -> tuple[float, float, float]:
    """Return how much higher the median of `taken` is, with a 95 % interval by bootstrap."""
    rng = np.random.default_rng(0)
    rows = rng.integers(len(taken), size=(DRAWS, len(taken)))
    draws = np.median(taken[rows], axis=1) - np.median(base[rows], axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.median(taken) - np.median(base)), float(low), float(high)


def summary(taken: Times, base: Times, fit: AdaptationInfo, resident_mb: float) -> dict[str, Any]:
    """Return the figures of one server. base: latencies while it remembers nothing."""
    difference, low, high = added(taken, base)
    return {
        "p50_ms": float(np.median(taken)),
        "p50_without_ms": float(np.median(base)),
        "added_p50_ms": difference,
        "added_p50_interval_ms": [low, high],
        "active": fit.active,
        "fit_s": fit.fit_seconds,
        "log_loss": [fit.log_loss_before, fit.log_loss_after],
        "resident_mb": resident_mb,
    }


def targets_of(results: Mapping[int, Mapping[str, Any]]) -> list[Target]:
    """Return the bounds on what each number of instructions adds."""
    return [
        Target(f"added to p50 by {count:,} instructions, ms", found["added_p50_ms"], f"<= {limit}")
        for count, limit in LIMITS_MS.items()
        if (found := results.get(count)) is not None
    ]


def measure(
    counts: Sequence[int], calls: int, sentences: int, bundle: Path, folder: Path
) -> dict[int, dict[str, Any]]:
    """Return the summary of each number of instructions, of one server after the other."""
    found = {}
    for count in counts:
        store = folder / str(count) / "candidates.sqlite"
        store.parent.mkdir()
        outcomes = store.with_name("outcomes.sqlite")
        settings = Settings(
            bundle=bundle, candidates_db=str(store), outcomes_db=str(outcomes), **BOUNDS
        )
        seconds = asyncio.run(fill(settings, count))
        print(f"{count:,} comparisons recorded in {seconds:.1f} s", file=sys.stderr)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in BOUNDS.items()]
        with serving(store, *flags, "--score-cache-mb", "0", bundle=bundle) as server:
            fit, resident_mb = learned(server, count), server.resident_mb()
            taken, base = call_in_turn(server, count, calls, sentences)
        found[count] = summary(taken, base, fit, resident_mb)
    return found


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="bundle to serve")
    parser.add_argument(
        "--instructions", type=int, nargs="+", default=[10_000, 100_000], help="remembered ones"
    )
    text = "calls of a server with what it remembers, and without (default 300)"
    parser.add_argument("--calls", type=int, default=300, help=text)
    parser.add_argument("--sentences", type=int, default=4, help="length of the instruction")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(
            options.instructions, options.calls, options.sentences, options.bundle, Path(folder)
        )
    print(
        f"{'instructions':>12}{'without':>8}{'p50':>8}{'added to p50 (95 %)':>26}{'fit s':>8}"
        f"{'MB':>7}"
    )
    for count, r in results.items():
        low, high = r["added_p50_interval_ms"]
        interval = f"{r['added_p50_ms']:+.2f} ({low:+.2f} to {high:+.2f})"
        print(
            f"{count:>12,}{r['p50_without_ms']:8.2f}{r['p50_ms']:8.2f}{interval:>26}{r['fit_s']:8.2f}"
            f"{r['resident_mb']:7.0f}"
        )
    targets = targets_of(results)
    print(markdown(targets))
    whole = {
        "environment": environment(warm_up=WARM_UP, calls=options.calls),
        "results": results,
        "targets": [target.row() for target in targets],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(whole))
    return int(any(target.verdict is False for target in targets))


if __name__ == "__main__":
    sys.exit(main())
