"""Closed-loop latency of Route over a real socket, with the time of each phase.

    python -m bench.latency [--calls 200] [--concurrency 1 8]

Starts a server of its own with the shipped zoo. Any failed call ends the run with an error. The
last line on stdout is one JSON object; times are milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench.process import BUNDLE, serving
from engine.cli import PHASES
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc

SENTENCE = "A train leaves at 9:40 and arrives at 13:05; how long is the journey? "
WARM_UP = 10


async def measure(address: str, text: str, calls: int, concurrency: int) -> dict[str, Any]:
    """p50, p95 and throughput as the client sees them; medians of the server's phases."""
    request = pb.RouteRequest(text=text)
    seen: list[float] = []
    phases: list[list[float]] = []

    async def connection(share: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)
            for number in range(WARM_UP + share):
                begun = time.perf_counter()
                answer = await stub.Route(request, timeout=60)
                if number >= WARM_UP:
                    seen.append(1000 * (time.perf_counter() - begun))
                    timing = answer.timing
                    phases.append([getattr(timing, p).ToNanoseconds() / 1e6 for p in PHASES])

    begun = time.perf_counter()
    await asyncio.gather(*(connection(calls // concurrency) for _ in range(concurrency)))
    elapsed = time.perf_counter() - begun
    medians = np.median(np.array(phases), axis=0)
    return {
        "concurrency": concurrency,
        "calls": len(seen),
        "p50_ms": float(np.percentile(seen, 50)),
        "p95_ms": float(np.percentile(seen, 95)),
        "per_second": (len(seen) + WARM_UP * concurrency) / elapsed,
        "phases_ms": dict(zip(PHASES, medians.tolist(), strict=True)),
    }


def main() -> None:
    """Parse the command line, measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--sentences", type=int, default=4, help="length of the instruction")
    arguments = parser.parse_args()
    text = SENTENCE * arguments.sentences
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "candidates.sqlite"
        with serving(store, bundle=arguments.bundle) as server:
            results = [
                asyncio.run(measure(server.address, text, arguments.calls, concurrency))
                for concurrency in arguments.concurrency
            ]
    print(f"{'concurrency':>12}{'p50 ms':>10}{'p95 ms':>10}{'per s':>10}   phases, ms")
    for r in results:
        phases = ", ".join(f"{name} {ms:.2f}" for name, ms in r["phases_ms"].items())
        print(
            f"{r['concurrency']:>12}{r['p50_ms']:>10.1f}{r['p95_ms']:>10.1f}"
            f"{r['per_second']:>10.1f}   {phases}"
        )
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(
        json.dumps(
            {"machine": machine, "arguments": vars(arguments) | {"bundle": ""}, "results": results}
        )
    )


if __name__ == "__main__":
    main()
