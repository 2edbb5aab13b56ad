"""Measure the latency of Route over a real socket, in closed loops and open loops.

    python -m bench.latency [--calls 200] [--concurrency 1 8] [--load 0.5 0.8]

Starts a server with the shipped catalog and the score cache off. --load: rates of the open loops,
as a share of the throughput of one closed loop. A failed call makes the exit status 1. The last
line of stdout is one JSON object, with times in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.load_generator import RouteTimings, closed_loop, open_loop
from bench.report import RESULTS, environment
from tools.processes import BUNDLE, serving

SENTENCE = "A train leaves at 9:40 and arrives at 13:05; how long is the journey? "
WARM_UP = 10


def texts(count: int, sentences: int) -> list[str]:
    """Return `count` different instructions of equal length."""
    return [f"{SENTENCE * sentences}Case {1000 + n}." for n in range(count)]


def measure(address: str, calls: int, concurrency: list[int], load: list[float], size: int) -> Any:
    """Return name of the run -> its summary."""
    asyncio.run(closed_loop(address, texts(WARM_UP, size), 1))
    results: dict[str, dict[str, Any]] = {}

    def keep(name: str, timings: RouteTimings) -> None:
        results[name] = timings.summary()

    for number in concurrency:
        timings = asyncio.run(closed_loop(address, texts(calls, size), number))
        keep(f"closed, {number} at a time", timings)
    rate = float(next(iter(results.values()))["per_second"])
    for share in load:
        timings = asyncio.run(open_loop(address, texts(calls, size), share * rate))
        keep(f"open, Poisson at {share:.0%} of {rate:.1f}/s", timings)
    return results


def main() -> int:
    """Measure and print; return 1 if a call failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="bundle to serve")
    parser.add_argument("--calls", type=int, default=200, help="calls of each run (default 200)")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 8], help="connections of the closed loops"
    )
    parser.add_argument(
        "--load", type=float, nargs="*", default=[0.5, 0.8], help="rates of the open loops"
    )
    parser.add_argument("--sentences", type=int, default=4, help="length of the instruction")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "candidates.sqlite"
        with serving(store, "--score-cache-mb", "0", bundle=options.bundle) as server:
            results = measure(
                server.address, options.calls, options.concurrency, options.load, options.sentences
            )
    print(f"{'':36}{'p50':>8}{'p95':>8}{'p99':>8}{'p99.9':>8}{'per s':>8}  errors; phases, ms")
    for name, r in results.items():
        times = "".join(f"{r[f'{p}_ms']:8.1f}" for p in ("p50", "p95", "p99", "p99.9"))
        phases = ", ".join(f"{k} {ms:.2f}" for k, ms in r["phases_ms"].items())
        print(f"{name:36}{times}{r['per_second']:8.1f}  {r['errors'] or 'none'}; {phases}")
    whole = {"environment": environment(warm_up=WARM_UP, calls=options.calls), "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latency.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(whole))
    return int(any(r["errors"] for r in results.values()))


if __name__ == "__main__":
    sys.exit(main())
