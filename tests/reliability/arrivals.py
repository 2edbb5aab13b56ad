"""Measure what arrives at a server: a burst and idle connections.

    python -m tests.reliability.arrivals [--seconds-held 2]

The burst comes from four processes with 1,000 calls each, and none of the calls may be cancelled. A
new caller is answered in 1 s although 1,000 connections are idle. Messages that are sent in part
are for tests/serving/test_half_sent.py. The last line of stdout is one JSON object with `targets`,
which is also written to bench/results/arrivals.json.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc

from bench.report import Target, environment, finish
from engine.pb import router_service_pb2 as pb
from engine.pb import router_service_pb2_grpc
from tools.processes import Server, serving

PROCESSES, CALLS, TIMEOUT_S = 4, 1000, 60.0
IDLE = 1000
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">HBBBL", 0, 0, 4, 0, 0)
SINGLE = [("grpc.use_local_subchannel_pool", 1)]


def burst(address: str, number: int) -> dict[str, int]:
    """Make CALLS calls at once from this process; return code -> count."""
    return asyncio.run(_burst(address, number))


async def _burst(address: str, number: int) -> dict[str, int]:
    async with grpc.aio.insecure_channel(address, SINGLE) as channel:
        await channel.channel_ready()
        route = router_service_pb2_grpc.RouterServiceStub(channel).Route
        requests = [pb.RouteRequest(text=f"Question {number} {n}") for n in range(CALLS)]
        calls = [route(request, timeout=TIMEOUT_S) for request in requests]
        codes = await asyncio.gather(*(call.code() for call in calls))
    return Counter(code.name for code in codes)


def new_caller_s(address: str) -> float:
    """Return how long a call takes that has no connection yet, in seconds."""
    begun = time.perf_counter()
    with grpc.insecure_channel(address, SINGLE) as channel:
        route = router_service_pb2_grpc.RouterServiceStub(channel).Route
        route(pb.RouteRequest(text="Is anybody there?"), timeout=TIMEOUT_S)
    return time.perf_counter() - begun


def measure_burst(address: str) -> Target:
    """Send the burst from all processes together."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(burst, [address] * PROCESSES, range(PROCESSES)))
    codes: Counter[str] = sum((Counter(result) for result in results), Counter())
    print(f"burst of {PROCESSES} x {CALLS}:", dict(codes))
    others = codes.total() - codes["OK"] - codes["RESOURCE_EXHAUSTED"]
    return Target("calls of the burst neither answered nor RESOURCE_EXHAUSTED", others, "<= 0")


def measure_idle(server: Server, held_s: float) -> Target:
    """Open idle connections and hold them; then call from a new one."""
    host, _, port = server.address.rpartition(":")
    with ExitStack() as opened:
        for _ in range(IDLE):
            connection = opened.enter_context(socket.create_connection((host, int(port)), 5))
            connection.sendall(PREFACE)
        time.sleep(held_s)
        seconds = [new_caller_s(server.address) for _ in range(3)]
    print(f"{IDLE} idle connections: new callers take", [round(1000 * s, 1) for s in seconds], "ms")
    return Target("seconds of a new caller alongside idle connections", max(seconds), "<= 1")


def main() -> int:
    """Measure and print; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seconds-held",
        type=float,
        default=2.0,
        help="idle connections stay (default 2)",
    )
    held_s = parser.parse_args().seconds_held
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "candidates.sqlite") as server,
    ):
        targets = [
            measure_idle(server, held_s),
            measure_burst(server.address),
        ]
    return finish("arrivals", environment(), targets)


if __name__ == "__main__":
    sys.exit(main())
